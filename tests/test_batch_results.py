"""The run directory: one record a sample, whatever happens and wherever a death cuts the files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codex_pool.batch import results
from codex_pool.batch.dataset import Sample
from codex_pool.batch.policy import Outcome
from codex_pool.batch.results import RunDirectory, RunDirectoryError, parse_lines, safe_name

SAMPLES = [Sample("a", ("A",), metadata={"ä": 10**30}), Sample("b", ("B",)), Sample("c", ("C",))]
A, B, C = SAMPLES
DONE = Outcome("completed", final_response='line\n"é" \u2028', thread_id="t", turn_id="u", usage={"total_tokens": 3})
FAILED = Outcome("failed", error={"kind": "other", "message": "no"})


@contextlib.contextmanager
def opened(path: Path, samples: list[Sample] = SAMPLES, **options: Any) -> Iterator[RunDirectory]:
    """A run over `samples`: what is not done is pending."""
    directory = RunDirectory(path, **options)
    try:
        directory.check_samples(samples, "d.jsonl")
        directory.begin([sample for sample in samples if not directory.is_done(sample)])
        yield directory
    finally:
        directory.close(samples)


def run_one(directory: RunDirectory, sample: Sample, outcome: Outcome = DONE, key: str = "k") -> results.Record:
    return directory.finish(sample, directory.start_attempt(sample, key, f"thread-{sample.id}"), outcome)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines() if line]


def journal(path: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(path / "journal.jsonl") if line["event"] == event]


def test_a_record_holds_what_is_documented(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
    (record,) = lines(tmp_path / "results.jsonl")
    assert list(record) == [
        "schema_version",
        "id",
        "status",
        "final_response",
        "error",
        "usage",
        "thread_id",
        "turn_id",
        "worker",
        "attempts",
        "queued_ms",
        "duration_ms",
        "metadata",
    ]
    assert record["schema_version"] == 1 and record["attempts"] == 1 and record["metadata"] == {"ä": 10**30}
    assert record["final_response"] == DONE.final_response and record["usage"] == {"total_tokens": 3}


def test_an_attempt_stands_in_the_journal_before_it_ends_and_a_record_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        start = directory.start_attempt(A, "key-1", "thread-1")
        (written,) = journal(tmp_path, "start")
        assert (written["id"], written["attempt"]) == ("a", 1)
        assert (written["key"], written["thread_id"]) == ("key-1", "thread-1")
        directory.end_attempt(start, FAILED)
        assert lines(tmp_path / "results.jsonl") == []
        run_one(directory, A)
        assert [(r["id"], r["attempts"]) for r in lines(tmp_path / "results.jsonl")] == [("a", 2)]
    assert [(e["attempt"], e["status"]) for e in journal(tmp_path, "end")] == [(1, "failed"), (2, "completed")]


def test_the_order_is_that_of_the_ends_and_at_the_close_that_of_the_dataset(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        for sample in (C, A, B):
            run_one(directory, sample)
        assert [record["id"] for record in lines(tmp_path / "results.jsonl")] == ["c", "a", "b"]
    assert [record["id"] for record in lines(tmp_path / "results.jsonl")] == ["a", "b", "c"]


def test_what_is_run_again_has_one_record_at_any_instant_and_the_old_one_in_the_journal(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
        run_one(directory, B, FAILED)
    with opened(tmp_path) as directory:
        assert directory.is_done(A) and not directory.is_done(B) and not directory.is_done(C)
        assert [record["id"] for record in lines(tmp_path / "results.jsonl")] == ["a"]
        record = run_one(directory, B)
        assert record["attempts"] == 2
        assert [record["id"] for record in lines(tmp_path / "results.jsonl")] == ["a", "b"]
    (old,) = journal(tmp_path, "superseded")
    assert old["record"]["id"] == "b" and old["record"]["status"] == "failed"


def test_what_was_set_aside_and_not_run_again_comes_back(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A, FAILED)
        run_one(directory, B, FAILED)
    with opened(tmp_path) as directory:
        run_one(directory, B)
    assert [(r["id"], r["status"]) for r in lines(tmp_path / "results.jsonl")] == [("a", "failed"), ("b", "completed")]


def test_a_record_taken_out_or_altered_by_hand_is_run_again(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        for sample in SAMPLES:
            run_one(directory, sample)
    kept = lines(tmp_path / "results.jsonl")
    kept[1]["status"] = "failed"
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept[1:]))
    with opened(tmp_path) as directory:
        assert [directory.is_done(sample) for sample in SAMPLES] == [False, False, True]
        # Its end stands in the journal: nothing is left to be taken up.
        assert directory.unfinished(A) is None and directory.unfinished(B) is None


def test_an_attempt_without_an_end_is_known_to_the_next_run(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.end_attempt(directory.start_attempt(A, "first", "t1"), FAILED)
        directory.start_attempt(A, "second", "t2")
    with opened(tmp_path) as directory:
        left = directory.unfinished(A)
        assert left is not None and (left.attempt, left.key, left.thread_id) == (2, "second", "t2")
        assert directory.finish(A, left, DONE, note="taken up")["attempts"] == 2
    with opened(tmp_path) as directory:
        assert directory.unfinished(A) is None and directory.is_done(A)


# Deaths.


class Recorder:
    """What a run writes, byte by byte, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[str, bytes]] = []
        write, replace = results._write, results._replace

        def recorded_write(descriptor: int, records: Any) -> None:
            records = list(records)
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            self.steps.append((name, b"".join(map(results._encode, records))))
            write(descriptor, records)

        def recorded_replace(path: Path, data: bytes) -> None:
            self.steps.append((f"={path.name}", data))
            replace(path, data)

        monkeypatch.setattr(results, "_write", recorded_write)
        monkeypatch.setattr(results, "_replace", recorded_replace)

    def deaths(self) -> Iterator[dict[str, bytes]]:
        """The files as they are after each possible death: between two steps, and within one."""
        files: dict[str, bytes] = {}
        for name, data in self.steps:
            if name.startswith("="):
                # Replaced whole or not at all; the half-written file may lie about.
                yield {**files, name[1:] + ".partial": data[: len(data) // 2]}
                files[name[1:]] = data
            else:
                before = files.get(name, b"")
                for cut in range(len(data)):
                    yield {**files, name: before + data[:cut]}
                files[name] = before + data
            yield dict(files)


def whole_lines(data: bytes) -> list[dict[str, Any]]:
    """What can be read of a file that was cut: the last line may lack no more than its end."""
    *before, last = data.split(b"\n")
    found = [json.loads(line) for line in before]
    with contextlib.suppress(ValueError):
        found.append(json.loads(last))
    return found


def test_a_death_at_any_byte_loses_no_record_and_doubles_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with monkeypatch.context() as recording:
        recorder = Recorder(recording)
        with opened(tmp_path / "first", [A, B]) as directory:
            directory.end_attempt(directory.start_attempt(A, "a1", "ta1"), FAILED)
            run_one(directory, B, FAILED, key="b1")
            run_one(directory, A, key="a2")
        with opened(tmp_path / "first", [A, B]) as directory:
            run_one(directory, B, key="b2")
    seen = 0
    for number, files in enumerate(recorder.deaths()):
        seen += 1
        path = tmp_path / str(number)
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
        whole = whole_lines(files.get("results.jsonl", b""))
        completed = {record["id"] for record in whole if record["status"] == "completed"}
        keys = whole_lines(files.get("journal.jsonl", b""))
        started = {event["key"] for event in keys if event["event"] == "start"}
        ended = {(event["id"], event["attempt"]) for event in keys if event["event"] == "end"}
        given_up = set()
        with opened(path, [A, B]) as directory:
            for sample in (A, B):
                assert directory.is_done(sample) == (sample.id in completed)
                left = directory.unfinished(sample)
                if left is not None:
                    assert left.key in started and (sample.id, left.attempt) not in ended
                    given_up.add((sample.id, left.attempt))
                elif not directory.is_done(sample):
                    # Nothing that was dispatched is unknown.
                    mine = [e for e in keys if e["event"] == "start" and e["id"] == sample.id]
                    recorded = any(r["id"] == sample.id and r["attempts"] == len(mine) for r in whole)
                    assert not mine or (sample.id, mine[-1]["attempt"]) in ended or recorded
            for sample in (A, B):
                if not directory.is_done(sample):
                    run_one(directory, sample)
        after = lines(path / "results.jsonl")
        assert [(record["id"], record["status"]) for record in after] == [("a", "completed"), ("b", "completed")]
        attempts = {(event["id"], event["attempt"]) for event in journal(path, "start")}
        ends = [(event["id"], event["attempt"]) for event in journal(path, "end")]
        # Each attempt has its end once; only what was left open and then not taken up has none.
        assert len(ends) == len(set(ends)) and attempts - set(ends) <= given_up
    assert seen > 1000


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SAMPLES), st.sampled_from([DONE, FAILED]), st.booleans()), max_size=8))
def test_over_any_runs_there_is_one_record_a_sample_and_every_attempt_is_counted(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[Sample, Outcome, bool]]
) -> None:
    path = tmp_path_factory.mktemp("run")
    made = dict.fromkeys("abc", 0)
    done: set[str] = set()
    for sample, outcome, dies in attempts:
        with opened(path) as directory:
            if sample.id in done:
                continue
            start = directory.start_attempt(sample, "k", "t")
            made[sample.id] += 1
            assert start.attempt == made[sample.id]
            if not dies:
                directory.finish(sample, start, outcome)
                done |= {sample.id} if outcome is DONE else set()
        records = lines(path / "results.jsonl")
        assert len({record["id"] for record in records}) == len(records)
        assert {record["id"] for record in records if record["status"] == "completed"} == done


