"""FruitlessDeaths: deaths of workers that had done nothing yet, until they are so many that the pool gives up. Pure."""

from __future__ import annotations

from collections import deque

from .effects import GiveUp

# Deaths before ready after which a pool gives up that has never been ready.
FAILED_STARTS_AT_FIRST = 2
# Deaths before ready or before any finished turn, while no worker serves, after which it gives up later.
FRUITLESS_WINDOW_S = 300.0
FRUITLESS_DEATHS = 8
FRUITLESS_DEATHS_PER_SLOT = 3


class FruitlessDeaths:
    """See the module's docstring. Those since a turn finished last count."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def clear(self) -> None:
        """Begin to count again: a turn has finished, or the pool was ready."""
        self._times.clear()

    def add(self, last: GiveUp, now: float, *, slots: int, pool_ready: bool) -> GiveUp | None:
        """Count a death, for the reason in `last`; return why the pool is to give up, None if it is not."""
        times = self._times
        times.append(now)
        while times[0] < now - FRUITLESS_WINDOW_S:
            times.popleft()
        limit = max(FRUITLESS_DEATHS, FRUITLESS_DEATHS_PER_SLOT * slots) if pool_ready else FAILED_STARTS_AT_FIRST
        if len(times) < limit:
            return None
        if last.kind is not None and not pool_ready:
            # Its reason is complete.
            return last
        what = f"{len(times)} workers in a row died before they were ready"
        if pool_ready:
            within_s = now - times[0]
            what = f"{len(times)} workers died within {within_s:.0f} s, before they were ready or had finished a turn"
        return GiveUp(f"{what}: {last.reason}", last.stderr, last.kind)
