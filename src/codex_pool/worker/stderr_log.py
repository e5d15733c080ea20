"""StderrLog: which lines of an app-server's stderr are worth a line of the log. Pure.

Warnings, errors and panics are; backtraces and what else is written there are not, nor a configuration that cannot be
used: a pool reports it with its remedy, and each thread that is refused. A burst is cut: beyond MAX_LINES
within WINDOW_S lines are counted only, and the next window begins with their number. Seen with codex 0.163.0.
"""

from __future__ import annotations

from codex_app_server._runtime.stderr import is_problem
from codex_app_server._runtime.text import plural

REPORTED_ELSEWHERE = "Invalid configuration; using defaults"
MAX_LINES = 20
WINDOW_S = 10.0


class StderrLog:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._window_ends_at = 0.0
        self._lines = 0
        self._left_out = 0

    def take(self, line: str, now: float) -> list[str]:
        """Lines for the log that a line of stderr leads to. `now`: seconds of a monotonic clock."""
        problem = is_problem(line)
        if problem is None or REPORTED_ELSEWHERE in problem:
            return []
        found: list[str] = []
        if now >= self._window_ends_at:
            if self._left_out:
                found.append(f"app-server: {plural(self._left_out, 'line')} of its stderr left out")
            self._window_ends_at, self._lines, self._left_out = now + WINDOW_S, 0, 0
        if self._lines >= MAX_LINES:
            self._left_out += 1
            return found
        self._lines += 1
        return [*found, f"app-server: {problem}"]
