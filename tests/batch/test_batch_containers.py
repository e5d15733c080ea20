"""Containers of samples without an engine: fields, identity, command lines, and what an engine prints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from codex_batch.container import ContainerSpec, engine
from codex_batch.container.engine import Image, State
from codex_batch.container.images import name_of
from codex_batch.container.options import ContainerOptions
from codex_batch.dataset import DatasetError, Sample
from codex_batch.dataset.load import read
from codex_batch.run.run_containers import ContainerPlan
from codex_batch.run.thread_options import FULL_ACCESS

# As it was before samples had containers: results of earlier runs still count.
DIGEST_WITHOUT = "81ffc65946b02b1e"


def dataset(path: Path, container: dict[str, Any]) -> Path:
    data = path / "data.jsonl"
    data.write_text(json.dumps({"id": "a", "prompt": "x", "container": container}) + "\n")
    return data


def test_a_sample_is_what_it_was_as_json_and_without_a_container_it_keeps_its_digest() -> None:
    spec = ContainerSpec(image="i:1", cpus=1.5, memory_mb=100, environment={"A": "b"}, network=True)
    sample = Sample("a", ("x",), container=spec)
    assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample
    assert Sample("a", ("x",)).digest == DIGEST_WITHOUT
    assert sample.digest != Sample("a", ("x",)).digest


def test_the_contents_of_images_count_and_not_their_names_and_places() -> None:
    def digest(**fields: Any) -> str:
        return Sample("a", ("x",), container=ContainerSpec(**fields)).digest

    assert digest(image="i:1", digest="d") == digest(image="other", digest="d") != digest(image="i:1", digest="e")
    assert (
        digest(build="/a", tree="t", build_timeout_s=1) == digest(build="/b", tree="t") != digest(build="/a", tree="u")
    )
    assert digest(image="i") != digest(image="i", memory_mb=1) != digest(image="i", network=True)


def test_a_directory_is_known_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM a\n")
    data = dataset(tmp_path, {"build": "context"})
    (before,) = read(data)
    assert before.container is not None and before.container.build == str(tmp_path / "context")
    (tmp_path / "context" / "Dockerfile").write_text("FROM b\n")
    (after,) = read(data)
    assert after.container is not None and name_of(before.container) != name_of(after.container)


@pytest.mark.parametrize(
    ("container", "problem"),
    [
        ({"imag": "x"}, "container.imag: is not a field of a container"),
        ({"image": "--privileged"}, "container.image"),
        ({"image": "a b"}, "container.image"),
        ({"image": "a", "build": "."}, "container.build: stands beside image"),
        ({"build": "nowhere"}, "container.build"),
        ({"image": "a", "user": "-u"}, "container.user"),
        ({"image": "a", "workdir": "/"}, "container.workdir"),
        ({"image": "a", "workdir": "/a/../.."}, "container.workdir"),
        ({"image": "a", "workdir": "a"}, "container.workdir"),
        ({"image": "a", "environment": {"A=B": "c"}}, "container.environment"),
        ({"image": "a", "memory_mb": 0}, "container.memory_mb"),
        ({"image": "a", "network": "yes"}, "container.network"),
    ],
)
def test_what_is_wrong_with_a_container_is_named(tmp_path: Path, container: dict[str, Any], problem: str) -> None:
    with pytest.raises(DatasetError) as raised:
        read(dataset(tmp_path, container))
    assert problem in str(raised.value)


def command_line(spec: ContainerSpec, bwrap: Path | None = None) -> list[str]:
    return engine.run(
        "docker",
        spec,
        name="n",
        run="r",
        image="d",
        workspace=Path("/w"),
        workdir="/app",
        codex=Path("/c"),
        bwrap=bwrap,
        token_sha256="t",
    )


def test_a_container_has_no_network_unless_it_is_asked_for_and_only_two_mounts() -> None:
    argv = command_line(ContainerSpec(image="i"))
    assert argv[argv.index("--network") + 1] == "none"
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--volume"] == ["/w:/app", f"/c:{engine.CODEX}:ro"]
    assert argv[argv.index("--label") + 1] == "codex-pool.run=r" and argv[argv.index("--pull") + 1] == "never"
    assert "--network" not in command_line(ContainerSpec(image="i", network=True))
    assert f"/b:{engine.BWRAP}:ro" in command_line(ContainerSpec(image="i"), Path("/b"))


def test_limits_are_those_of_the_spec() -> None:
    spec = ContainerSpec(cpus=0.5, memory_mb=64, processes=9, user="1:2", environment={"A": "b c"})
    said = " ".join(command_line(spec))
    for words in ("--cpus 0.5", "--memory 64m --memory-swap 64m", "--pids-limit 9", "--user 1:2", "--env A=b c"):
        assert f" {words} " in said


def test_what_an_engine_prints_is_read() -> None:
    assert State.parse("true false 0 17\n") == State(True, False, 0, 17)
    assert engine.image_of("sha256:ab|app|/srv\n") == Image("ab", "/srv", "app")
    assert engine.image_of("ab||/\n") == Image("ab") == engine.image_of("ab||")
    with pytest.raises(ValueError):
        State.parse("true")


def test_images_are_the_samples_own_then_of_the_map_then_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_there = tmp_path / "podman"
    engine_there.write_text('#!/bin/sh\nfor last; do :; done\necho "sha256:of-$last||"\n')
    engine_there.chmod(0o755)
    images = tmp_path / "images.toml"
    images.write_text('"b-*" = "mapped"\n')
    monkeypatch.setattr("codex_batch.run.run_containers.problem_of_host", lambda: None)
    options = ContainerOptions(engine=str(engine_there), image="all", image_map=images, cpus=2.0, memory_mb=10)
    plan = ContainerPlan(options)

    def given(identity: str, spec: ContainerSpec | None = None) -> ContainerSpec:
        sample = plan.of(Sample(identity, ("x",), container=spec))
        assert sample.workspace == {} and sample.container is not None
        return sample.container

    assert given("a") == ContainerSpec(image="all", digest="of-all", cpus=2.0, memory_mb=10)
    assert given("b-1").digest == "of-mapped"
    own = ContainerSpec(image="own", cpus=1.0)
    assert given("b-1", own) == dataclasses.replace(own, digest="of-own", memory_mb=10)
    with pytest.raises(ValueError, match="cwd"):
        plan.of(Sample("a", ("x",), cwd="/"))
    assert plan.of(Sample("a", ("x",), sandbox=FULL_ACCESS)).sandbox == FULL_ACCESS
    assert ContainerPlan(None).of(Sample("a", ("x",))).workspace is None
