"""Batches whose samples run in containers: the example, kills in between, limits, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import containers, podman
from programs import codex_pool, running, started

from codex_app_server.config import find_codex
from codex_batch.container import ContainerError, ContainerSpec
from codex_batch.container.running import Containers
from codex_batch.store import open_run
from codex_pool.sandbox_modes import READ_ONLY, WORKSPACE_WRITE

EXAMPLE = Path(__file__).parents[2] / "examples" / "eval"
LIMIT_S = 120.0


def dataset(path: Path, *samples: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return str(path)


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def call(command: str) -> str:
    """A prompt that has the agent run a command, and answer with what it printed."""
    return f'[[tool_call "{command}"]] [[text "{{output}}"]]'


def wait_for(condition: Any, what: str, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {limit_s} s"
        time.sleep(0.05)


def has_done(out: Path, least: int, before: set[str]) -> bool:
    """Return True if so many samples are done, and others are in their containers."""
    path = out / "results.jsonl"
    return path.exists() and len(path.read_text().splitlines()) >= least and containers() > before


def test_the_example_ends_as_intended_though_the_runner_is_killed_twice(tmp_path: Path, image: str) -> None:
    out, before = tmp_path / "out", containers()
    options = (
        "--demo-script",
        str(EXAMPLE / "_demo" / "agent.toml"),
        "--workers",
        "2",
        "--retries",
        "1",
        "-o",
        str(out),
    )
    batch = ("batch", str(EXAMPLE), *options, "--container", "podman", "--image", image)
    for least in (1, 4):
        with running(*batch) as program:
            wait_for(partial(has_done, out, least, before), f"{least} samples done")
            program.end(signal.SIGKILL)
    done = codex_pool(*batch, limit_s=LIMIT_S)
    assert done.returncode == 1, done.stderr
    assert containers() == before
    checked = subprocess.run(
        [sys.executable, str(EXAMPLE / "_demo" / "check.py"), str(out / "results.jsonl")],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    with open_run(out) as store:
        assert len(store.info()["launches"]) == 3
    digest = podman("image", "inspect", "--format", "{{.Id}}", image)
    found = records(out)
    assert len(found) == 10
    for name, record in found.items():
        # Tried until its last error, which the model makes.
        assert record["container"] == {
            "engine": "podman",
            "image": image,
            "digest": digest,
            # As dataset.toml asks.
            "sandbox": "codex",
        }, name
    shown = codex_pool("runs", "show", str(out), "word-count")
    assert "podman" in shown.stdout and digest[:12] in shown.stdout


def test_another_image_is_another_question(tmp_path: Path, image: str) -> None:
    data = dataset(tmp_path / "data.jsonl", {"id": "a", "prompt": "[[text done]]"})
    batch = ("batch", data, "--demo", "--workers", "1", "-o", str(tmp_path / "out"), "--container", "podman")
    assert codex_pool(*batch, "--image", image, limit_s=LIMIT_S).returncode == 0
    podman("tag", image, "localhost/same:1")
    try:
        # One by another name is the same.
        again = codex_pool(*batch, "--image", "localhost/same:1", limit_s=LIMIT_S)
        assert again.returncode == 0, again.stderr
    finally:
        podman("untag", image, "localhost/same:1")
    refused = codex_pool(*batch, "--image", image, "--container-memory", "300", limit_s=LIMIT_S)
    assert refused.returncode == 2 and "--changed rerun" in refused.stderr, refused.stderr


def test_setup_agent_and_scorers_are_inside_as_the_user_and_the_diff_is_of_the_workspace(
    tmp_path: Path, image: str
) -> None:
    (tmp_path / "hidden.sh").write_text(
        "echo $(id -u) $(cat /inside) $(cat made) $PWD; test -d /proc/1 && ! command -v git\n"
    )
    scorer = {
        "type": "command",
        "command": "sh hidden.sh; python3 -c 'import json, sys; print(json.load(sys.stdin)[\"workspace\"])'",
        "files": {"hidden.sh": "hidden.sh"},
        "name": "inside",
    }
    sample = {
        "id": "a",
        "prompt": call("id -u; cat given; cat setup; echo of the agent > made; echo x > /tmp/inside; ls hidden.sh"),
        "workspace": {"files": {"given": "for the agent\n"}, "setup": "pwd > setup; id -u >> setup"},
        "container": {"image": image, "user": "1000", "workdir": "/srv/task", "environment": {"A": "b"}},
        "scorers": [scorer],
    }
    data, out = dataset(tmp_path / "data.jsonl", sample), tmp_path / "out"
    done = codex_pool(
        "batch", data, "--demo", "--workers", "1", "-o", str(out), "--container", "podman", limit_s=LIMIT_S
    )
    (record,) = records(out).values()
    said = record["final_response"]
    assert record["status"] == "completed", (record, done.stderr)
    assert "1000\nfor the agent\n/srv/task\n1000\n" in said and "hidden.sh" in said and "cannot access" in said, said
    with open_run(out) as store:
        (row,) = store.samples()
        diff = store.artifact(row.n, "diff.patch").decode()
        log = store.artifact(row.n, "inside.log").decode()
    assert "+of the agent" in diff and "+++ b/made" in diff and "given" not in diff and "setup" not in diff, diff
    assert "of the agent /srv/task" in log and "\n/srv/task\n" in log, log
    # The container is gone: a new one has what was in the workspace, and belongs to the same user.
    again = "command:id -u; cat made given; ls /tmp/inside; echo x >> made && test $PWD = /srv/task"
    rescored = codex_pool("score", str(out), "--scorer", again, limit_s=LIMIT_S)
    assert rescored.returncode == 0 and "outside of their workspaces" in rescored.stderr, rescored.stderr
    (record,) = records(out).values()
    with open_run(out) as store:
        said = store.artifact(row.n, "command.log").decode()
    assert record["scores"]["command"]["passed"], (record["scores"], said)
    assert said.startswith("1000\nof the agent\nfor the agent\n") and "cannot access '/tmp/inside'" in said, said


def test_a_workspace_that_was_kept_is_scored_again_in_the_same_image_or_not_at_all(tmp_path: Path, image: str) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text(f"FROM {image}\nENV OF_IMAGE=first\n")
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    dataset(data, {"id": "a", "prompt": call("echo of the agent > made"), "container": {"build": "context"}})
    options = ("--demo", "--workers", "1", "-o", str(out), "--container", "podman", "--keep")
    before = containers()
    done = codex_pool("batch", str(data), *options, limit_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    # Of no concern: the sample ran in the image that was built before.
    (tmp_path / "context" / "Dockerfile").write_text(f"FROM {image}\nENV OF_IMAGE=second\n")
    scorer = 'command:test "$OF_IMAGE $(cat made)" = "first of the agent"'
    scored = codex_pool("score", str(out), "--scorer", scorer, limit_s=LIMIT_S)
    assert scored.returncode == 0 and containers() == before, scored.stderr
    (record,) = records(out).values()
    assert record["scores"]["command"]["passed"], record["scores"]
    podman("rmi", "--force", record["container"]["digest"])
    refused = codex_pool("score", str(out), "--scorer", scorer, limit_s=LIMIT_S)
    (record,) = records(out).values()
    problem = record["scores"]["command"]["error"]
    assert refused.returncode == 1 and "does not have the image" in problem and "run the sample again" in problem


def test_a_sandbox_that_a_sample_asks_for_is_that_of_codex_inside(tmp_path: Path, image: str) -> None:
    look = call("touch made && echo made; touch /root/x || echo kept; cat /etc/hostname > /dev/null && echo read")
    data = dataset(
        tmp_path / "data.jsonl",
        {"id": "write", "prompt": look, "sandbox": "workspace-write"},
        {"id": "read", "prompt": look, "sandbox": "read-only", "container": {"user": "1000"}},
        {"id": "free", "prompt": look},
    )
    out = tmp_path / "out"
    options = ("--demo", "--workers", "1", "-o", str(out), "--container", "podman", "--image", image)
    done = codex_pool("batch", data, *options, limit_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    found = records(out)
    lines = {name: record["final_response"].splitlines() for name, record in found.items()}
    assert {name: record["container"]["sandbox"] for name, record in found.items()} == {
        "write": "codex",
        "read": "codex",
        "free": "container",
    }
    assert {name: [line in said for line in ("made", "kept", "read")] for name, said in lines.items()} == {
        "write": [True, True, True],
        "read": [False, True, True],
        "free": [True, False, True],
    }, lines


def test_a_sandbox_that_cannot_run_inside_is_the_container_or_refused(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Containers, "_bwrap", lambda self: None)
    made = Containers("podman", tmp_path / "run", tmp_path / "work", Path(find_codex()).resolve())

    async def start(sandbox: str) -> str:
        (tmp_path / sandbox).mkdir()
        container = await made.start(ContainerSpec(image=image), tmp_path / sandbox, sandbox)
        await container.remove()
        return str(container.record()["sandbox"])

    async def both() -> None:
        assert await start(WORKSPACE_WRITE) == "container"
        with pytest.raises(ContainerError, match=r"the sandbox read-only cannot run in the container: .*bubblewrap"):
            await start(READ_ONLY)

    asyncio.run(both())


def test_what_the_memory_limit_ends_is_the_agents_own_and_in_the_record(tmp_path: Path, image: str) -> None:
    sample = {
        "id": "a",
        "prompt": call("python3 -c 'x = bytearray(400 * 2**20)'; echo ended $?"),
        "scorers": ["includes:ended 137"],
    }
    data, out = dataset(tmp_path / "data.jsonl", sample), tmp_path / "out"
    limits = ("--image", image, "--container-memory", "200", "--container-processes", "64", "--container-cpus", "1.5")
    batch = ("batch", data, "--demo", "--workers", "1", "-o", str(out), "--container", "podman")
    done = codex_pool(*batch, *limits, limit_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    (record,) = records(out).values()
    assert record["scores"]["includes"]["value"] == 1.0, record
    assert record["container"]["memory_kills"] >= 1


def test_a_container_that_dies_is_a_lost_attempt_and_the_next_gets_a_fresh_one(tmp_path: Path, image: str) -> None:
    samples = [
        {"id": "dies", "prompt": call("touch /begun; sleep 30; echo no"), "scorers": ["command:true"]},
        {"id": "lives", "prompt": call("echo yes"), "scorers": ["command:true"]},
    ]
    data, out = dataset(tmp_path / "data.jsonl", *samples), tmp_path / "out"
    batch = ("batch", data, "--demo", "--workers", "1", "-o", str(out), "--container", "podman", "--image", image)
    before = containers()

    def sleeping() -> list[str]:
        return [
            name
            for name in containers() - before
            if subprocess.run(["podman", "exec", name, "test", "-e", "/begun"], capture_output=True).returncode == 0
        ]

    with running(*batch) as program:
        wait_for(sleeping, "the command runs")
        podman("kill", *sleeping())
        assert program.wait(LIMIT_S) == 1, program.lines
    found = records(out)
    assert (found["dies"]["status"], found["dies"]["error"]["kind"]) == ("lost", "environmentLost"), found["dies"]
    assert "exit code 137" in found["dies"]["error"]["message"] and found["dies"]["scores"] == {}
    assert found["lives"]["valid"]


def test_what_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def refused(samples: list[dict[str, Any]], *options: str) -> str:
        data = dataset(tmp_path / "data.jsonl", *({"prompt": "x", **sample} for sample in samples))
        done = codex_pool("batch", data, "--demo", "-o", str(out), *options)
        assert done.returncode == 2 and not out.exists(), done.stderr
        return done.stderr

    wrong = [
        {"id": "none"},
        {"id": "far", "container": {"image": "localhost/none:1"}},
        {"id": "there", "cwd": str(tmp_path)},
        {"id": "text", "container": {"image": image, "memory_mb": "1"}},
    ]
    said = refused(wrong, "--container", "podman")
    for words in ("--image-map", "podman pull localhost/none:1", "cwd", "container.memory_mb"):
        assert words in said, said
    assert "--container podman or" in refused([{"id": "a", "container": {"image": image}}])
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        assert "podman cannot be started" in refused([{"id": "a"}], "--container", "podman", "--image", image)


def test_an_image_is_built_once_of_its_directory_and_its_files_are_in_the_workspace(tmp_path: Path, image: str) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(
        f"FROM {image}\nRUN mkdir /app && echo of the image > /app/given\nWORKDIR /app\n"
    )
    samples = [
        {"id": name, "prompt": call(f"pwd; cat given; echo {name} > given"), "container": {"build": "context"}}
        for name in ("a", "b")
    ]
    data, out = dataset(tmp_path / "data.jsonl", *samples), tmp_path / "out"
    batch = ("batch", data, "--demo", "--workers", "1", "-o", str(out), "--container", "podman")
    done = codex_pool(*batch, limit_s=LIMIT_S)
    try:
        assert done.returncode == 0, done.stderr
        for name, record in records(out).items():
            assert "/app\nof the image" in record["final_response"], record
            with open_run(out) as store:
                row = next(row for row in store.samples() if row.id == name)
                diff = store.artifact(row.n, "diff.patch").decode()
            assert f"-of the image\n+{name}" in diff, diff
        (built,) = {record["container"]["digest"] for record in records(out).values()}
    finally:
        for each in podman("images", "--format", "{{.Repository}}:{{.Tag}}", "localhost/codex-pool-build").split():
            podman("rmi", "--force", each)
    assert built != podman("image", "inspect", "--format", "{{.Id}}", image)


def test_a_container_costs_a_sample_no_more_than_a_second(tmp_path: Path, image: str) -> None:
    count = 9
    samples = [{"id": str(n), "prompt": "[[text done]]", "workspace": {"files": {"x": ""}}} for n in range(count)]
    data = dataset(tmp_path / "data.jsonl", *samples)
    one_by_one = ("--demo", "--workers", "1", "--turns-per-worker", "1", "--json")

    def took(name: str, *options: str) -> float:
        """The median time from one record to the next."""
        command = [
            sys.executable,
            "-m",
            "codex_pool_cli",
            "batch",
            data,
            *one_by_one,
            "-o",
            str(tmp_path / name),
            *options,
        ]
        with started(command) as program:
            assert program.wait(LIMIT_S) == 0, program.lines
        ends = sorted(record["ended_at"] for record in records(tmp_path / name).values())
        return sorted(later - earlier for earlier, later in itertools.pairwise(ends))[count // 2]

    without = took("without")
    inside = took("inside", "--container", "podman", "--image", image)
    print(f"a sample: {without:.2f} s, in a container {inside:.2f} s; load {os.getloadavg()[0]:.1f}")
    # This machine may be busy: on a quiet one it is below 1 s.
    assert inside - without < 1.0 * max(1.0, os.getloadavg()[0] / 2)
