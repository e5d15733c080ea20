"""The same command again, and `runs retry`, as a user runs them on the real binary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool

from codex_app_server.testing.loopback import LoopbackModel
from codex_pool.batch.store import open_run

OPTIONS = ("--workers", "1", "--retry-on", "lost")

real = pytest.mark.real


def text(*samples: dict[str, Any]) -> str:
    return "".join(json.dumps(sample) + "\n" for sample in samples)


def statuses(out: Path) -> dict[str, list[str | None]]:
    """The status of each attempt, by sample."""
    with open_run(out) as store:
        return {row.id: [attempt.status for attempt in store.attempts(row.n)] for row in store.samples()}


@real
@pytest.mark.slow
def test_retry_runs_samples_of_the_run_where_it_is_wherever_they_came_from(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    fails = "[[http_error 400]] [[text ok]]"
    samples = [{"id": "a", "prompt": f"a {fails}"}, {"id": "b", "prompt": "b"}, {"id": "c", "prompt": f"c {fails}"}]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    batch = ("batch", *OPTIONS, "--home", str(home), "-o", "out")
    first = codex_pool(*batch, "--", "-", home=home, cwd=here, stdin=text(*samples))
    assert first.returncode == 1, first.stderr
    # The last command of the run asks for one sample only.
    narrow = codex_pool(*batch, "--sample-id", "b", "-", home=home, cwd=here, stdin=text(*samples))
    assert narrow.returncode == 0, narrow.stderr
    here.rename(there)
    shutil.copytree(there / "out", there / "copy", symlinks=True)
    one = codex_pool("runs", "retry", str(there / "copy"), "a", home=home, cwd=tmp_path)
    # Of the run c is not completed.
    assert one.returncode == 1 and "1 to be run again" in one.stderr, one.stderr
    assert statuses(there / "copy") == {"a": ["failed", "completed"], "b": ["completed"], "c": ["failed"]}
    assert statuses(there / "out") == {"a": ["failed"], "b": ["completed"], "c": ["failed"]}
    rest = codex_pool("runs", "retry", "copy", home=home, cwd=there)
    assert rest.returncode == 0 and "1 to be run again" in rest.stderr, rest.stderr
    assert statuses(there / "copy") == {"a": ["failed", "completed"], "b": ["completed"], "c": ["failed", "completed"]}
    with open_run(there / "copy") as store:
        assert store.counts()["completed"] == 3 and "--stored" not in store.info()["config"]["command"]
    assert not here.exists()


@real
@pytest.mark.slow
def test_retry_does_not_begin_what_was_not_begun(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    samples = [{"id": f"s{n}", "prompt": f"{n} [[http_error 400]] [[text ok]]"} for n in range(4)]
    (tmp_path / "d.jsonl").write_text(text(*samples))
    batch = ("batch", "d.jsonl", *OPTIONS, "--home", str(home), "-o", "out")
    estimated = codex_pool(*batch, "--estimate", "1", home=home, cwd=tmp_path)
    assert estimated.returncode == 1, estimated.stderr
    (tmp_path / "d.jsonl").unlink()
    done = codex_pool("runs", "retry", "out", home=home, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(statuses(tmp_path / "out").values()) == [[], [], [], ["failed", "completed"]]
