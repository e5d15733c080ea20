"""The run directory: one record a sample, whatever happens and wherever a death cuts the files."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codex_batch.store import (
    AttemptRow,
    Entry,
    EventLog,
    RecordRow,
    RunDirectory,
    RunDirectoryError,
    ScoreRow,
    Start,
    directory_name,
    edit_run,
    open_run,
    safe_name,
)
from codex_batch.store import schema as store_schema
from codex_batch.store import segments as event_segments
from codex_batch.store.segments import Segments, read_lines

A, B, C = (Entry(name, 1, f"digest-{name}", {"id": name, "metadata": {"ä": 10**30}}, ("t",)) for name in "abc")
ENTRIES = [A, B, C]
END = {"status": "completed", "usage": {"total_tokens": 3}, "thread_id": "t", "turn_id": "u", "safe_to_retry": False}
FAILED = {"status": "failed", "error": {"kind": "other", "message": "no"}}
SCORE = ScoreRow("exact", 1.0, True, "x", None, {"k": [1]}, None, 5, 0.0)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, where there is one: what is tried a hundred times need not wait for a disk each time."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as name:
        yield Path(name)


@contextlib.contextmanager
def opened(
    path: Path, entries: list[Entry] = ENTRIES, *, fresh: bool = False, **options: Any
) -> Iterator[RunDirectory]:
    """A run over `entries`."""
    directory = RunDirectory(path, fresh=fresh)
    try:
        directory.launch({"retries": 1})
        directory.load(entries, "d.jsonl", **options)
        yield directory
        directory.outcome("finished", {"exit_code": 0})
    finally:
        directory.close()


def number(directory: RunDirectory, entry: Entry) -> int:
    return directory.store.sample(entry.id, entry.epoch).n


def run_one(directory: RunDirectory, entry: Entry, end: dict[str, Any] = END, **options: Any) -> None:
    start = directory.start_attempt(number(directory, entry), "key", f"thread-{entry.id}").result(5)
    record = RecordRow(
        status=end["status"],
        attempts=start.attempt,
        error=end.get("error"),
        final_response='line\n"é" \u2028',
        usage=end.get("usage"),
    )
    directory.finish(start, record, end, **options).result(5)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "results.jsonl").read_bytes().splitlines() if line]


def ids(rows: Any) -> list[str]:
    return [row.id for row in rows]


def test_a_record_is_exported_as_documented_and_read_back(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A, to_score=True, events=b"")
        assert lines(tmp_path) == []
        directory.scored(number(directory, A), [SCORE], ["diff.patch"]).result(5)
        (record,) = lines(tmp_path)
    assert list(record) == [
        *("schema_version", "id", "epoch", "status", "valid", "limit", "final_response", "responses", "error"),
        "scores",
        *("usage", "cost", "thread_id", "turn_id", "worker", "attempts", "turns", "tool_calls", "queued_ms"),
        *("duration_ms", "started_at", "ended_at", "artifacts", "agents_md"),
        *("model", "effort", "provider", "codex_version", "rerouted_from", "fingerprint", "launch", "tags", "metadata"),
    ]
    assert record["metadata"] == {"ä": 10**30} and record["usage"] == {"total_tokens": 3} and record["attempts"] == 1
    assert record["scores"]["exact"]["passed"] is True and record["artifacts"] == ["diff.patch"]
    with open_run(tmp_path) as store:
        row = store.sample("a")
        assert row.record is not None and row.record.final_response == record["final_response"]
        (score,) = row.scores
        assert (score.value, score.passed, score.metadata) == (1.0, True, {"k": [1]})
        (attempt,) = store.attempts(row.n)
        assert (attempt.key, attempt.thread_id, attempt.turn_id, attempt.safe_to_retry) == ("key", "t", "u", False)


def test_the_order_is_that_of_the_ends_and_at_the_close_that_of_the_dataset(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        for entry in (C, A, B):
            run_one(directory, entry)
        assert [record["id"] for record in lines(tmp_path)] == ["c", "a", "b"]
    assert [record["id"] for record in lines(tmp_path)] == ["a", "b", "c"]
    with opened(tmp_path, [B, Entry("new", 1, "d", {}), C, A]) as directory:
        assert ids(directory.to_do(10)) == ["new"]
    assert [record["id"] for record in lines(tmp_path)] == ["b", "c", "a"]


def test_what_failed_is_run_again_and_what_reached_a_limit_is_not(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A, FAILED)
        run_one(directory, B, {"status": "limit"})
    with opened(tmp_path) as directory:
        assert ids(directory.to_do(10)) == ["a", "c"] and [record["id"] for record in lines(tmp_path)] == ["b"]
        run_one(directory, C)
    # What was set aside and not run again comes back.
    assert [(r["id"], r["status"]) for r in lines(tmp_path)] == [("a", "failed"), ("b", "limit"), ("c", "completed")]
    with opened(tmp_path) as directory:
        run_one(directory, A)
        assert [attempt.status for attempt in directory.store.attempts(number(directory, A))] == ["failed", "completed"]
    assert lines(tmp_path)[0]["attempts"] == 2


def unfinished(directory: RunDirectory, n: int) -> AttemptRow | None:
    """The attempt at a sample that was started and has no end yet."""
    return next((row for row in directory.store.attempts(n) if row.status is None), None)


def test_an_attempt_without_an_end_is_known_to_the_next_run(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        n = number(directory, A)
        directory.end_attempt(directory.start_attempt(n, "first", "t1").result(5), FAILED).result(5)
        directory.start_attempt(n, "second", "t2").result(5)
    with opened(tmp_path) as directory:
        left = unfinished(directory, n)
        assert left is not None and (left.attempt, left.key, left.thread_id) == (2, "second", "t2")
        directory.finish(Start(n, left.attempt), RecordRow("completed", 2), END, note="taken up").result(5)
    with opened(tmp_path) as directory:
        assert unfinished(directory, n) is None and ids(directory.to_do(5)) == ["b", "c"]


def test_hosts_are_counted_also_before_any_attempt_has_ended(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.start_attempt(1, "key-1", None, "a").result()
        started = run.start_attempt(2, "key-2", None, "b").result()
        run.end_attempt(started, END).result()
        words = {host.host: host.in_words.partition(",")[0] for host in run.store.hosts()}
        assert words == {"a": "0 completed", "b": "1 completed"}
        assert len(run.store.info()["hosts"]) == 2


def test_what_was_answered_and_not_scored_is_only_scored(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A, to_score=True)
    assert lines(tmp_path) == []
    with opened(tmp_path) as directory:
        assert [(row.id, row.state) for row in directory.to_do(1)] == [("a", "scoring")]
        directory.scored(number(directory, A), [SCORE]).result(5)
    assert [record["id"] for record in lines(tmp_path)] == ["a"]


def test_epochs_are_samples_of_their_own(tmp_path: Path) -> None:
    both = [A, Entry("a", 2, A.digest, {})]
    with opened(tmp_path, both) as directory:
        run_one(directory, both[1])
        assert [(row.id, row.epoch) for row in directory.to_do(5)] == [("a", 1)]
    assert [(record["id"], record["epoch"]) for record in lines(tmp_path)] == [("a", 2)]


def test_scores_are_replaced_without_a_run_and_samples_told_to_run_again(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
        n = number(directory, A)
    directory = edit_run(tmp_path)
    with contextlib.closing(directory):
        directory.replace_scores(n, [SCORE])
        assert open_run(tmp_path).sample("a").scores[0].scorer == "exact"
    assert lines(tmp_path)[0]["scores"]["exact"]["value"] == 1.0
    with contextlib.closing(edit_run(tmp_path)) as directory:
        assert directory.retry([n]) == 1
    with opened(tmp_path) as directory:
        assert ids(directory.to_do(5)) == ["a", "b", "c"]


def test_samples_are_counted_once_and_what_went_wrong_is_found(tmp_path: Path) -> None:
    entries = [Entry(str(i), 1, "d", {}) for i in range(20)]
    stopped = {"status": "interrupted", "error": {"kind": "interrupted", "message": "m"}}
    with opened(tmp_path, entries) as directory:
        for entry, end in zip(entries, [END, *[FAILED] * 4, stopped, {"status": "limit"}], strict=False):
            run_one(directory, entry, end)
        rows, count = directory.store.failures(3)
        assert (ids(rows), count) == (["1", "2", "3"], 4)
        counts = directory.store.counts()
        assert (counts["total"], counts["done"], counts["pending"], counts["not_run"]) == (20, 7, 13, 13)
        assert (counts["completed"], counts["failed"], counts["limit"], counts["interrupted"]) == (1, 4, 1, 1)
    with opened(tmp_path, entries) as directory:
        # What is to be run again is what it was until then.
        assert (directory.store.counts()["failed"], directory.store.counts()["done"]) == (4, 2)


def test_pages_reach_all_once_in_order_and_a_reader_sees_what_a_writer_adds(tmp_path: Path) -> None:
    entries = [Entry(str(i), 1, "d", {}) for i in range(450)]
    with opened(tmp_path, entries) as directory, open_run(tmp_path) as store:
        assert ids(store.samples()) == [entry.id for entry in entries]
        run_one(directory, entries[7])
        assert ids(store.samples(status="completed")) == ["7"] and store.counts()["pending"] == 449
        assert store.counts()["completed"] == 1 and store.info()["pid"] == os.getpid()
    with open_run(tmp_path) as store:
        info = store.info()
        assert (info["pid"], info["state"], info["config"]) == (None, "finished", {"retries": 1})
        assert len(list(store.all_attempts())) == 1


# Events.


def test_events_come_back_as_they_were_and_each_file_is_gzip(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        for entry in (A, B):
            log = EventLog()
            for i in range(3):
                log.add(json.dumps({"method": "m", "params": {"id": entry.id, "i": i}}).encode())
            run_one(directory, entry, events=log.member())
    with open_run(tmp_path) as store:
        for name in "ab":
            found = [event["params"] for event in store.events(store.sample(name).n, 1)]
            assert found == [{"id": name, "i": i} for i in range(3)]
        assert list(store.events(store.sample("c").n, 1)) == []
    done = subprocess.run(["gzip", "-dc", str(tmp_path / "events" / "000001.gz")], capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 6


@given(st.lists(st.binary(max_size=300).map(lambda b: b.replace(b"\n", b" ")), max_size=20), st.integers(0, 400))
def test_an_event_log_is_its_lines_however_it_was_cut(pieces: list[bytes], waiting: int) -> None:
    log = EventLog()
    for piece in pieces:
        log.add(piece)
        if len(piece) > waiting:
            log.compress()
    member = log.member()
    assert (member is None) == (not pieces)
    path = Path(os.environ["XDG_RUNTIME_DIR"]) / "member"
    path.write_bytes(b"xx" + (member or b"") + b"yy")
    assert list(read_lines(path, 2, len(member or b""))) == pieces
    path.unlink()


def test_an_event_too_long_to_be_read_is_left_out_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog()
    # A few kilobytes that come to more than anybody has memory for, in small.
    for line in (b"first", b"x" * 5_000_000, b"last"):
        if log.add(line):
            log.compress()
    member = log.member() or b""
    path = tmp_path / "member"
    path.write_bytes(member)
    assert len(member) < 50_000 and [len(line) for line in read_lines(path, 0, len(member))] == [5, 5_000_000, 4]
    monkeypatch.setattr(event_segments, "MAX_LINE_BYTES", 1_000_000)
    assert list(read_lines(path, 0, len(member))) == [b"first", event_segments.LEFT_OUT, b"last"]
    assert json.loads(event_segments.LEFT_OUT)["method"] == "error"


def test_a_long_event_log_is_kept_compressed() -> None:
    log = EventLog()
    for _ in range(2000):
        log.add(b'{"method":"item/completed","params":{"text":"' + b"a" * 1000 + b'"}}')
    assert len(log.member() or b"") < 50_000


def test_segments_end_at_their_size_and_what_no_row_knows_is_overwritten(tmp_path: Path) -> None:
    segments = Segments(tmp_path, (1, 0), limit_bytes=10)
    places = [segments.append(b"abcdef"), segments.append(b"ghijkl"), segments.append(b"mno")]
    segments.close()
    assert places == [(1, 0, 6), (2, 0, 6), (2, 6, 3)]
    segments = Segments(tmp_path, (2, 6), limit_bytes=10)
    assert segments.append(b"pq") == (2, 6, 2)
    segments.close()
    assert (tmp_path / "000002.gz").read_bytes() == b"ghijklpq"


# Deaths.

_SCENARIO = """
import os, sys, pathlib, contextlib, signal
sys.path.insert(0, sys.argv[2])
import test_batch_store as t
from codex_batch.store import directory as d, writer, export, schema

