"""Merging run directories of shards: what becomes one run, what is refused, and that nothing is lost or paid twice."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import codex_pool

from codex_batch.dataset.shards import shard_of
from codex_batch.display import by_variant
from codex_batch.merge import MergeError, merge
from codex_batch.merge.choose import ConflictError, SampleState, choose
from codex_batch.store import Entry, RecordRow, Rollout, RunDirectory, RunDirectoryError, ScoreRow, layout, open_run
from codex_batch.store.reader import VARIANTS

IDS = [f"s{n}" for n in range(12)]
USAGE = {"total_tokens": 3}
CONFIG: dict[str, Any] = {
    "dataset": {"name": "d.jsonl", "samples": 0, "fingerprint": "f", "content": "c"},
    "scorers": [{"type": "exact"}],
    "arguments": {"request": {"epochs": 1}},
    "command": ["batch", "d.jsonl", "--shard", "1/2", "--fresh", "-o", "x", "--retries", "1"],
    "currency": "USD",
    "effective": {"model": "m", "codex_version": "0.163.0", "keys": {}},
}


def shard(
    path: Path,
    index: int,
    of: int = 2,
    *,
    config: dict[str, Any] | None = None,
    done: Sequence[str] = tuple(IDS),
    note: bool = True,
    variants: Mapping[str, Any] | None = None,
) -> Path:
    """A run of a shard; those of its samples in `done` have ended. `variants`: name to effective configuration."""
    directory = RunDirectory(path)
    try:
        if note:
            directory.note("shard", f"{index}/{of}").result(5)
        directory.launch({**CONFIG, **(config or {})})
        names = list(variants or {"": None})
        if variants is not None:
            effective = [{"name": name, "effective": each} for name, each in variants.items()]
            directory.note(VARIANTS, effective).result(5)
        mine = [(place, name) for place, name in enumerate(IDS) if shard_of(name, of) == index]
        entries = [
            Entry(name, 1, "d", {"id": name, "prompts": []}, variant=variant, position=place * len(names) + number)
            for place, name in mine
            for number, variant in enumerate(names)
        ]
        directory.load(entries, "d")
        for entry in entries:
            if entry.id in done:
                finish(directory, entry.id, variant=entry.variant)
        directory.judged(5, 0.5).result(5)
        directory.outcome("finished", {"exit_code": 0}).result(5)
    finally:
        directory.close()
    return path


def finish(directory: RunDirectory, name: str, status: str = "completed", variant: str = "") -> None:
    """Run a sample to its end, with an event log and an artifact."""
    n = directory.store.sample(name, variant=variant).n
    artifact = directory.path / layout.ARTIFACTS / layout.directory_name(name, 1, variant) / "diff.patch"
    artifact.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_text(f"of {name}")
    start = directory.start_attempt(n, os.urandom(8).hex(), f"t-{name}").result(5)
    end = {"status": status, "usage": USAGE, "cost": 1.0, "turn_id": "u"}
    record = RecordRow(
        status=status, attempts=start.attempt, final_response=name, usage=USAGE, cost=1.0, artifacts=("diff.patch",)
    )
    log = json.dumps({"method": "x", "params": {"of": name}}).encode() + b"\n"
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    events = compressor.compress(log) + compressor.flush()
    rollouts = [
        Rollout(f"t-{name}", lines=gzip.compress(f'{{"of": "{name}"}}\n'.encode())),
        Rollout("gone", note="missing"),
    ]
    directory.finish(start, record, end, events=events, rollouts=rollouts, to_score=status == "completed").result(5)
    if status == "completed":
        directory.scored(n, [ScoreRow("exact", 1.0, True, name, None, None, None, 5, 0.0)]).result(5)


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a run."""
    with contextlib.closing(sqlite3.connect(path / layout.DATABASE)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in names}


