"""The recipe for Slurm, submitted to a real cluster of one node, and its merge as a job that depends on it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import codex_pool
from slurm_cluster import SlurmCluster, slurm_cluster

from codex_batch.store import open_run

pytestmark = pytest.mark.fleet

BIN = str(Path(sys.executable).parent)
LIMIT_S = 150.0


@pytest.fixture
def cluster() -> Iterator[SlurmCluster]:
    # Short: the path of munge's socket is bounded.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, slurm_cluster(Path(name)) as found:
        yield found


@pytest.mark.timeout(240)
def test_an_array_runs_the_shards_a_task_goes_on_alone_and_a_dependent_job_merges_them(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    place = tmp_path / "it's here"
    place.mkdir()
    samples = [{"id": f"s{n}", "prompt": f"[[text yes-{n}]]", "target": f"yes-{n}"} for n in range(9)]
    (place / "d.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    output = place / "runs"
    of_batch = ("d.jsonl", "--demo", "--workers", "1", "--scorer", "exact")
    printed = codex_pool("recipe", "slurm", "--shards", "3", "--time", "10", "-o", str(output), *of_batch, cwd=place)
    assert printed.returncode == 0, printed.stderr
    script = place / "shards.sh"
    script.write_text(printed.stdout)

    def submit(*words: str) -> str:
        done = cluster.run(*words, cwd=place, limit_s=30, path=BIN)
        assert done.returncode == 0, done.stderr
        job = done.stdout.strip().rpartition(" ")[2]
        cluster.wait_for_end(job, LIMIT_S)
        return job

    # One task alone first: its number of shards is still that of the recipe.
    submit("sbatch", "--parsable", "--array=2", str(script))
    assert [path.name for path in output.iterdir()] == ["shard-2"]
    job = submit("sbatch", "--parsable", str(script))
    with open_run(output / "shard-2") as store:
        info = store.info()
        # It was done, so the array had nothing to do there.
        assert info["shard"] == "2/3" and len(info["launches"]) == 1
    (wrap,) = (line for line in printed.stdout.splitlines() if "--wrap" in line)
    submit("bash", "-c", wrap.removeprefix("#").strip().replace("$job", job))
    with open_run(output / "merged") as store:
        rows = list(store.samples(selected=True))
        assert [row.id for row in rows] == [each["id"] for each in samples]
        assert all(row.scores[0].value == 1.0 for row in rows)
