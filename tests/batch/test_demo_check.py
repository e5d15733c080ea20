"""The comparison at the end of `make demo`: each difference is named, and ends it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "examples" / "eval" / "_demo"
EXPECTED: dict[str, dict[str, Any]] = json.loads((DEMO / "expected.json").read_text())


def records() -> dict[str, dict[str, Any]]:
    """Return the records as a run that ended as intended writes them; of what failed there is no score."""
    return {
        name: {
            "id": name,
            "status": end["status"],
            "scores": {}
            if end["status"] == "failed"
            else {"hidden-tests": {"value": float(end["score"]), "error": None}},
        }
        for name, end in EXPECTED.items()
    }


def check(tmp_path: Path, results: dict[str, dict[str, Any]]) -> tuple[int, list[str]]:
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in results.values()))
    command = [sys.executable, str(DEMO / "check.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.returncode, done.stderr.splitlines()


def test_what_ended_as_intended_is_right(tmp_path: Path) -> None:
    assert check(tmp_path, records()) == (0, [])


def test_every_difference_is_named(tmp_path: Path) -> None:
    results = records()
    results["slugify"]["scores"]["hidden-tests"]["value"] = 1.0
    results["leap-year"] = {**results["leap-year"], "status": "failed", "scores": {}}
    results["log-parser"]["scores"]["hidden-tests"]["error"] = "the workspace was not kept"
    del results["word-count"]
    results["new"] = {**results["slugify"], "id": "new"}
    assert check(tmp_path, results) == (
        1,
        [
            "leap-year: failed with score 0, expected completed with score 1",
            "log-parser: completed with score 0, expected completed with score 1",
            "new: completed with score 1, expected no such task",
            "slugify: completed with score 1, expected completed with score 0",
            "word-count: no such task, expected completed with score 0",
            f"{tmp_path}/results.jsonl: 5 tasks ended otherwise than intended",
        ],
    )
