"""Limits of a sample and of a run, and the meters that report when one is reached. Pure: the clock is passed in.

Reaching a limit is an outcome, `limit`, not an error. Waiting for a place in the pool's queue, for a rate limit to
be over or for the network is not the sample's fault: its clock stands still meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from codex_app_server._runtime.text import plural
from codex_pool.open_items import OpenItems
from codex_pool.prices import UNKNOWN, amount

# With a limit of money, a run ends after so many attempts if the cost of none is known.
UNKNOWN_LIMIT = 3

# Items by which an agent does something: what `tool_calls` counts.
TOOL_CALLS = frozenset(
    {
        "commandExecution",
        "fileChange",
        "mcpToolCall",
        "dynamicToolCall",
        "collabAgentToolCall",
        "webSearch",
        "imageView",
        "imageGeneration",
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one sample. `wall_s` and `idle_s` in seconds of running; None is no limit.

    `tokens` counts input and output of all its turns, `turns` its turns, `tool_calls` what the agent called.
    """

    wall_s: float | None = None
    idle_s: float | None = None
    tokens: int | None = None
    turns: int | None = None
    tool_calls: int | None = None


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Limits of one run: `tokens` and `cost` over all its attempts, `wall_s` seconds since it was started."""

    tokens: int | None = None
    cost: float | None = None
    wall_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reached:
    """A limit that was reached: its name and a message."""

    limit: str
    message: str


def parse_limits(value: Any, default: Limits | None = None) -> tuple[Limits, list[str]]:
    """The limits of a JSON object, over those of the run, and all that is wrong with it, each as `field: problem`.

    null takes a limit of the run away.
    """
    default = default or Limits()
    if value is None:
        return default, []
    if not isinstance(value, Mapping):
        return default, [f"is {value!r}; expected an object"]
    names = [field.name for field in fields(Limits)]
    problems = []
    given: dict[str, Any] = {name: getattr(default, name) for name in names}
    for name, limit in value.items():
        if name not in names:
            problems.append(f"{name}: is no limit; expected one of {', '.join(names)}")
        elif limit is None or _is_limit(name, limit):
            given[name] = limit
        else:
            wanted = "a number of seconds above 0" if name.endswith("_s") else "a whole number above 0"
            problems.append(f"{name}: is {limit!r}; expected {wanted}")
    return Limits(**given), problems


def _is_limit(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return False
    return name.endswith("_s") or isinstance(value, int)


class Meter:
    """Meters what one attempt at a sample has used of its limits. All times are monotonic seconds.

    A turn waits from `turn_started` until `assigned`, and between `paused` and `resumed`; the rest is its running time.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.turns = 0
        self.tool_calls = 0
        self.tokens = 0
        self._ran_s = 0.0
        self._runs_since: float | None = None
        self._event_at = 0.0
        self._open = OpenItems()

    def turn_started(self) -> None:
        """Note that turn/start was sent: the turn waits for a worker now."""
        self._earlier_tokens = self.tokens
        self.turns += 1

    def assigned(self, now: float) -> None:
        """Note that the turn runs."""
        self.resumed(now)

    def paused(self, now: float) -> None:
        """Note that the turn waits, for a rate limit for example."""
        if self._runs_since is not None:
            self._ran_s += max(0.0, now - self._runs_since)
            self._runs_since = None

    def resumed(self, now: float) -> None:
        if self._runs_since is None:
            self._runs_since = now
        self._event_at = now

    def event(self, now: float) -> None:
        """Note an event of the turn."""
        self._event_at = now

    def item_started(self, item_id: str, now: float, kind: str) -> None:
        """Note that an item of this type is open: while a command runs, nothing comes, and the turn is not idle."""
        self._event_at = now
        self._open.started(item_id, kind)
        self.tool_calls += kind in TOOL_CALLS

    def item_completed(self, item_id: str, now: float) -> None:
        self._event_at = now
        self._open.completed(item_id)

    def used(self, tokens: int) -> None:
        """The tokens of the running turn's thread so far, all turns together."""
        self.tokens = max(self.tokens, tokens)

    def observe(self, method: str, params: Mapping[str, Any], now: float) -> None:
        """A notification of the running turn, as it came over the wire: does all of the above."""
        if method == "pool/turn/assigned":
            self.assigned(now)
        elif method == "error" and params.get("willRetry"):
            # It waits for the service: for a rate limit to be over, or for the network to be there.
            self.paused(now)
            self._open.cut()
        elif method == "turn/completed":
            self.turn_ended(now)
        else:
            self.resumed(now)
            if method == "thread/tokenUsage/updated":
                self.used(int(params["tokenUsage"]["total"]["totalTokens"]))
            elif method == "item/started":
                item = params["item"]
                self.item_started(item["id"], now, item["type"])
            elif method == "item/completed":
                self.item_completed(params["item"]["id"], now)

    def turn_ended(self, now: float) -> None:
        self.paused(now)
        self._open.clear()

    def ran_s(self, now: float) -> float:
        """Seconds of running, waits left out."""
        return self._ran_s + (0.0 if self._runs_since is None else max(0.0, now - self._runs_since))

    def may_start_turn(self) -> Reached | None:
        """The limit that forbids another turn, if one does."""
        limit = self.limits.turns
        if limit is not None and self.turns >= limit:
            return Reached("turns", f"the sample has had its {plural(limit, 'turn')}")
        return None

    def reached(self, now: float) -> Reached | None:
        """The limit that is reached now, if one is."""
        limits = self.limits
        if limits.tokens is not None and self.tokens > limits.tokens:
            return Reached(
                "tokens", f"the sample used {self.tokens:,} tokens, more than its limit of {limits.tokens:,}"
            )
        if limits.tool_calls is not None and self.tool_calls > limits.tool_calls:
            return Reached("tool_calls", f"the sample made more than its {plural(limits.tool_calls, 'tool call')}")
        if limits.wall_s is not None and self.ran_s(now) >= limits.wall_s:
            return Reached("wall_s", f"the sample ran for its limit of {limits.wall_s:g} s")
        idle_s = limits.idle_s
        if idle_s is not None and self._runs_since is not None and not self._open and now - self._event_at >= idle_s:
            return Reached("idle_s", f"nothing came of the sample for its limit of {idle_s:g} s")
        return None

    def wait_s(self, now: float) -> float | None:
        """Seconds until a limit could be reached without anything happening; None if none could be."""
        if self._runs_since is None:
            return None
        waits = []
        if self.limits.wall_s is not None:
            waits.append(self.limits.wall_s - self.ran_s(now))
        if self.limits.idle_s is not None and not self._open:
            waits.append(self.limits.idle_s - (now - self._event_at))
        return max(0.0, min(waits)) if waits else None


