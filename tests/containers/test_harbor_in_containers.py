"""The ten tasks of examples/harbor, in containers: their solutions, a scripted agent, and a runner that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import containers, podman
from programs import codex_pool, running

from codex_batch.store import open_run

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "examples" / "harbor"
MODELS = ROOT / "out" / "harbor" / "bin" / "python"
BASE = "localhost/codex-pool-harbor:bookworm"
LIMIT_S = 150.0


@pytest.fixture(scope="module")
def tagged() -> Iterator[None]:
    """The image by the name that the tasks have for it; what is built of it is removed at the end."""
    podman("tag", os.environ["CONTAINERS_TEST_IMAGE"], BASE)
    yield
    built = podman("images", "--format", "{{.Repository}}:{{.Tag}}", "localhost/codex-pool-build").split()
    podman("rmi", "--force", *built, BASE)


@pytest.fixture
def base(image: str, tagged: None) -> str:
    """The image that the tasks are made from; no container of the test may be left."""
    return BASE


def batch(out: Path, *options: str, tasks: Path = TASKS) -> tuple[str, ...]:
    script = str(TASKS / "_demo" / "agent.toml")
    common = ("--format", "harbor", "--container", "podman", "--demo-script", script, "--workers", "2", "-o", str(out))
    return ("batch", str(tasks), *common, *options)


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def ends(out: Path) -> dict[str, Any]:
    """How the tasks ended, in the form of expected.json."""
    return {
        name: {
            "status": record["status"],
            "scores": {scorer: score["value"] for scorer, score in record["scores"].items()},
        }
        for name, record in records(out).items()
    }


def has_done(out: Path, least: int, before: set[str]) -> bool:
    path = out / "results.jsonl"
    return path.exists() and len(path.read_text().splitlines()) >= least and containers() > before


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT_S} s"
        time.sleep(0.05)


def as_harbor_reads(out: Path, job: Path) -> dict[str, Any]:
    """A run as Harbor's own models have it."""
    done = codex_pool("runs", "export", str(out), "--format", "harbor", "-o", str(job))
    assert done.returncode == 0, done.stderr
    command = [str(MODELS), "-B", str(ROOT / "tests" / "harness" / "check_harbor.py"), str(job)]
    read = subprocess.run(command, capture_output=True, text=True, timeout=60.0)
    assert read.returncode == 0, read.stderr
    trials: dict[str, Any] = json.loads(read.stdout)["trials"]
    return trials


