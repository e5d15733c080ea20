"""Shards of a dataset with workspaces and command scorers, one killed and resumed: their merge is as one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import shard_runs
from programs import codex_pool

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
