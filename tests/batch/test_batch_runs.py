"""Operations on runs from outside: they are found, watched, told something, run again, removed."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from codex_batch.configuration.settings import _command
from codex_batch.display import snapshot_file
from codex_batch.manage import control, listing, runs
from codex_batch.rules.progress import Progress, kinds, rate_limit
from codex_batch.store import Entry, RecordRow, RunDirectory, RunDirectoryError, SampleRow


def make(path: Path, *statuses: str) -> None:
    """A run that is over, of samples that ended so."""
    with contextlib.closing(RunDirectory(path)) as directory:
        directory.launch({"dataset": {"name": "d.jsonl"}})
        directory.load([Entry(str(n), 1, "d", {"id": str(n), "prompts": ["p"]}) for n in range(len(statuses))], "d")
        for n, status in enumerate(statuses, 1):
            start = directory.start_attempt(n, "k", None).result(5)
            record = RecordRow(status, 1, ended_at=float(n))
            directory.finish(start, record, {"status": status}).result(5)
        directory.outcome("finished", {})


def test_runs_are_found_below_a_directory_and_one_that_cannot_be_read_is_listed_with_why(tmp_path: Path) -> None:
    make(tmp_path / "b" / "deep", "completed", "failed")
    make(tmp_path / "a", "completed")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.sqlite").write_bytes(b"no database " * 100)
    make(tmp_path / ".hidden", "completed")
    found = [listing.listed(path) for path in listing.find(tmp_path)]
    assert [run.path.name for run in found] == ["a", "deep", "c"]
    assert (found[1].state, found[1].dataset) == ("finished", "d.jsonl")
    assert found[1].counts is not None and found[1].counts["failed"] == 1
    assert found[2].problem is not None and "cannot be used" in found[2].problem


def test_samples_that_are_done_are_run_again_by_name_or_by_how_they_ended(tmp_path: Path) -> None:
    make(tmp_path, "completed", "failed", "lost", "limit")
    assert runs.retry(tmp_path, (), ("failed", "lost")) == 2
    assert runs.retry(tmp_path, ("0", "3#1"), ()) == 2
    with pytest.raises(KeyError, match="has no sample '9'"):
        runs.retry(tmp_path, ("9",), ())


def test_what_ended_last_is_told_the_last_one_last(tmp_path: Path) -> None:
    make(tmp_path, "completed", "failed", "completed")
    told: list[SampleRow] = []
    runs.tail(tmp_path, 2, True, told.append)
    assert [row.id for row in told] == ["1", "2"]


def test_a_run_is_removed_and_what_else_is_there_stays(tmp_path: Path) -> None:
    make(tmp_path / "r", "completed")
    (tmp_path / "r" / "mine.txt").write_text("keep")
    runs.remove(tmp_path / "r")
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["mine.txt"]
    with pytest.raises(RunDirectoryError):
        runs.remove(tmp_path / "r")


def test_nothing_is_cancelled_that_is_not_under_way(tmp_path: Path) -> None:
    make(tmp_path, "completed")
    with pytest.raises(RunDirectoryError, match="is not under way"):
        runs.cancel(tmp_path, None)
    with pytest.raises(RunDirectoryError, match="has ended"):
        runs.cancel(tmp_path, "0")


def test_a_request_is_taken_once_and_one_that_nobody_takes_is_taken_back(tmp_path: Path) -> None:
    assert not control.ask(tmp_path, {"cancel": "run"}, limit_s=0.1) and list(control.requests(tmp_path)) == []
    asked = threading.Thread(target=control.ask, args=(tmp_path, {"cancel": ["a", 1]}))
    asked.start()
    taken: list[dict[str, object]] = []
    while asked.is_alive():
        taken += control.requests(tmp_path)
        asked.join(0.01)
    assert taken == [{"cancel": ["a", 1]}]


def test_progress_is_read_as_it_was_published_by_another_clock(tmp_path: Path) -> None:
    progress = Progress(total=10, skipped=2, started_at=100.0, running=1, currency="USD", cost=1.5)
    progress.ended["completed"] = 3
    progress.under_way[("a", 1)] = 104.0
    snapshot_file.publish(tmp_path, progress, "the title", 110.0)
    found = snapshot_file.read(tmp_path, 1010.0)
    assert found is not None
    title, read = found
    assert title == "the title" and (read.done, read.cost, read.elapsed_s(1010.0)) == (5, 1.5, 10.0)
    assert read.slowest(3) == [(("a", 1), 1004.0)]
    (tmp_path / "progress.json").write_text("{")
    assert snapshot_file.read(tmp_path, 0.0) is None


def test_failures_are_told_by_kind_and_a_rate_limit_in_words() -> None:
    progress = Progress(total=10)
    progress.failures.update({"lost": 3, "other": 5, "x": 1, "y": 1})
    assert kinds(progress, 2) == [("other", 5), ("lost", 3), ("other kinds", 2)]
    assert rate_limit(progress) is None
    progress.rate_limiter = {"limit": 4, "pausedMs": 65_000, "reason": "usageLimitExceeded"}
    assert rate_limit(progress) == "rate limit, paused for 1 min 05 s: usageLimitExceeded"
    progress.rate_limiter = {"limit": 1, "pausedMs": 0, "reason": None}
    assert rate_limit(progress) == "rate limit, 1 turn at once"


def test_a_command_is_written_down_without_its_secrets() -> None:
    given = ["batch", "d.jsonl", "-c", "model=x", "-c", "api_key=s3cret", "--config=http_headers={a='s3cret'}"]
    assert _command(given) == ["batch", "d.jsonl", "-c", "model=x", "-c", "api_key=...", "--config=http_headers=..."]