class Deaths:
    # At every statement, and at every change of a file that is not SQLite's own: before it, and in the midst.
    def __init__(self, at): self.left = at
    def step(self, half=None):
        self.left -= 1
        if self.left == 0: os._exit(9)
        if half is not None:
            self.left -= 1
            if self.left == 0: half(); os._exit(9)

def child(path, at):
    deaths = Deaths(at)
    write, pwrite, replace, fsync = os.write, os.pwrite, os.replace, os.fsync
    def w(f, data):
        deaths.step(lambda: write(f, bytes(data)[:len(data) // 2])); return write(f, data)
    def p(f, data, o):
        deaths.step(lambda: pwrite(f, bytes(data)[:len(data) // 2], o)); return pwrite(f, data, o)
    def r(a, b): deaths.step(); replace(a, b)
    os.write, os.pwrite, os.replace, os.fsync = w, p, r, lambda f: deaths.step()
    real = d.open_for_writing
    def opening(*arguments):
        connection = real(*arguments)
        connection.set_trace_callback(lambda statement: deaths.step())
        return connection
    d.open_for_writing = opening
    t.scenario(pathlib.Path(path))
    os._exit(0)

root = pathlib.Path(sys.argv[1])
for at in range(1, 2000):
    path = root / str(at)
    pid = os.fork()
    if pid == 0: child(path, at)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0: sys.exit(0)
    assert status == 9, status
"""


def scenario(path: Path) -> None:
    """Two runs; beside the directory stands what was told to somebody: what must never be taken back."""
    log = EventLog()
    log.add(b'{"method":"m","params":null}')
    member = log.member()
    with open(path.with_suffix(".said"), "a") as said:
        with opened(path, [A, B]) as directory:
            n = number(directory, A)
            directory.end_attempt(directory.start_attempt(n, "a1", "ta1").result(5), FAILED).result(5)
            said.write("end a 1\n"), said.flush()
            run_one(directory, B, FAILED)
            run_one(directory, A, to_score=True, events=member)
            said.write("answered a\n"), said.flush()
            directory.scored(n, [SCORE]).result(5)
            said.write("done a\n"), said.flush()
        with opened(path, [A, B]) as directory:
            run_one(directory, B, events=member)
            said.write("done b\n"), said.flush()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_death_at_any_statement_or_write_loses_nothing_that_was_told_and_doubles_nothing(memory: Path) -> None:
    command = [sys.executable, "-c", _SCENARIO, str(memory), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    deaths = sorted((path for path in memory.iterdir() if path.is_dir()), key=lambda path: int(path.name))
    assert len(deaths) > 100
    for path in deaths:
        said = path.with_suffix(".said").read_text().splitlines() if path.with_suffix(".said").exists() else []
        with opened(path, [A, B]) as directory:
            to_do = {row.id: row for row in directory.to_do(5)}
            for name in "ab":
                assert f"done {name}" not in said or name not in to_do
            if "answered a" in said and "a" in to_do:
                assert to_do["a"].state == "scoring"
            statuses = {row.id: [one.status for one in directory.store.attempts(row.n)] for row in to_do.values()}
            assert "end a 1" not in said or "a" not in to_do or statuses["a"][0] == "failed"
            for entry in (A, B):
                if entry.id not in to_do:
                    continue
                n = number(directory, entry)
                if to_do[entry.id].state == "scoring":
                    directory.scored(n, [SCORE]).result(5)
                    continue
                left = unfinished(directory, n)
                # What was dispatched and has no end is known.
                assert (left is not None) == (None in statuses[entry.id])
                if left is not None:
                    directory.finish(Start(n, left.attempt), RecordRow("completed", left.attempt), END).result(5)
                else:
                    run_one(directory, entry)
        assert [(record["id"], record["status"]) for record in lines(path)] == [("a", "completed"), ("b", "completed")]
        with open_run(path) as store:
            assert None not in [attempt.status for attempt in store.all_attempts()]
            for attempt in store.all_attempts():
                if attempt.has_events:
                    assert [event["method"] for event in store.events(attempt.n, attempt.attempt)] == ["m"]
        segment = path / "events" / "000001.gz"
        if segment.exists() and segment.stat().st_size:
            assert gzip.decompress(segment.read_bytes())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ENTRIES), st.sampled_from([END, FAILED]), st.booleans()), max_size=6))
def test_over_any_runs_there_is_one_record_a_sample_and_every_attempt_is_counted(
    memory: Path, attempts: list[tuple[Entry, dict[str, Any], bool]]
) -> None:
    path = Path(tempfile.mkdtemp(dir=memory))
    made: Counter[str] = Counter()
    done: set[str] = set()
    for entry, end, dies in attempts:
        with opened(path) as directory:
            if entry.id in done:
                continue
            start = directory.start_attempt(number(directory, entry), "k", "t").result(5)
            made[entry.id] += 1
            assert start.attempt == made[entry.id]
            if not dies:
                directory.finish(start, RecordRow(end["status"], start.attempt), end).result(5)
                done |= {entry.id} if end is END else set()
        records = lines(path)
        assert max(Counter(record["id"] for record in records).values(), default=0) <= 1
        assert {record["id"] for record in records if record["status"] == "completed"} == done


def test_threads_may_finish_samples_at_once(tmp_path: Path) -> None:
    entries = [Entry(str(i), 1, "d", {"prompt": "p" * 5000}) for i in range(64)]
    with opened(tmp_path, entries) as directory:
        threads = [threading.Thread(target=run_one, args=(directory, entry)) for entry in entries]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert {record["id"] for record in lines(tmp_path)} == {entry.id for entry in entries}
    assert [record["id"] for record in lines(tmp_path)] == [entry.id for entry in entries]


def test_one_change_that_fails_does_not_take_others_along(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        n = number(directory, A)
        with directory._writer._has_work:
            good = directory.start_attempt(n, "k", "t")
            bad = directory.start_attempt(99, "k", "t")
            other = directory.start_attempt(number(directory, B), "k", "t")
        with pytest.raises(sqlite3.IntegrityError):
            bad.result(5)
        assert (good.result(5).attempt, other.result(5).attempt) == (1, 1)


# Whose directory it is.


def test_results_of_other_samples_are_refused_unless_only_some_are_wanted(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
        run_one(directory, B)
    before = (tmp_path / "results.jsonl").read_bytes()
    refused = pytest.raises(RunDirectoryError, match=r"results of other samples, not in d\.jsonl: 'a'; use another")
    with refused, opened(tmp_path, [B]):
        pass
    assert (tmp_path / "results.jsonl").read_bytes() == before
    whole = [(entry.id, entry.digest) for entry in ENTRIES]
    with opened(tmp_path, [C], whole=whole) as directory:
        assert ids(directory.to_do(5)) == ["c"] and directory.store.counts()["total"] == 1
    assert [record["id"] for record in lines(tmp_path)] == ["a", "b"]


def test_some_samples_of_another_dataset_are_refused_as_all_of_it_are(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
    before = (tmp_path / "results.jsonl").read_bytes()
    others = pytest.raises(RunDirectoryError, match=r"results of other samples, not in d\.jsonl: 'a'; use another")
    with others, opened(tmp_path, [C], whole=[("b", B.digest), ("c", C.digest)]):
        pass
    # Ids of one dataset may be those of another: line numbers, say.
    changed = [("a", "another"), ("c", C.digest)]
    refused = pytest.raises(RunDirectoryError, match=r"another prompt or other settings than in d\.jsonl now: 'a'")
    with refused, opened(tmp_path, [C], whole=changed):
        pass
    assert (tmp_path / "results.jsonl").read_bytes() == before
    with opened(tmp_path, [C], whole=changed, rerun_changed=True) as directory:
        # What is not asked for now is not run again either.
        assert ids(directory.to_do(5)) == ["c"]


def test_a_completed_sample_that_asks_something_else_is_refused_or_run_again_as_told(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
        run_one(directory, B, FAILED)
        directory.start_attempt(number(directory, C), "k", "t").result(5)
    other = [Entry(name, 1, "another digest", {}) for name in "abc"]
    refused = pytest.raises(RunDirectoryError, match=r"another prompt or other settings than in d\.jsonl now: 'a'")
    with refused, opened(tmp_path, [other[0], B, C]):
        pass
    with opened(tmp_path, other, rerun_changed=True) as directory:
        assert ids(directory.to_do(5)) == ["a", "b", "c"]
        # What was asked in other words is not taken up.
        assert unfinished(directory, number(directory, C)) is None


def test_a_directory_in_use_is_refused_with_the_pid_and_free_after(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(RunDirectoryError, match=rf"in use by another run \(pid {os.getpid()}\)"):
        RunDirectory(tmp_path)
    RunDirectory(tmp_path).close()


def test_the_lock_of_a_dead_run_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("99999\n")
    RunDirectory(tmp_path).close()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert open_run(tmp_path).info()["pid"] is None


def test_fresh_removes_what_a_run_left_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A, events=b"x")
    for name in ("home", "work", "artifacts"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.txt").write_text("keep")
    with opened(tmp_path, [B], fresh=True) as directory:
        assert ids(directory.store.samples()) == ["b"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "lock", "mine.txt", "results.jsonl", "run.sqlite"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["home", "work", "events", "artifacts"])
def test_a_directory_of_somebody_else_is_not_touched(tmp_path: Path, name: str, fresh: bool) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("x")
    with pytest.raises(RunDirectoryError, match=rf"has a {name}/ but no run\.sqlite"):
        RunDirectory(tmp_path, fresh=fresh)
    assert (tmp_path / name / "precious").exists()


def test_a_directory_of_an_earlier_layout_is_named_and_can_be_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"id": "a", "status": "completed"}\n')
    (tmp_path / "journal.jsonl").write_text("")
    (tmp_path / "work").mkdir()
    with pytest.raises(
        RunDirectoryError, match=r"has journal\.jsonl and results\.jsonl but no run\.sqlite: it was made"
    ):
        RunDirectory(tmp_path)
    with pytest.raises(RunDirectoryError, match="made by an earlier codex-pool"):
        open_run(tmp_path)
    RunDirectory(tmp_path, fresh=True).close()
    assert not (tmp_path / "journal.jsonl").exists() and not (tmp_path / "work").exists()


def test_a_file_cannot_be_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be a run directory"):
        RunDirectory(tmp_path / "f")
    with pytest.raises(RunDirectoryError, match="no such directory"):
        open_run(tmp_path / "nope")


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (
            "PRAGMA user_version = 99",
            f"schema version 99; this codex-pool knows versions up to {len(store_schema.MIGRATIONS)}",
        ),
        ("PRAGMA user_version = 0", "a database of something else"),
    ],
)
def test_another_schema_is_named_and_left_alone(tmp_path: Path, statements: str, words: str) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite", isolation_level=None)) as db:
        db.execute(statements)
    before = (tmp_path / "run.sqlite").read_bytes()
    for opening in (RunDirectory, open_run):
        with pytest.raises(RunDirectoryError, match=words):
            opening(tmp_path)
    assert (tmp_path / "run.sqlite").read_bytes() == before
    # It was let go.
    with pytest.raises(RunDirectoryError, match=words):
        RunDirectory(tmp_path)


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_bytes(b"no database " * 1000)
    for opening in (RunDirectory, open_run):
        with pytest.raises(RunDirectoryError, match=r"run\.sqlite cannot be used: file is not a database"):
            opening(tmp_path)


def test_an_older_schema_is_read_as_it_is_and_brought_up_to_date_by_a_run(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    store_schema.open_for_writing(path).close()
    before = path.read_bytes()
    newer = (
        *store_schema.MIGRATIONS,
        "CREATE TABLE more (x); ALTER TABLE run ADD COLUMN y; ALTER TABLE run ADD COLUMN z INTEGER NOT NULL DEFAULT 7;"
        "INSERT INTO run VALUES ('k', 'v', NULL, 8)",
    )
    with contextlib.closing(store_schema.open_for_reading(path, newer)) as db:
        assert db.execute("SELECT count(*) FROM more").fetchone() == (0,)
        assert db.execute("SELECT key, value, y, z FROM run").fetchall() == []
    assert path.read_bytes() == before
    with contextlib.closing(store_schema.open_for_writing(path, newer)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(newer),)
        assert db.execute("SELECT * FROM run").fetchall() == [("k", "v", None, 8)]
    store_schema.open_for_reading(path, newer).close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    store_schema.open_for_writing(path).close()
    broken = (*store_schema.MIGRATIONS, "CREATE TABLE more (x); INSERT INTO nowhere VALUES (7)")
    with pytest.raises(RunDirectoryError, match="nowhere"):
        store_schema.open_for_writing(path, broken)
    with contextlib.closing(store_schema.open_for_writing(path)) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)


def test_artifacts_are_those_of_the_sample_only(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        n = number(directory, A)
        target = directory.store.artifacts_of(n)
        target.mkdir(parents=True)
        (target / "diff.patch").write_bytes(b"+x")
        (tmp_path / "secret").write_bytes(b"s")
        assert directory.store.artifact(n, "diff.patch") == b"+x"
        for name in ("../../secret", "nope", "."):
            with pytest.raises(KeyError):
                directory.store.artifact(n, name)


@given(st.lists(st.text(min_size=1, max_size=80), min_size=2, max_size=2, unique=True))
def test_file_names_of_ids_are_safe_and_differ(ids: list[str]) -> None:
    names = {*map(safe_name, ids), *(directory_name(one, 2) for one in ids)}
    assert len(names) == 4
    for name in names:
        assert 0 < len(name.encode()) <= 64 and "/" not in name and not name.startswith(".") and name.isprintable()
