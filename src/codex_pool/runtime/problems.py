"""Bookkeeping that fails: each under its name, when it is tried again, and what status shows of it. Pure.

A pool writes things down for itself: its lock, the list of its processes, its threads. Where that fails - a full disk,
a directory that was removed - it is tried again with backoff, logged once when it begins and once when it is over, and
ends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from codex_app_server._runtime.backoff import backoff_s

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 5.0


@dataclass(slots=True)
class _Problem:
    message: str
    since: float
    tries: int
    again_at: float


class Problems:
    """See the module's docstring. Times are those of CLOCK_MONOTONIC."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._problems: dict[str, _Problem] = {}

    def __contains__(self, what: str) -> bool:
        return what in self._problems

    def is_due(self, what: str, now: float) -> bool:
        """True if this has not failed, or may be tried again."""
        problem = self._problems.get(what)
        return problem is None or now >= problem.again_at

    def failed(self, what: str, message: str, now: float) -> None:
        """Note that `what` could not be done; `message` names the file and the error."""
        problem = self._problems.get(what)
        if problem is None:
            problem = self._problems[what] = _Problem(message, now, 0, now)
        if problem.tries == 0 or problem.message != message:
            self._log(f"{what}: {message}; it is tried again")
        problem.message = message
        problem.again_at = now + backoff_s(problem.tries, RETRY_FIRST_S, RETRY_MAX_S)
        problem.tries += 1

    def solved(self, what: str, now: float) -> None:
        """Note that `what` has been done, or need not be."""
        problem = self._problems.pop(what, None)
        if problem is not None:
            self._log(f"{what}: done after {problem.tries} failed tries in {now - problem.since:.1f} s")

    def rows(self) -> list[dict[str, Any]]:
        """Return what fails now: `what`, `message`, `tries`, and `since` when."""
        return [
            {"what": what, "message": problem.message, "tries": problem.tries, "since": problem.since}
            for what, problem in self._problems.items()
        ]


def shown(rows: list[dict[str, Any]], now: float) -> list[dict[str, Any]]:
    """Rows as status shows them, with their age instead of a time."""
    return [
        {
            "what": row["what"],
            "message": row["message"],
            "tries": row["tries"],
            "forMs": round(1000 * (now - row["since"])),
        }
        for row in rows
    ]
