"""Limits and pauses of replacing the pool of a run. Pure; times are monotonic seconds.

    event            what follows
    lost             the pool that was connected is gone: another is tried after a pause
    failed           there is no other one yet: tried again after a longer pause
    turn_finished    pools work: the count and the pauses begin again

The run ends when DEATHS_LIMIT pools in a row were lost or could not be started with no turn finished on any of them. A
daemon that is not there has not failed to start: a user may start it, and it is waited for ABSENT_LIMIT_S.
"""

from __future__ import annotations

from codex_app_server._runtime.backoff import backoff_s

DEATHS_LIMIT = 5
ABSENT_LIMIT_S = 600.0
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0


class PoolDeaths:
    """See the module's docstring. `is_own`: the run starts its pools itself."""

    def __init__(self, *, is_own: bool) -> None:
        self._is_own = is_own
        self._deaths = 0
        self._tries = 0
        self._lost_at = 0.0
        self.given_up: str | None = None
        """Reason that no other pool is tried, if none is."""

    def lost(self, why: str, now: float) -> None:
        """Note that the connected pool is gone."""
        self._lost_at = now
        self._tries += 1
        self._died(why)

    def failed(self, why: str, now: float) -> None:
        """Note that no other pool could be started, or found."""
        self._tries += 1
        if self._is_own:
            self._died(why)
        elif now - self._lost_at >= ABSENT_LIMIT_S:
            self.given_up = f"it did not come back within {ABSENT_LIMIT_S:.0f} s: {why}"

    def turn_finished(self) -> None:
        """Note that a turn has ended, with any status, other than by the loss of the pool."""
        self._deaths = self._tries = 0

    def wait_s(self, jitter: float) -> float:
        """Seconds until the next try. `jitter` in [0, 1)."""
        return backoff_s(self._tries - 1, FIRST_WAIT_S, LONGEST_WAIT_S, jitter)

    def _died(self, why: str) -> None:
        self._deaths += 1
        if self._deaths >= DEATHS_LIMIT:
            how = "was lost or could not be started" if self._is_own else "was lost"
            self.given_up = f"it {how} {self._deaths} times in a row, with no turn finished; the last time: {why}"