def test_threads_may_finish_samples_at_once(tmp_path: Path) -> None:
    samples = [Sample(str(number), ("p" * 5000,)) for number in range(64)]
    with opened(tmp_path, samples) as directory:
        threads = [threading.Thread(target=run_one, args=(directory, sample)) for sample in samples]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert {record["id"] for record in lines(tmp_path / "results.jsonl")} == {sample.id for sample in samples}
    assert [record["id"] for record in lines(tmp_path / "results.jsonl")] == [sample.id for sample in samples]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b'{"a":1}\n', [(1, {"a": 1})]),
        (b'{"a":1}\n{"b"', [(1, {"a": 1})]),
        (b'{"a":1}\n{"b":2}', [(1, {"a": 1}), (2, {"b": 2})]),
        (b'\n{"a":1}\n\n12', [(2, {"a": 1})]),
    ],
)
def test_only_a_torn_last_line_is_forgiven(data: bytes, expected: list[Any]) -> None:
    found, whole = parse_lines(data, "f")
    assert found == expected and parse_lines(whole, "f")[1] == whole


def test_a_bad_line_before_the_last_is_named() -> None:
    with pytest.raises(RunDirectoryError, match="f:2: not a JSON object"):
        parse_lines(b'{"a":1}\nxx\n{"b":2}\n', "f")


