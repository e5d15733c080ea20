"""Usage of principals: rows of what turns have used, by day, principal and model, and their costs. Pure.

A day is of UTC. The tokens that count against a limit are input and output together, cached and reasoning ones among
them. Two figures of money go with each row:

    cost    at the standard prices; not known where a model has no price, or where prices depend on the size of single
            requests and tokens were reported for several together
    most    what it can have cost at most, which counts against limits: the highest of the model's prices, of all sizes
            of requests and service tiers. A model that is not known counts as the most expensive that the principal
            has used, one without a price as the most expensive of the table
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from ..prices import PER_TOKENS, Price, Prices, UnpricedError
from ..protocol.wire_types import Tokens

DAY_S = 86400


class UsageKey(NamedTuple):
    """Key of a row: a day in days since 1970, a principal ("" is the pool's owner), a model ("" is not known), and the
    currency of its money ("" without prices)."""

    day: int
    principal: str
    model: str
    currency: str


class UsageSums(msgspec.Struct, frozen=True):
    """Sums of a row. `unpriced`: how many of its parts have no known cost, which `cost` leaves out."""

    turns: int = 0
    tokens: Tokens = Tokens()
    cost: float = 0.0
    most: float = 0.0
    unpriced: int = 0

    def __add__(self, other: UsageSums) -> UsageSums:
        return UsageSums(
            self.turns + other.turns,
            self.tokens + other.tokens,
            self.cost + other.cost,
            self.most + other.most,
            self.unpriced + other.unpriced,
        )


class Used(NamedTuple):
    """Sums that count against limits."""

    tokens: int = 0
    spend: float = 0.0

    def plus(self, other: Used) -> Used:
        """Add another one."""
        return Used(self.tokens + other.tokens, self.spend + other.spend)


def total(tokens: Tokens) -> int:
    """Count the tokens that count against a limit."""
    return tokens.input + tokens.output


class Rates:
    """Costs by the prices of a pool; without prices, no cost is known and none counts."""

    def __init__(self, prices: Prices | None) -> None:
        self._prices = prices
        self.currency = prices.currency if prices is not None else ""
        self._highest: dict[str, Price] = {}

    def sums(self, turns: int, tokens: Tokens, model: str, used: Iterable[str] = ()) -> UsageSums:
        """The sums of turns of one model; `used` as of `most`."""
        cost = self._cost(tokens, model)
        return UsageSums(turns, tokens, cost or 0.0, self.most(tokens, model, used), int(cost is None))

    def used(self, key: UsageKey, sums: UsageSums) -> Used:
        """Return what a row counts against limits; one in another currency counts at the present prices."""
        spend = sums.most if key.currency == self.currency else self.most(sums.tokens, key.model)
        return Used(total(sums.tokens), spend)

    def has_price(self, model: str) -> bool:
        """Return True if the model has a price. One that is not known has none."""
        try:
            return self._prices is not None and self._prices.price(model or None) is not None
        except UnpricedError:
            return False

    def most(self, tokens: Tokens, model: str, used: Iterable[str] = ()) -> float:
        """The highest cost that these tokens of a model can have; 0 without prices.

        `used`: models that the principal has used, of which a model that is not known counts as the most expensive.
        """
        if self._prices is None or tokens == Tokens():
            return 0.0
        if not model and (known := [each for each in used if each]):
            return max(self.most(tokens, each) for each in known)
        price = self._highest_of(model)
        cached = min(tokens.cached, tokens.input)
        reasoning = min(tokens.reasoning, tokens.output)
        parts = (
            (tokens.input - cached, max(price.input or 0.0, price.cache_write or 0.0)),
            (cached, price.cached_input or 0.0),
            (tokens.output - reasoning, price.output or 0.0),
            (reasoning, price.reasoning or 0.0),
        )
        return sum(count * rate for count, rate in parts) / PER_TOKENS

    def _cost(self, tokens: Tokens, model: str) -> float | None:
        if self._prices is None:
            return None
        usage = {
            "input_tokens": tokens.input,
            "cached_input_tokens": tokens.cached,
            "output_tokens": tokens.output,
            "reasoning_output_tokens": tokens.reasoning,
        }
        try:
            return self._prices.price(model or None).cost(usage, requests=None)
        except UnpricedError:
            return None

    def _highest_of(self, model: str) -> Price:
        """The highest price of each kind of token, of a model or, where that has none, of the table."""
        found = self._highest.get(model)
        if found is None:
            assert self._prices is not None
            try:
                prices: Iterable[Price] = [self._prices.price(model or None)]
            except UnpricedError:
                prices = self._prices.models.values()
            found = self._highest[model] = _highest(prices)
            while len(self._highest) > 1000:
                del self._highest[next(iter(self._highest))]
        return found


def _highest(prices: Iterable[Price]) -> Price:
    """The highest of each kind, over sizes of requests and service tiers."""
    waiting, each = list(prices), []
    while waiting:
        price = waiting.pop()
        each.append(price)
        waiting += [above for _, above in price.above]
        waiting += price.service_tiers.values()

    def highest(values: Iterable[float | None]) -> float:
        return max((value for value in values if value is not None), default=0.0)

    outputs = highest(price.output for price in each)
    return Price(
        input=highest(price.input for price in each),
        # Where no discount is known, cached input costs what input costs.
        cached_input=highest(price.input if price.cached_input is None else price.cached_input for price in each),
        output=outputs,
        cache_write=highest(price.cache_write for price in each),
        reasoning=highest([outputs, *(price.reasoning for price in each)]),
    )


def merged(rows: Mapping[UsageKey, UsageSums], more: Mapping[UsageKey, UsageSums]) -> dict[UsageKey, UsageSums]:
    """Add rows to others."""
    found = dict(rows)
    for key, sums in more.items():
        found[key] = found[key] + sums if key in found else sums
    return found
