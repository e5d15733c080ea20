"""The summary of a run at its end. Pure: counts, rows and progress in, rows out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from codex_app_server._runtime.text import duration, one_line, plural
from codex_pool.prices import UNKNOWN, amount

from ..rules.progress import Progress
from ..rules.retry import STATUSES
from ..store import DatasetChanges, SampleRow

FAILURES_SHOWN = 10
REASON_CHARACTERS = 200


def count(counts: Mapping[str, int]) -> dict[str, int]:
    """Select from the counts of the store the samples by status of their record; `not_run` are those without one."""
    return {status: counts.get(status, 0) for status in (*STATUSES, "not_run")}


def not_valid(kinds: Mapping[str, int]) -> list[tuple[str, str]]:
    """The samples that cannot be scored, by kind; no row without any."""
    count = sum(kinds.values())
    if not count:
        return []
    parts = ", ".join(f"{kind} {number:,}" for kind, number in kinds.items())
    return [("not valid", f"{plural(count, 'sample')}, not scored; by kind of error: {parts}")]


def summary(counts: Mapping[str, int], progress: Progress, now: float) -> list[tuple[str, str]]:
    """The figures of a run by name."""
    before = f" ({progress.skipped:,} by an earlier run)" if progress.skipped else ""
    rows = [("completed", f"{counts['completed']:,}{before}"), ("failed", f"{counts['failed']:,}")]
    rows += [
        (name.replace("_", " "), f"{counts[name]:,}")
        for name in (*STATUSES, "not_run")
        if name not in ("completed", "failed") and counts[name]
    ]
    tokens = progress.tokens
    elapsed_s = progress.elapsed_s(now)
    elapsed = f"{elapsed_s:.1f} s" if elapsed_s < 60 else duration(elapsed_s)
    return [
        *rows,
        ("attempts", f"{progress.attempts:,} ({plural(progress.retries, 'retry', 'retries')})"),
        ("duration", f"{elapsed} ({progress.turns_per_s(now):.1f} turns/s)"),
        (
            "tokens",
            f"{tokens['total_tokens']:,} ({tokens['input_tokens']:,} in, of them {tokens['cached_input_tokens']:,} "
            f"cached; {tokens['output_tokens']:,} out)",
        ),
        ("cost", cost(progress.cost, progress.unknown_costs, progress.currency)),
    ]


def cost(known: float, unknown: int, currency: str | None) -> str:
    """A cost, and of how much of it nothing is known."""
    if currency is None:
        return f"{UNKNOWN}: no prices; name a table with --prices"
    if not unknown:
        return amount(known, currency)
    least = f"at least {amount(known, currency)}; " if known else ""
    what = plural(unknown, "attempt or question of a judge", "attempts and questions of judges")
    return f"{UNKNOWN}: {least}nothing is known of {what}"


def dataset_changes(found: DatasetChanges) -> list[str]:
    """List what is new in the dataset and the scorers since the run had results, and what is done about it."""
    lines = []
    if found.added:
        lines.append(f"{plural(found.added, 'new sample')} to be run")
    if found.rerun:
        lines.append(f"{plural(found.rerun, 'sample')} that asked something else before to be run again")
    if found.rescored:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in found.reasons.most_common())
        lines.append(
            f"{plural(found.rescored, 'answer')} of earlier runs to be scored, without running them ({reasons})"
        )
    for scorer, count in sorted(found.dropped.items()):
        lines.append(
            f"{plural(count, 'score')} by {scorer} removed: the target, metadata or tags were changed, and the scorer "
            "is not named now; codex-pool score makes them once more"
        )
    return lines


def failures(rows: Iterable[SampleRow], count: int) -> list[tuple[str, str, str]]:
    """(name, status, reason) of what went wrong: the first of it, and how many more."""
    shown = [(row.shown_name, row.record.status, reason(row.record.error)) for row in rows if row.record is not None]
    if count > len(shown):
        shown.append((f"and {count - len(shown):,} more", "", ""))
    return shown


def reason(error: Any) -> str:
    """An error of a record in one line."""
    if not isinstance(error, dict):
        return ""
    return f"{error.get('kind')}: {one_line(str(error.get('message', '')), REASON_CHARACTERS)}"
