"""Shards of a dataset with workspaces and command scorers, one killed and resumed: their merge is as one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shard_runs
from programs import codex_pool

from codex_batch.store import open_run

pytestmark = [pytest.mark.fleet, pytest.mark.real]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("has_variants", [False, True], ids=["epochs", "variants"])
def test_the_merge_of_shards_equals_one_run_and_all_commands_work_on_it(tmp_path: Path, has_variants: bool) -> None:
    one, merged, killed = shard_runs.run_all(tmp_path, 36, 300.0, has_variants=has_variants)
    assert shard_runs.differences(one, merged, killed) == []
    assert 0 < len(killed) < 12
    before = {path: path.read_bytes() for path in (merged / "results.jsonl", merged / "config.json")}
    shards = [str(tmp_path / f"shard-{index}") for index in (1, 2, 3)]
    again = codex_pool("runs", "merge", *shards, "-o", str(merged))
    assert again.returncode == 0 and "0 samples changed" in again.stdout, again.stderr
    assert {path: path.read_bytes() for path in before} == before

    # The command of all, without a shard, has nothing left to do; scores are made again of the merged artifacts.
    words = shard_runs.batch(tmp_path / "data" / "dataset.jsonl", merged, has_variants=has_variants)
    done = codex_pool(*words)
    assert done.returncode == 0 and "nothing to do" in done.stderr, done.stderr
    scored = codex_pool("score", str(merged), "--scorer", shard_runs.SCORER, limit_s=200.0)
    assert scored.returncode == 0, scored.stderr
    assert shard_runs.differences(one, merged, killed) == []
    for verb in (("report", str(merged)), ("runs", "show", str(merged)), ("runs", "export", str(merged))):
        assert codex_pool(*verb).returncode == 0
    gate = codex_pool("runs", "check", str(merged), "--fail-under", "command=0.5")
    assert gate.returncode == 0, gate.stderr


@pytest.mark.timeout(400)
def test_a_merge_of_some_shards_goes_on_by_the_command_of_all(tmp_path: Path) -> None:
    data, merged = tmp_path / "d.jsonl", tmp_path / "merged"
    samples = [{"id": f"s{n}", "prompt": f"[[text yes-{n}]]", "target": f"yes-{n}"} for n in range(12)]
    data.write_text("".join(json.dumps(each) + "\n" for each in samples))
    words = ("batch", str(data), "--demo", "--workers", "1", "--scorer", "exact")
    shards = [tmp_path / f"shard-{index}" for index in (1, 3)]
    for shard, index in zip(shards, (1, 3), strict=True):
        done = codex_pool(*words, "--shard", f"{index}/3", "-o", str(shard), limit_s=100.0)
        assert done.returncode == 0, done.stderr
    joined = codex_pool("runs", "merge", *map(str, shards), "--allow-missing", "-o", str(merged))
    assert joined.returncode == 0, joined.stderr
    with open_run(merged) as store:
        before = {row.id: row.record for row in store.samples() if row.record is not None}
    assert 0 < len(before) < 12

    for expected in ("", "nothing to do"):
        done = codex_pool(*words, "-o", str(merged), limit_s=100.0)
        assert done.returncode == 0 and expected in done.stderr, done.stderr
    with open_run(merged) as store:
        rows = {row.id: row for row in store.samples()}
        attempts = [attempt.n for attempt in store.all_attempts()]
    # One attempt at each.
    assert set(rows) == {each["id"] for each in samples} and len(attempts) == len(set(attempts)) == 12
    assert all(row.scores[0].passed for row in rows.values())
    # What a shard had answered is as it was.
    assert {name: rows[name].record for name in before} == before
