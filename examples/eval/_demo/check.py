"""Compares what the tasks came to with expected.json beside this file.

    python check.py out/eval/results.jsonl

Ends with 1 and a line for each difference, when there is any.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SCORER = "hidden-tests"


def found(record: dict[str, Any]) -> dict[str, Any]:
    """How a task ended, in the form of expected.json; one that is not scored has the score 0."""
    score = record["scores"].get(SCORER)
    scored = score is not None and score["error"] is None
    return {"status": record["status"], "score": score["value"] if scored else 0}


def differences(results: Path) -> list[str]:
    """A line for each task that is missing, not expected, or ended otherwise."""
    expected = json.loads(Path(__file__).with_name("expected.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    came = {record["id"]: found(record) for record in records}
    return [
        f"{name}: {_words(came.get(name))}, expected {_words(expected.get(name))}"
        for name in sorted(expected.keys() | came.keys())
        if came.get(name) != expected.get(name)
    ]


def _words(end: dict[str, Any] | None) -> str:
    return "no such task" if end is None else f"{end['status']} with score {end['score']:g}"


def main(results: str) -> int:
    wrong = differences(Path(results))
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        print(f"{results}: {len(wrong)} tasks ended otherwise than intended", file=sys.stderr)
        return 1
    print("every task ended and scored as intended")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