class RunMeter:
    """Use of a run's limits, that of its earlier launches included.

    `cost` is what is known; each of `unknown` attempts and questions, whose cost is not, counts in the limit as much as
    the dearest one that is known. One without a price ends a run with a limit of money.
    """

    def __init__(
        self, limits: RunLimits, started_at: float, *, tokens: int = 0, cost: float = 0.0, unknown: int = 0
    ) -> None:
        self.limits = limits
        self.tokens = tokens
        self.cost = cost
        self.unknown = unknown
        self._dearest: float | None = None
        self._unpriced: str | None = None
        self._started_at = started_at

    def used(self, tokens: int, cost: float | None, *, is_paid: bool = True, unpriced: str | None = None) -> None:
        """An attempt has ended, or a judge's question. `is_paid`: whether an unknown cost may be one at all;
        `unpriced`: the price for want of which it is not known."""
        self.tokens += tokens
        if cost is not None:
            self.cost += cost
            self._dearest = max(cost, self._dearest or 0.0)
        elif is_paid:
            self.unknown += 1
            self._unpriced = self._unpriced or unpriced

    def reached(self, now: float) -> Reached | None:
        """The limit that is reached now, if one is: nothing more is to be started."""
        limits = self.limits
        if limits.tokens is not None and self.tokens >= limits.tokens:
            return Reached("tokens", f"the run used {self.tokens:,} tokens; its limit is {limits.tokens:,}")
        if limits.cost is not None:
            why = self._cost_reached(limits.cost)
            if why is not None:
                return Reached("cost", why)
        if limits.wall_s is not None and now - self._started_at >= limits.wall_s:
            return Reached("wall_s", f"the run took its limit of {limits.wall_s:g} s")
        return None

    def _cost_reached(self, limit: float) -> str | None:
        its_limit = f"its limit is {amount(limit)}"
        if self._unpriced is not None:
            return f"the cost of the run is {UNKNOWN} ({self._unpriced}); {its_limit}"
        counted = self.cost + self.unknown * (self._dearest or 0.0)
        if counted >= limit:
            more = f", with {self.unknown:,} of unknown cost counted as the dearest" if self.unknown else ""
            return f"the run cost {amount(counted)}{more}; {its_limit}"
        if self._dearest is None and self.unknown >= UNKNOWN_LIMIT:
            return (
                f"the cost of the run is {UNKNOWN}: no tokens were reported of {self.unknown:,} attempts; {its_limit}"
            )
        return None

    def wait_s(self, now: float) -> float | None:
        """Seconds until the run's wall limit; None without one."""
        if self.limits.wall_s is None:
            return None
        return max(0.0, self.limits.wall_s - (now - self._started_at))