def test_each_solution_has_a_reward_of_1_and_no_turn_is_run(tmp_path: Path, base: str) -> None:
    out, before = tmp_path / "out", containers()
    done = codex_pool(*batch(out, "--oracle"), limit_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    found = records(out)
    assert len(found) == 10 and containers() == before
    for name, record in found.items():
        assert record["status"] == "completed" and record["turns"] == 0 and record["thread_id"] is None, name
        assert {score["value"] for score in record["scores"].values()} == {1.0}, record
    with open_run(out) as store:
        rows = {row.id: row for row in store.samples()}
        report = store.artifact(rows["keep-report"].n, "artifacts/report/report.txt")
        release = store.artifact(rows["steps-final"].n, "steps/release/artifacts/app/release.txt")
    assert (report, release) == (b"all is well\n", b"1.2.3\n")
    trials = as_harbor_reads(out, tmp_path / "job")
    assert all(trial["valid"] and trial["rewards"]["reward"] == 1.0 for trial in trials.values())


@pytest.mark.timeout(300)
def test_the_agent_ends_as_intended_though_the_runner_is_killed_twice(tmp_path: Path, base: str) -> None:
    out, before = tmp_path / "out", containers()
    for least in (1, 4):
        with running(*batch(out)) as program:
            wait_for(partial(has_done, out, least, before), f"{least} tasks done")
            program.end(signal.SIGKILL)
    done = codex_pool(*batch(out), limit_s=LIMIT_S)
    # 1 if the one that is not scored was among its last.
    assert done.returncode in (0, 1), done.stderr
    assert containers() == before
    expected = json.loads((TASKS / "_demo" / "expected.json").read_text())
    assert ends(out) == expected
    with open_run(out) as store:
        assert len(store.info()["launches"]) == 3
    trials = as_harbor_reads(out, tmp_path / "job")
    assert trials["keep-report"]["exceptions"] == ["RewardFileNotFoundError"] and not trials["keep-report"]["valid"]
    assert {name: trial["rewards"] for name, trial in trials.items() if name != "keep-report"} == {
        name: end["scores"] for name, end in expected.items() if name != "keep-report"
    }
    assert trials["steps-mean"]["steps"] == [["write", {"reward": 1.0}], ["extend", {"reward": 0.0}]]
    # The second step is not run: the first had less than its min_reward.
    assert trials["steps-final"]["steps"] == [["build", {"reward": 0.0}]]


def made(folder: Path, toml: str, test: str, solve: str) -> None:
    """Make a task without files in its image."""
    for name, text in {
        "task.toml": toml,
        "instruction.md": "Do it.",
        "environment/Dockerfile": f"FROM {BASE}\nWORKDIR /app\n",
        "tests/test.sh": f"#!/bin/bash\n{test}\n",
        "solution/solve.sh": f"#!/bin/bash\n{solve}\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_what_is_no_reward_of_the_verifier_is_no_score(tmp_path: Path, base: str) -> None:
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    offline = '[environment]\nnetwork_mode = "no-network"\n'
    # What stands there before the tests are run is not theirs.
    left = "echo 1 > /logs/verifier/reward.txt; echo '{\"reward\": 1}' > /logs/verifier/reward.json; exit 3"
    made(tasks / "stale", offline, "[ ! -e /logs/verifier/reward.json ] || echo 1 > /logs/verifier/reward.txt", left)
    made(tasks / "not-finite", offline, "echo nan > /logs/verifier/reward.txt", "true")
    late = f"{offline}[verifier]\ntimeout_sec = 1\n"
    made(tasks / "late", late, "echo 1 > /logs/verifier/reward.txt; sleep 60", "true")
    ill = f'{offline}[environment.healthcheck]\ncommand = "echo not yet; false"\ninterval_sec = 0.1\nretries = 2\n'
    made(tasks / "ill", ill, "echo 1 > /logs/verifier/reward.txt", "true")
    # Nothing in the container is to be believed, its shell neither.
    liar = "printf '#!/bin/bash\\necho a b\\n' > /tmp/sh; chmod +x /tmp/sh; mv /tmp/sh /bin/sh"
    made(tasks / "liar", offline, "echo 1 > /logs/verifier/reward.txt", liar)
    name = """printf '%s' '{"\\ud800": 1}' > /logs/verifier/reward.json"""
    made(tasks / "no-name", offline, name, "true")
    # A solution that fails has been run all the same.
    made(tasks / "fails", offline, "echo 1 > /logs/verifier/reward.txt", "exit 1")
    done = codex_pool(*batch(out, "--oracle", tasks=tasks), limit_s=LIMIT_S)
    assert done.returncode == 1, done.stderr
    found = records(out)
    reasons = {name: found[name]["scores"]["reward"]["error"] for name in ("stale", "not-finite", "late")}
    assert "left neither" in reasons["stale"] and "is nan; expected a finite number" in reasons["not-finite"], reasons
    assert reasons["late"] == "test.sh ran longer than verifier.timeout_sec of 1 s"
    assert found["ill"]["status"] == "failed" and found["ill"]["scores"] == {}, found["ill"]
    assert "the healthcheck 'echo not yet; false' ended with 1: not yet" in found["ill"]["error"]["message"]
    assert found["fails"]["scores"]["reward"]["value"] == 1.0
    assert found["liar"]["status"] == "failed" and found["liar"]["scores"] == {}, found["liar"]
    assert "the shell in the container does not tell" in found["liar"]["error"]["message"]
    assert "cannot be printed" in found["no-name"]["scores"]["reward"]["error"]


def test_a_task_as_others_write_it_is_run(tmp_path: Path, base: str) -> None:
    task, out = tmp_path / "A task, Ünïcöde", tmp_path / "out"
    made(task, 'version = "1.0"\n[environment]\nallow_internet = false\n', "", "")
    (task / "environment" / "Dockerfile").write_text(
        f"ARG BASE={BASE}\nFROM $BASE AS built\nARG WORDS=built\nRUN echo $WORDS > /words\n\nFROM ${{BASE}}\n"
        'COPY --from=built /words /srv/words\nENTRYPOINT ["/bin/false"]\nWORKDIR /srv\n'
    )
    # Neither has a line for its shell, or may be executed.
    (task / "solution" / "solve.sh").write_bytes(b"cp words answer\n")
    (task / "tests" / "test.sh").write_bytes(b"cat answer\nprintf '1.0\\r\\n' > /logs/verifier/reward.txt\n")
    (task / "tests" / "python").symlink_to("/usr/bin/python3")
    with (task / "tests" / "large").open("wb") as file:
        file.truncate(200 * 2**20)
    done = codex_pool(*batch(out, "--oracle", tasks=task), limit_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    (record,) = records(out).values()
    assert record["scores"]["reward"]["passed"], record
    with open_run(out) as store:
        (row,) = store.samples()
        assert store.artifact(row.n, "verifier/test-stdout.txt") == b"built\n"
