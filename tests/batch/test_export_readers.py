"""Exports read by the programs that they are for: Harbor's models of trajectories, SWE-bench's loader of predictions.

`make test-tools` installs both below out/formats, without what they need for all else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rollout_files import THREADS
from runs import make_run
from test_export_trajectories import run_of

from codex_batch.dataset import Sample
from codex_batch.export import export
from codex_batch.store import open_run

pytestmark = pytest.mark.generate

PACKAGES = Path(__file__).parents[2] / "out" / "formats"
LOADER = Path(__file__).parents[1] / "harness" / "swebench_loader.py"
VALIDATE = """
import json, sys
from harbor.models.trajectories import Trajectory
from harbor.utils.trajectory_validator import TrajectoryValidator
found = []
for line in open(sys.argv[1], encoding="utf-8"):
    validator = TrajectoryValidator()
    is_valid = validator.validate(json.loads(line))
    found.append({"is_valid": is_valid, "errors": validator.errors})
    if is_valid:
        trajectory = Trajectory.model_validate_json(line)
        assert trajectory.to_json_dict() == json.loads(line), "what was read is not what was written"
        found[-1] |= {"id": trajectory.trajectory_id, "images": trajectory.has_multimodal_content()}
print(json.dumps(found))
"""


def read_by(*command: str) -> Any:
    assert PACKAGES.is_dir(), "make test-tools installs the packages"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("format", ["atif", "atif-1.8"])
def test_harbor_reads_trajectories(format: str, tmp_path: Path) -> None:
    names = [name for name in THREADS if name not in ("child", "origin")]
    run = run_of(tmp_path / "r", names, without=["by-events", "by-record"], cost=0.25)
    with open_run(run) as store:
        (file,) = export(store, tmp_path / "t.jsonl", format)
    found = read_by("-c", VALIDATE, str(file))
    assert [each["errors"] for each in found] == [[]] * (len(names) + 2)
    assert [each["id"] for each in found[: len(names)]] == [THREADS[name] for name in names]
    assert [name for name, each in zip(names, found[: len(names)], strict=True) if each["images"]] == ["image"]


def test_swebench_reads_predictions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", [(Sample("a__a-1", ("p",)), "x"), (Sample("b__b-2", ("p",)), "x")], model="m")
    directory = run / "artifacts" / "a__a-1"
    directory.mkdir(parents=True)
    (directory / "diff.patch").write_text("diff --git a/x b/x\n")
    with open_run(run) as store:
        (file,) = export(store, tmp_path / "p.jsonl", "swebench")
    assert read_by(str(LOADER), str(file)) == [
        {"instance_id": "a__a-1", "model_name_or_path": "m", "model_patch": "diff --git a/x b/x\n"},
        {"instance_id": "b__b-2", "model_name_or_path": "m", "model_patch": ""},
    ]
