"""A run whose database another program has locked: it waits, says so, and loses nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import LIMIT_S, running

from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.rules.breaker import Breaker
from codex_batch.store import Entry, RecordRow, RunDirectory, RunDirectoryError, locked, open_run, writer

END = {"status": "completed"}


@contextlib.contextmanager
def lock(path: Path, *, exclusive: bool = False) -> Iterator[None]:
    """The lock of a program that writes to the database; `exclusive`: also nobody can read."""
    with contextlib.closing(sqlite3.connect(path / "run.sqlite", isolation_level=None, timeout=LIMIT_S)) as other:
        if exclusive:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[RunDirectory]:
    with contextlib.closing(RunDirectory(path)) as directory:
        directory.launch({"command": []})
        directory.load([Entry(name, 1, "d", {"id": name, "prompts": ["p"]}) for name in "ab"], "d.jsonl")
        yield directory


def test_changes_wait_for_the_lock_of_another_program_and_are_each_made_once(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        with lock(tmp_path):
            starts = [directory.start_attempt(n, "k", None) for n in (1, 2)]
            with pytest.raises(TimeoutError):
                starts[0].result(locked.BUSY_S + 0.5)
            assert directory.locked_s() > 0
            # Who reads sees what is committed.
            assert directory.store.counts()["running"] == 0
        assert [start.result(LIMIT_S).attempt for start in starts] == [1, 1]
        assert directory.locked_s() == 0.0
        assert [len(directory.store.attempts(n)) for n in (1, 2)] == [1, 1]


def test_a_run_that_ends_does_not_wait_for_a_lock_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "HURRIED_S", 0.0)
    monkeypatch.setattr(locked, "SAY_AFTER_S", 0.0)
    with opened(tmp_path) as directory:
        done = directory.finish(directory.start_attempt(1, "k", None).result(LIMIT_S), RecordRow("completed", 1), END)
        done.result(LIMIT_S)
        with lock(tmp_path), caplog.at_level(logging.WARNING, "codex_batch"):
            changes = [directory.start_attempt(2, "k", None), directory.outcome("finished", {})]
            directory.hurry()
            for change in changes:
                with pytest.raises(sqlite3.OperationalError) as error:
                    change.result(LIMIT_S)
                assert locked.is_locked(error.value)
    with open_run(tmp_path) as store:
        assert store.counts()["completed"] == 1 and store.info()["state"] == "died"


def test_readers_wait_for_an_exclusive_lock_or_say_what_holds_them_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path):
        pass
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock(tmp_path, exclusive=True):
            holding.set()
            release.wait(LIMIT_S)

    other = threading.Thread(target=hold)
    other.start()
    try:
        assert holding.wait(LIMIT_S)
        with pytest.raises(RunDirectoryError, match=r"run\.sqlite is locked by another program; close what has it"):
            open_run(tmp_path, limit_s=0.0)
        # What has waited for so long that it said so goes on once there is no lock.
        timer = threading.Timer(locked.SAY_AFTER_S + 2 * locked.BUSY_S, release.set)
        timer.start()
        with caplog.at_level(logging.WARNING, "codex_batch"), open_run(tmp_path) as store:
            assert store.counts()["total"] == 2
        timer.join()
    finally:
        release.set()
        other.join()
    assert [record.getMessage() for record in caplog.records if "waiting for it" in record.getMessage()]


def test_a_locked_database_is_no_other_problem() -> None:
    breaker = Breaker()
    breaker.database_locked("r/run.sqlite", 0.0)
    assert breaker.pause is not None and not breaker.may_start(1.0)
    assert breaker.pause.message.startswith("paused: another program has locked the run's database (r/run.sqlite); ")
    breaker.disk_mended()
    assert breaker.pause is not None
    breaker.database_free()
    assert breaker.pause is None and breaker.may_start(1.0)
    breaker.disk_full("x", 2.0, "r")
    breaker.database_free()
    assert breaker.pause is not None


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_pauses_while_its_database_is_locked_also_when_it_is_stopped_then(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    samples = [{"id": f"s{n}", "prompt": f"{n} [[text deltas=4 pace_ms=100]]"} for n in range(12)]
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    batch = ("batch", str(data), "--workers", "1", "--turns-per-worker", "2", "--home", str(home), "-o", str(out))
    with running(*batch, home=home) as run:
        model.wait_for(lambda request: True, LIMIT_S, count=3)
        with lock(out):
            run.wait_for_line("paused: another program has locked the run's database")
            # What had its answer is kept until it can be written; nothing more is started.
            asked = len(model.requests)
            run.process.send_signal(signal.SIGINT)
            run.wait_for_line("interrupted: what runs is being stopped")
        assert run.wait(LIMIT_S) == 130, run.lines
    assert len(model.requests) == asked
    with running(*batch, home=home) as run:
        model.wait_for(lambda request: True, LIMIT_S, count=asked + 2)
        with lock(out):
            run.wait_for_line("paused: another program has locked the run's database")
        assert run.wait(LIMIT_S) == 0, run.lines
    with open_run(out) as store:
        assert store.counts()["completed"] == 12
    # No turn was paid for twice.
    assert len({request.prompt for request in model.requests}) == len(model.requests) == 12
