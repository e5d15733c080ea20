"""One plug-in of each kind for codex-pool: a scorer, a format of datasets, an exporter and an on-record hook.

Nothing of codex-pool is imported but for type checkers: codex_batch.plugins has the types.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codex_batch.plugins import Run


def length(sample: dict[str, Any], *, most: int = 100) -> dict[str, Any]:
    """Score an answer by its length: right if it has at most `most` characters."""
    count = len(sample["final_response"] or "")
    return {"value": 1.0 if count <= most else most / count, "passed": count <= most, "explanation": f"{count:,}"}


def questions(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read a text file: a question a line, with its answer behind `=>`; lines that begin with # are comments."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        question, arrow, answer = line.partition("=>")
        if not arrow:
            raise ValueError(f"line {number} has no '=>': write the answer behind it")
        yield {"id": f"line-{number}", "prompt": question.strip(), "target": answer.strip()}


def markdown(run: Run, file: IO[bytes]) -> None:
    """Write a run as a list for a wiki: each sample with its status and its answer."""
    file.write(f"# {run.path.name}\n\n".encode())
    for record in run.records():
        answer = (record["final_response"] or "").replace("\n", " ")
        file.write(f"- **{record['id']}** ({record['status']}): {answer}\n".encode())


class Tally:
    """Counts the records of a run by their status, in a file of the run directory that is written at the end."""

    def __init__(self, run: dict[str, Any]) -> None:
        self._file = Path(run["path"], "tally.json")
        self._counts: Counter[str] = Counter()

    def __call__(self, record: dict[str, Any]) -> None:
        self._counts[record["status"]] += 1

    def close(self) -> None:
        self._file.write_text(json.dumps(self._counts) + "\n", encoding="utf-8")
