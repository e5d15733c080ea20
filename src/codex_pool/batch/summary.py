"""What is said of a run at its end. Pure: records and progress in, rows out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .dataset import Sample
from .policy import INTERRUPTED, STATUSES
from .progress import Progress, duration
from .results import Record

FAILURES_SHOWN = 10
REASON_CHARACTERS = 200


def count(samples: Iterable[Sample], records: Mapping[str, Record]) -> dict[str, int]:
    """Samples by the status of their record; `not_run` are those without one."""
    counts = Counter(records[sample.id]["status"] if sample.id in records else "not_run" for sample in samples)
    return {status: counts[status] for status in (*STATUSES, "not_run")}


def summary(counts: Mapping[str, int], progress: Progress, now: float) -> list[tuple[str, str]]:
    """The figures of a run by name."""
    before = f" ({progress.skipped:,} by an earlier run)" if progress.skipped else ""
    rows = [("completed", f"{counts['completed']:,}{before}"), ("failed", f"{counts['failed']:,}")]
    rows += [
        (name.replace("_", " "), f"{counts[name]:,}")
        for name in (*STATUSES, "not_run")
        if name not in ("completed", "failed") and counts[name]
    ]
    retries = "retry" if progress.retries == 1 else "retries"
    tokens = progress.tokens
    elapsed_s = progress.elapsed_s(now)
    elapsed = f"{elapsed_s:.1f} s" if elapsed_s < 60 else duration(elapsed_s)
    return [
        *rows,
        ("attempts", f"{progress.attempts:,} ({progress.retries:,} {retries})"),
        ("duration", f"{elapsed} ({progress.turns_per_s(now):.1f} turns/s)"),
        (
            "tokens",
            f"{tokens['total_tokens']:,} ({tokens['input_tokens']:,} in, of them {tokens['cached_input_tokens']:,} "
            f"cached; {tokens['output_tokens']:,} out)",
        ),
    ]


def failures(samples: Iterable[Sample], records: Mapping[str, Record]) -> list[tuple[str, str, str]]:
    """(id, status, reason) of what went wrong: the first of it, and how many more. What the user stopped did not."""
    wrong = [
        record
        for record in (records[sample.id] for sample in samples if sample.id in records)
        if record["status"] != "completed" and (record.get("error") or {}).get("kind") != INTERRUPTED
    ]
    shown = [(record["id"], record["status"], reason(record.get("error"))) for record in wrong[:FAILURES_SHOWN]]
    if len(wrong) > FAILURES_SHOWN:
        shown.append((f"and {len(wrong) - FAILURES_SHOWN:,} more", "", ""))
    return shown


def reason(error: Any) -> str:
    """An error of a record in one line."""
    if not isinstance(error, dict):
        return ""
    message = " ".join(str(error.get("message", "")).split())
    if len(message) > REASON_CHARACTERS:
        message = message[: REASON_CHARACTERS - 3] + "..."
    return f"{error.get('kind')}: {message}"
