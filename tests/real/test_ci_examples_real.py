"""The workflows of examples/ci: valid, and their commands run as a runner runs them, on the loopback model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import LIMIT_S, environment

from codex_app_server.testing.loopback import LoopbackModel

CI = Path(__file__).parents[2] / "examples" / "ci"
# Commands that need an account, a network or root.
NOT_RUN = ("python -m pip install ", "sudo ", "printenv OPENAI_API_KEY | codex-pool login --api-key")


def read(name: str) -> Any:
    return yaml.safe_load((CI / name).read_text(encoding="utf-8"))


def commands(text: str) -> list[str]:
    """The lines of a script that a test can run."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(line.startswith(("codex-pool ", *NOT_RUN)) for line in lines), lines
    return [line for line in lines if not line.startswith(NOT_RUN)]


def steps(event: str) -> list[tuple[str, str]]:
    """Name and command of the steps that are run at an event."""
    found = []
    for step in read("github-actions.yml")["jobs"]["evaluate"]["steps"]:
        assert ("uses" in step) != ("run" in step) and set(step) <= {"name", "uses", "run", "if", "with", "env"}
        if f"'{event}'" in step.get("if", f"'{event}'"):
            found += [(step["name"], command) for command in commands(step.get("run", ""))]
    return found


def run(command: str, cwd: Path, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", command],
        cwd=cwd,
        env={**environment(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def dataset(path: Path, right: int) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [
        {"id": f"task-{n}", "prompt": f"{n} [[text {42 if n < right else 41}]]", "target": "42"} for n in range(10)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_workflows_are_what_their_systems_read() -> None:
    github, gitlab = read("github-actions.yml"), read("gitlab-ci.yml")
    # YAML 1.1 has `on` for true.
    assert set(github) == {"name", True, "permissions", "jobs"} and github["permissions"] == {"contents": "read"}
    assert set(github[True]) == {"push", "pull_request"} and len(steps("push")) == 1
    assert gitlab["evaluate"]["artifacts"]["reports"] == {"junit": "junit.xml"}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_commands_stop_a_pull_request_that_is_worse(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    summary = tmp_path / "summary.md"
    on_github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    tasks = tmp_path / "evals" / "tasks.jsonl"
    dataset(tasks, right=10)
    (_, evaluate), (_, compare) = steps("pull_request")
    without_baseline = run(evaluate, tmp_path, home, **on_github)
    assert without_baseline.returncode == 2 and "runs/main: no such directory" in without_baseline.stderr
    for _, command in steps("push"):
        done = run(command, tmp_path, home, **on_github)
        assert done.returncode == 0, done.stderr
    dataset(tasks, right=4)
    done = run(evaluate, tmp_path, home, **on_github)
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("\n::error title=gate failed") == 2 and done.stderr.count("\n::warning title=sample ") == 6
    assert summary.read_text().count("### codex-pool") == 2 and summary.read_text().count("**failed**") == 2
    done = run(compare, tmp_path, home, **on_github)
    assert done.returncode == 0 and (tmp_path / "report" / "index.html").exists(), done.stderr
    # The results of the pull request are there by now: GitLab's command finds nothing to run, and decides the same.
    job = read("gitlab-ci.yml")["evaluate"]
    (evaluate,), (compare,) = ([c for line in job[part] for c in commands(line)] for part in ("script", "after_script"))
    assert run(evaluate, tmp_path, home).returncode == 4 and run(compare, tmp_path, home).returncode == 0
