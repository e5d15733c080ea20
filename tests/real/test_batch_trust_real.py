"""Batches over workspaces with planted commands and texts, on the real binary: AGENTS.md alone reaches the agent."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool, running
from projects import Traces, plant, traces

from codex_app_server import AppServerConfig
from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.workspace import Project
from codex_pool import Pool
from codex_pool.runtime import processes

pytestmark = [pytest.mark.real, pytest.mark.security]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    with traces(monkeypatch) as found:
        yield found


@pytest.fixture
def data(tmp_path: Path, found: Traces) -> Path:
    """Samples in workspaces and in a directory of a repository, whose prompts name a skill and try a rule."""
    plant(tmp_path / "template", found, "template")
    repository = plant(tmp_path / "repository", found, "repository", git=True)
    (repository / "below").mkdir()
    command = found.command("rule")
    prompt = f"use $planted-agents-template $planted-codex-repository [[tool_call '{command}']] [[text done]]"
    samples: list[dict[str, Any]] = [
        {"id": "template", "prompt": prompt, "workspace": {"template": str(tmp_path / "template")}},
        {"id": "reading", "prompt": prompt, "workspace": {"template": str(tmp_path / "template")}}
        | {"sandbox": "read-only", "target": "done"},
        {"id": "cwd", "prompt": prompt, "cwd": str(repository / "below"), "sandbox": "workspace-write"},
        {"id": "none", "prompt": "[[text done]]", "workspace": {"files": {"x": "1"}}},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def ways(out: Path) -> dict[str, str | None]:
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {record["status"] for record in records} == {"completed"}, records
    return {record["id"]: record["agents_md"] for record in records}


WAY = dict.fromkeys(("template", "reading", "cwd"), "developer_instructions") | {"none": None}


def test_agents_md_alone_reaches_the_agent(
    tmp_path: Path, home: Path, data: Path, found: Traces, model: LoopbackModel
) -> None:
    with (home / "config.toml").open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write('developer_instructions = "PLANTED-by-the-user"\n' + text)
    for name, options in (("run", []), ("user", ["--home", "user"])):
        out = tmp_path / name
        done = codex_pool("batch", str(data), "--workers", "1", "-o", str(out), *options, home=home)
        assert done.returncode == 0, done.stderr
        assert ways(out) == WAY
        assert found.run == []
        assert found.texts == ["PLANTED-agents-repository", "PLANTED-agents-template", "PLANTED-by-the-user"]
        assert {request.model for request in model.requests} == {"mock-model"}
        assert "trust" not in (home / "config.toml").read_text()
    assert "trust" not in (tmp_path / "run" / "home" / "config.toml").read_text()


def test_a_home_that_trusts_the_directories_changes_nothing(
    tmp_path: Path, config: AppServerConfig, home: Path, data: Path, found: Traces
) -> None:
    out = tmp_path / "out"
    with (home / "config.toml").open("a") as file:
        for path in (tmp_path, tmp_path / "repository", tmp_path / "repository" / "below", out):
            file.write(f'\n[projects."{path}"]\ntrust_level = "trusted"\n')
    with Pool(1, config) as pool:
        done = codex_pool("batch", str(data), "--connect", pool.endpoint, "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert ways(out) == WAY
    assert found.run == [] and found.texts == ["PLANTED-agents-repository", "PLANTED-agents-template"]


def test_trusted_workspaces_count_as_codex_has_it(tmp_path: Path, home: Path, data: Path, found: Traces) -> None:
    out = tmp_path / "out"
    command = ("batch", str(data), "--workers", "1", "-o", str(out))
    done = codex_pool(*command, "--trust-workspaces", home=home)
    assert done.returncode == 0, done.stderr
    assert ways(out) == {name: way and "codex" for name, way in WAY.items()}
    assert {"template-mcp", "repository-mcp", "rule"} <= set(found.run)
    assert {"PLANTED-agents-template", "PLANTED-skill-agents-template", "planted-model-template"} <= set(found.texts)
    # The next start of the run trusts nothing of it.
    assert "trust" in (out / "home" / "config.toml").read_text()
    with data.open("a") as file:
        file.write(json.dumps({"id": "more", "prompt": "[[text done]]"}) + "\n")
    # What trusted workspaces have answered is of another configuration.
    done = codex_pool(*command, home=home)
    assert done.returncode == 2 and "trusting: true, now false" in done.stderr, done.stderr
    done = codex_pool(*command, "--changed", "rerun", home=home)
    assert done.returncode == 0, done.stderr
    assert "trust" not in (out / "home" / "config.toml").read_text()


def test_a_sample_whose_worker_dies_goes_on_without_the_project(
    tmp_path: Path, home: Path, found: Traces, model: LoopbackModel
) -> None:
    template = plant(tmp_path / "template", found, "template")
    prompts = ["[[text first]]", "[[hang]] [[text second]]"]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"id": "a", "prompts": prompts, "workspace": {"template": str(template)}}) + "\n")
    out = tmp_path / "out"
    options = ("--workers", "1", "--retries", "2", "-o", str(out))
    with running("batch", str(data), *options, home=home) as batch:
        model.wait_for(lambda request: request.answer == "hang")
        for process in processes.descendants(batch.process.pid):
            if b"codex_pool.worker" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                os.kill(process.pid, signal.SIGKILL)
        assert batch.process.wait(40) == 0, batch.lines
    assert ways(out) == {"a": "developer_instructions"}
    assert found.run == [] and found.texts == ["PLANTED-agents-template"]


# What is read, by itself.


def test_agents_md_is_that_of_codex(tmp_path: Path) -> None:
    root, cwd = tmp_path / "repository", tmp_path / "repository" / "a" / "b"
    cwd.mkdir(parents=True)
    assert Project(str(cwd), own=False).agents_md() is None
    (root / ".git").mkdir()
    (tmp_path / "AGENTS.md").write_text("outside")
    (root / "AGENTS.md").write_text("outermost")
    (cwd / "AGENTS.md").write_text("left out")
    (cwd / "AGENTS.override.md").write_text("instead")
    said = Project(str(cwd), own=False).agents_md()
    assert said == f"# AGENTS.md instructions for {cwd}\n\n<INSTRUCTIONS>\noutermost\n\ninstead\n</INSTRUCTIONS>"
    own = Project(str(cwd), own=True).agents_md()
    assert own is not None and "instead" in own and "outermost" not in own
    (root / "AGENTS.md").write_text("#" * 40_000)
    bounded = Project(str(cwd), own=False).agents_md()
    assert bounded is not None and "#" * 32 * 1024 + "\n</INS" in bounded and "instead" not in bounded


def test_agents_md_that_leads_elsewhere_is_not_read(tmp_path: Path) -> None:
    work, answers = tmp_path / "work", tmp_path / "answers.md"
    work.mkdir()
    answers.write_text("secret")
    (work / "AGENTS.md").symlink_to(answers)
    assert Project(str(work), own=True).agents_md() is None
    (work / "AGENTS.md").unlink()
    os.mkfifo(work / "AGENTS.md")
    assert Project(str(work), own=True).agents_md() is None
    (work / "AGENTS.md").unlink()
    (work / "notes.md").write_text("mine")
    (work / "AGENTS.md").symlink_to("notes.md")
    said = Project(str(work), own=True).agents_md()
    assert said is not None and "mine" in said


def test_a_link_and_what_it_leads_to_are_both_untrusted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    projects = Project(str(tmp_path / "link"), own=False).untrusted()["projects"]
    assert {str(tmp_path / "link"), str(tmp_path / "real"), str(tmp_path), "/"} <= set(projects)