# Whose directory it is.


def test_results_of_other_samples_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
        run_one(directory, B)
    before = (tmp_path / "results.jsonl").read_bytes()
    refused = pytest.raises(RunDirectoryError, match=r"results of other samples, not in d\.jsonl: 'a'; use another")
    with refused, opened(tmp_path, [B]):
        pass
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_a_completed_sample_that_asks_something_else_now_is_refused_a_failed_one_is_run(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
        run_one(directory, B, FAILED)
    refused = pytest.raises(RunDirectoryError, match=r"another prompt or other settings than in d\.jsonl now: 'a'")
    with refused, opened(tmp_path, [Sample("a", ("other",)), B, C]):
        pass
    with opened(tmp_path, [A, Sample("b", ("better",)), C]) as directory:
        assert not directory.is_done(B)


def test_a_directory_in_use_is_refused_with_the_pid_and_free_after(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(RunDirectoryError, match=rf"in use by another run \(pid {os.getpid()}\)"):
        RunDirectory(tmp_path)
    RunDirectory(tmp_path).close()


def test_the_lock_of_a_dead_run_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("99999\n")
    RunDirectory(tmp_path).close()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_fresh_removes_what_a_run_left_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        run_one(directory, A)
        directory.write_run({"x": 1})
        Path(directory.work_directory(A), "artifact").write_text("x")
    (tmp_path / "home").mkdir()
    (tmp_path / "mine.txt").write_text("keep")
    with opened(tmp_path, [B], fresh=True) as directory:
        assert directory.records() == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "lock", "mine.txt", "results.jsonl"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["home", "work"])
def test_a_directory_of_somebody_else_is_not_touched(tmp_path: Path, name: str, fresh: bool) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("x")
    with pytest.raises(RunDirectoryError, match=f"has a {name}/ but no run.json"):
        RunDirectory(tmp_path, fresh=fresh)
    assert (tmp_path / name / "precious").exists()


def test_a_file_cannot_be_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be a run directory"):
        RunDirectory(tmp_path / "f")


def test_a_refused_directory_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"id": "a", "status": "great"}\n')
    with pytest.raises(RunDirectoryError, match=r"results\.jsonl:1: not a record: id is 'a', status is 'great'"):
        RunDirectory(tmp_path)
    with open(tmp_path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_each_sample_without_a_directory_works_in_its_own(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        assert directory.work_directory(A) == str(tmp_path.resolve() / "work" / "a")
        assert directory.work_directory(Sample("x", ("p",), cwd="/else")) == "/else"


@given(st.lists(st.text(min_size=1, max_size=80), min_size=2, max_size=2, unique=True))
def test_file_names_of_ids_are_safe_and_differ(ids: list[str]) -> None:
    one, other = map(safe_name, ids)
    assert one != other
    for name in (one, other):
        assert 0 < len(name.encode()) <= 64 and "/" not in name and not name.startswith(".") and name.isprintable()
