"""The workflow with a matrix: its commands run as the runners run them, on the loopback model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import environment

pytestmark = [pytest.mark.fleet, pytest.mark.real]

WORKFLOW = Path(__file__).parents[2] / "examples" / "ci" / "github-actions-matrix.yml"


def steps(job: str) -> dict[str, dict[str, Any]]:
    found = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"][job]["steps"]
    return {step.get("name", step.get("uses")): step for step in found}


@pytest.mark.timeout(150)
def test_the_jobs_of_the_matrix_are_merged_and_judged_elsewhere(tmp_path: Path, home: Path) -> None:
    samples = [{"id": f"t{n}", "prompt": f"{n} [[text {42 if n else 41}]]", "target": "42"} for n in range(10)]
    merging = tmp_path / "merge"
    environ = {**environment(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-c", command], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60
        )

    evaluate = steps("evaluate")
    upload = evaluate["actions/upload-artifact@v4"]["with"]
    for shard in ("1", "2", "3"):
        machine = tmp_path / f"machine-{shard}"
        (machine / "evals").mkdir(parents=True)
        (machine / "evals" / "tasks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
        done = run(evaluate["Evaluate"]["run"].replace("${{ matrix.shard }}", shard), machine)
        assert done.returncode == 0, done.stderr
        # As the artifact is made and taken: files alone, without what is left out.
        name, *left_out = (line.replace("${{ matrix.shard }}", shard) for line in upload["path"].splitlines())
        assert left_out == [f"!{name}/home"]
        target = merging / "runs" / upload["name"].replace("${{ matrix.shard }}", shard)
        for file in (machine / name).rglob("*"):
            relative = file.relative_to(machine / name)
            if file.is_file() and relative.parts[0] != "home":
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / relative)
    merge = steps("merge")
    for name, code in (("Merge", 0), ("Gate", 0), ("Report", 0)):
        done = run(merge[name]["run"], merging)
        assert done.returncode == code, done.stderr
    assert len((merging / "runs" / "all" / "results.jsonl").read_text().splitlines()) == 10
    worse = run(merge["Gate"]["run"].replace("0.8", "0.95"), merging)
    assert worse.returncode == 4, worse.stderr