def files(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def ended(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (path / layout.RESULTS).read_text().splitlines()]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [shard(tmp_path / f"shard-{index}", index) for index in (1, 2)]


def test_a_merge_has_all_of_its_shards_in_the_order_of_the_dataset(tmp_path: Path, two: list[Path]) -> None:
    before, out = [files(path) for path in two], tmp_path / "out"
    merged = merge(two, out)
    assert (merged.shards, merged.missing, merged.taken, merged.counts["completed"]) == ((1, 2), (), 12, 12)
    assert [files(path) for path in two] == before
    assert ended(out) == IDS
    with open_run(out) as store:
        info = store.info()
        assert info["state"] == "finished" and info["outcome"]["exit_code"] == 0 and "shard" not in info
        assert len(info["launches"]) == 3
        assert info["config"]["command"] == ["batch", "d.jsonl", "--retries", "1", "-o", str(out)]
        assert info["config"]["dataset"]["samples"] == 12 and info["config"]["merged"] == "2 of 2 shards"
        assert info == {**info, "judged": {"tokens": 10, "cost": 1.0, "unknown": 0}}
        spent = store.spending()
        assert (spent.tokens, spent.known, spent.unknown) == (12 * 3 + 10, 12 * 1.0 + 1.0, 0)
        for row in store.samples():
            own, gone = store.rollouts(row.n, 1)
            assert list(store.rollout_lines(own)) == [f'{{"of": "{row.id}"}}'.encode()] and gone.note == "missing"
            assert row.record is not None and row.n == row.position + 1
            launch = info["launches"][(row.record.launch or 0) - 1]
            assert launch["number"] == row.record.launch and launch["pid"] == os.getpid()
            assert row.scores[0].answer == row.id
            assert [event["params"]["of"] for event in store.events(row.n, 1)] == [row.id]
            assert store.artifact(row.n, "diff.patch") == f"of {row.id}".encode()


def test_shards_with_variants_have_each_sample_in_each_variant(tmp_path: Path) -> None:
    low, high = ({"model": "m", "effort": effort, "keys": {}} for effort in ("low", "high"))
    two = [
        shard(tmp_path / f"shard-{index}", index, config={"effective": None}, variants={"low": low, "high": high})
        for index in (1, 2)
    ]
    merged = merge(two, tmp_path / "out")
    assert (merged.taken, merged.counts["completed"]) == (24, 24)
    lines = [json.loads(line) for line in (tmp_path / "out" / layout.RESULTS).read_text().splitlines()]
    assert [(line["id"], line["variant"]) for line in lines] == [(id, name) for id in IDS for name in ("low", "high")]
    with open_run(tmp_path / "out") as store:
        assert store.variant_names() == ["low", "high"]
        figures = by_variant.by_variant(store, store.variant_names())
        assert [(each.name, each.total, each.done, each.means) for each in figures] == [
            (name, 12, 12, {"exact": 1.0}) for name in ("low", "high")
        ]
        assert {store.artifact(row.n, "diff.patch") for row in store.samples(variant="high")} == {
            f"of {name}".encode() for name in IDS
        }


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (
            {"low": {"model": "m"}, "high": {"model": "n"}},
            "with other configurations of variant 'low' (model: n and m)",
        ),
        ({"high": {"model": "n"}}, "have other variants, high, low and high"),
    ],
)
def test_a_variant_that_the_last_commands_left_out_must_be_alike_as_well(
    tmp_path: Path, other: dict[str, Any], problem: str
) -> None:
    # Both were gone on with for one variant alone.
    last = {"effective": None, "variants": [{"name": "high", "effective": {"model": "n"}}]}
    one = shard(tmp_path / "1", 1, config=last, variants={"low": {"model": "n"}, "high": {"model": "n"}})
    two = shard(tmp_path / "2", 2, config=last, variants=other)
    with pytest.raises(MergeError, match=re.escape(problem)):
        merge([one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_merge_again_changes_no_byte(tmp_path: Path, two: list[Path]) -> None:
    out = tmp_path / "out"
    merge(two, out)
    before = {name: data for name, data in files(out).items() if name != layout.LOCK}
    again = merge([*reversed(two), two[0]], out)
    assert again.taken == 0
    assert {name: data for name, data in files(out).items() if name != layout.LOCK} == before


def test_shards_are_added_later_and_one_that_went_on_is_taken_again(tmp_path: Path) -> None:
    first = shard(tmp_path / "1", 1, 3)
    second = shard(tmp_path / "2", 2, 3, done=IDS[:3])
    out, once = tmp_path / "out", tmp_path / "once"
    with pytest.raises(MergeError, match="shard 3/3 is missing"):
        merge([first, second], out)
    assert not out.exists()
    merged = merge([first, second], out, allow_missing=True)
    assert merged.missing == (3,) and merged.counts["not_run"] > 0
    third = shard(tmp_path / "3", 3, 3)
    directory = RunDirectory(second)
    directory.launch(CONFIG)
    for row in list(directory.store.samples(state="pending")):
        finish(directory, row.id)
    directory.close()
    merged = merge([third, second], out)
    assert (merged.shards, merged.missing) == ((1, 2, 3), ()) and merged.counts["not_run"] == 0
    assert merge([first, second, third], once).taken == 12
    assert ended(out) == ended(once) == IDS
    with open_run(out) as late, open_run(once) as early:
        assert late.spending() == early.spending()
        assert [row.n for row in late.samples()] == [row.n for row in early.samples()]
        assert len(late.info()["launches"]) == len(early.info()["launches"]) == 5


def conflicting(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Shard 1, and shard 2 that was run twice, on two machines."""
    first, second, again = (shard(tmp_path / name, index) for name, index in (("1", 1), ("2", 2), ("2b", 2)))
    return first, second, again


def test_different_answers_are_refused_unless_one_is_preferred_and_all_attempts_stay(tmp_path: Path) -> None:
    first, second, again = conflicting(tmp_path)
    out = tmp_path / "out"
    with pytest.raises(MergeError, match="have different answers to") as refused:
        merge([first, second, again], out)
    (problem,) = refused.value.problems
    assert str(second) in problem and str(again) in problem and "--prefer" in problem and not out.exists()
    merge([first, second, again], out, prefer="last")
    with open_run(out) as store, open_run(again) as taken, open_run(second) as left:
        # What both machines were paid.
        assert store.spending().known == first_cost(first) + left.spending().known + taken.spending().known
        for row in taken.samples():
            mine = store.sample(row.id)
            assert mine.record is not None and row.record is not None
            assert mine.record.started_at == row.record.started_at and mine.record.attempts == 2
            attempts = store.attempts(mine.n)
            assert [each.key for each in attempts] == [left_key(left, row.id), taken.attempts(row.n)[0].key]
            assert attempts[0].note == "of another directory of its shard, whose result was not taken"
            assert [event["params"]["of"] for event in store.events(mine.n, 2)] == [row.id]
    assert merge([first, second, again], out, prefer="last").taken == 0


def first_cost(path: Path) -> float:
    with open_run(path) as store:
        return store.spending().known


def left_key(store: Any, name: str) -> str:
    return str(store.attempts(store.sample(name).n)[0].key)


def test_a_copy_of_a_shard_is_no_conflict(tmp_path: Path, two: list[Path]) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(two[1]), str(copy)], check=True)
    assert merge([*two, copy], tmp_path / "out").taken == 12
    assert first_cost(tmp_path / "out") == first_cost(two[0]) + first_cost(two[1])


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"dataset": {**CONFIG["dataset"], "fingerprint": "g"}}, "are of other samples"),
        ({"dataset": {**CONFIG["dataset"], "content": "d"}}, "other targets, scorers, limits or metadata"),
        ({"scorers": []}, "have other scorers"),
        ({"arguments": {"request": {"epochs": 2}}}, "have 1 and 2 epochs"),
        ({"currency": None}, "have costs in USD and None"),
        ({"effective": {**CONFIG["effective"], "model": "n"}}, "other configurations (model: m and n)"),
        ({"effective": None, "variants": [{"name": "a", "effective": {}}]}, "other variants, none and a"),
    ],
)
def test_runs_that_are_not_alike_are_refused(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    paths = [shard(tmp_path / "1", 1), shard(tmp_path / "2", 2, config=config)]
    with pytest.raises(MergeError, match=re.escape(problem)):
        merge(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_a_source_or_a_target_is_refused_by_name(tmp_path: Path, two: list[Path]) -> None:
    def refused(paths: list[Path], out: Path, problem: str) -> None:
        before = {name: data for name, data in files(tmp_path).items() if not name.endswith(("-shm", "-wal"))}
        with pytest.raises((MergeError, RunDirectoryError), match=re.escape(problem)):
            merge(paths, out)
        after = {name: data for name, data in files(tmp_path).items() if not name.endswith(("-shm", "-wal"))}
        assert after == before

    out = tmp_path / "out"
    whole = shard(tmp_path / "whole", 1, 1, note=False)
    refused([*two, whole], out, f"{whole} is no shard")
    refused([two[0], tmp_path / "none"], out, f"{tmp_path / 'none'}: no such directory")
    refused([two[0], shard(tmp_path / "of-3", 3, 3)], out, "are of 2 and 3 shards")
    refused(two, two[0], "is one of the shards")
    refused(two, whole, "is a run that was not merged")
    merge(two, tmp_path / "merged")
    refused([*two, tmp_path / "merged"], out, "is merged itself")
    never = RunDirectory(tmp_path / "never")
    never.note("shard", "1/2").result(5)
    never.close()
    refused([two[1], tmp_path / "never"], out, "was never started")


def test_a_shard_that_is_under_way_is_refused_and_none_is_started_meanwhile(tmp_path: Path, two: list[Path]) -> None:
    directory = RunDirectory(two[1])
    try:
        with pytest.raises(MergeError, match=rf"is under way \(pid {os.getpid()}\)"):
            merge(two, tmp_path / "out")
    finally:
        directory.close()


@pytest.mark.parametrize("name", ["events/000001.gz", "artifacts"])
def test_a_directory_that_was_not_copied_as_a_whole_is_refused(tmp_path: Path, two: list[Path], name: str) -> None:
    os.rename(two[1] / name, tmp_path / "elsewhere")
    with pytest.raises(MergeError, match="copy the run directory as a whole"):
        merge(two, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_read_only_shard_is_merged(tmp_path: Path, two: list[Path]) -> None:
    (two[1] / layout.LOCK).unlink()
    with contextlib.closing(sqlite3.connect(two[1] / layout.DATABASE)) as db:
        # As a killed shard leaves it: changes are in the log.
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("INSERT INTO run VALUES ('x', '1')")
        db.commit()
        merge(two, tmp_path / "out")
    with open_run(tmp_path / "out") as store:
        assert store.info()["x"] == 1


def test_attempts_under_way_when_a_shard_died_are_lost_until_it_has_looked_for_them(tmp_path: Path) -> None:
    paths = [shard(tmp_path / "1", 1), shard(tmp_path / "2", 2, done=IDS[:4])]
    directory = RunDirectory(paths[1])
    (row, *_) = directory.store.samples(state="pending")
    directory.start_attempt(row.n, "key", "thread").result(5)
    directory.close()
    out = tmp_path / "out"
    assert merge(paths, out).ended == 1
    with open_run(out) as store:
        mine = store.sample(row.id)
        (attempt,) = store.attempts(mine.n)
        assert (mine.state, attempt.status, attempt.has_unknown_cost) == ("pending", "lost", True)
        assert store.spending().unknown == 1
    directory = RunDirectory(paths[1])
    finish(directory, row.id)
    directory.close()
    merge(paths, out)
    with open_run(out) as store:
        assert store.sample(row.id).state == "done" and len(store.attempts(mine.n)) == 2


KILLED = """
import os, sys
from pathlib import Path
from codex_batch import merge
from codex_batch.merge import copy, merging
at, count = int(sys.argv[1]), 0
def counted(function):
    def call(*args, **options):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), 9)
        return function(*args, **options)
    return call
copy.Copy.sample = counted(copy.Copy.sample)
merging._copy_synced = counted(merging._copy_synced)
merging.write_atomic = counted(merging.write_atomic)
merge.merge([Path(each) for each in sys.argv[3:]], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("at", [1, 9, 13, 20, 24, 25])
def test_a_merge_that_is_killed_is_repeated(tmp_path: Path, two: list[Path], at: int) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = [sys.executable, "-c", KILLED, str(at), str(out), *map(str, two)]
    assert subprocess.run(words, timeout=30).returncode == -9
    merge(two, out)
    merge(two, whole)
    assert ended(out) == ended(whole) == IDS
    with open_run(out) as first, open_run(whole) as second:
        for row in first.samples():
            other = second.sample(row.id)
            assert (row.record, row.scores, row.n) == (other.record, other.scores, other.n)
            assert list(first.events(row.n, 1)) == list(second.events(other.n, 1))
            assert first.artifact(row.n, "diff.patch") == second.artifact(other.n, "diff.patch")
    assert {name: len(found) for name, found in rows(out).items()} == {
        name: len(found) for name, found in rows(whole).items()
    }


STATES = st.builds(
    SampleState,
    source=st.integers(0, 3),
    n=st.just(1),
    position=st.just(0),
    is_done=st.booleans(),
    is_recorded=st.booleans(),
    is_settled=st.booleans(),
    attempts=st.lists(st.sampled_from([("a", 1.0), ("b", 1.0), ("c", 2.0)]), unique=True).map(tuple),
    ended=st.integers(0, 3),
    scored_at=st.floats(0, 9),
)


@settings(max_examples=50)
@given(st.lists(STATES, min_size=1, max_size=4), st.sampled_from([None, "first", "last"]))
def test_a_choice_loses_no_attempt_and_no_answer(states: list[SampleState], prefer: Any) -> None:
    try:
        taken, others = choose(states, prefer)
    except ConflictError as error:
        assert prefer is None and error.first.is_settled and error.second.is_settled
        assert set(error.first.attempts) - set(error.second.attempts)
        assert set(error.second.attempts) - set(error.first.attempts)
        return
    there = {attempt for state in (taken, *others) for attempt in state.attempts}
    assert there == {attempt for state in states for attempt in state.attempts}
    assert taken in states and all(set(other.attempts) - set(taken.attempts) for other in others)


def test_the_command_says_what_it_did_and_what_is_wrong(tmp_path: Path, two: list[Path]) -> None:
    refused = codex_pool("runs", "merge", str(two[0]), "-o", "out", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.splitlines() == [
        "codex-pool: shard 2/2 is missing: name all directories, or merge without it by --allow-missing and add it "
        "later",
        "codex-pool: out: nothing was merged",
    ]
    done = codex_pool("runs", "merge", *map(str, two), "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "out: 2 of 2 shards, 12 samples changed",
        "  completed  12",
        "next:",
        "  report  codex-pool report out",
    ]
    shown = codex_pool("runs", "show", "out", cwd=tmp_path)
    assert re.search(r"^merged +2 of 2 shards$", shown.stdout, re.MULTILINE), shown.stdout
    as_json = json.loads(codex_pool("runs", "merge", *map(str, two), "-o", "out", "--json", cwd=tmp_path).stdout)
    assert as_json["changed"] == 0 and as_json["counts"]["completed"] == 12
