"""Whether and when a broker that died is replaced. Pure."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0
MAX_DEATHS = 5
# From then on a broker that works, but dies again and again, waits before it is replaced.
SLOW_DELAY_S = 1.0


class BrokerRestarts:
    """A broker is replaced at once. More than MAX_DEATHS of it within WINDOW_S without any use are too many.

    It was of use when a worker has registered with it: one that dies of its start never gets that far.
    """

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._useless = 0

    def useful(self) -> None:
        """A worker has registered with the broker."""
        self._useless = 0

    def died(self, now: float) -> float | None:
        """The broker has died: in how many seconds it is to be replaced, None if it is not."""
        self._useless += 1
        self._deaths.append(now)
        while self._deaths[0] < now - WINDOW_S:
            self._deaths.popleft()
        # Those without use are the last ones: all of them count only if they are within the window.
        if min(self._useless, len(self._deaths)) > MAX_DEATHS:
            return None
        return SLOW_DELAY_S if len(self._deaths) > MAX_DEATHS else 0.0
