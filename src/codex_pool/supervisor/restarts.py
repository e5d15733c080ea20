"""Restarts of the broker: whether and when one that died is replaced. Pure."""

from __future__ import annotations

from collections import deque

from codex_app_server._runtime.backoff import backoff_s

WINDOW_S = 10.0
MAX_DEATHS = 5
# From then on a broker of a pool that works, but dies again and again, waits before it is replaced.
SLOW_DELAY_S = 1.0
MAX_DELAY_S = 10.0


class BrokerRestarts:
    """A broker is replaced at once, and later if it dies again and again.

    More than MAX_DEATHS within WINDOW_S are too many for a pool that has never worked: no worker has registered with
    any broker. In one that has, workers run turns whatever becomes of brokers, so that it is tried without end.
    """

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._has_worked = False
        # Deaths in a row of brokers with which no worker registered.
        self._useless = 0

    def useful(self) -> None:
        """Note that a worker has registered with the broker."""
        self._has_worked, self._useless = True, 0

    def died(self, now: float) -> float | None:
        """Return in how many seconds a broker that has died is to be replaced, None if it is not."""
        self._useless += 1
        self._deaths.append(now)
        while self._deaths[0] < now - WINDOW_S:
            self._deaths.popleft()
        too_often = len(self._deaths) > MAX_DEATHS
        if too_often and not self._has_worked:
            return None
        if self._useless > MAX_DEATHS:
            return backoff_s(self._useless - MAX_DEATHS - 1, SLOW_DELAY_S, MAX_DELAY_S)
        return SLOW_DELAY_S if too_often else 0.0
