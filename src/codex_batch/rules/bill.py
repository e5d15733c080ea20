"""Bill: the cost of the model requests of one thread, added up as its tokens are reported. Pure.

`thread/tokenUsage/updated` comes after each model request, with the tokens of the thread so far (`total`) and of that
request (`last`); measured on codex 0.163.0. Prices that depend on the size of a request need each one separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from codex_pool.prices import Prices, UnpricedError

TOKENS = {
    "inputTokens": "input_tokens",
    "cachedInputTokens": "cached_input_tokens",
    "cacheWriteInputTokens": "cache_write_input_tokens",
    "outputTokens": "output_tokens",
    "reasoningOutputTokens": "reasoning_output_tokens",
    "totalTokens": "total_tokens",
}
_NOTHING = dict.fromkeys(TOKENS.values(), 0)


class Answering(NamedTuple):
    """Model, provider and service tier of a thread, as far as they are known."""

    model: str | None = None
    provider: str | None = None
    tier: str | None = None


def tokens_of(reported: Mapping[str, Any]) -> dict[str, int]:
    """Tokens as a record has them, of those that an app-server has reported. Raises KeyError, TypeError, ValueError."""
    # Cache writes are not reported by all versions.
    return {
        name: int(reported[wire] if wire != "cacheWriteInputTokens" else reported.get(wire, 0))
        for wire, name in TOKENS.items()
    }


class Bill:
    """See the module's docstring. `prices` None: nothing is known of money."""

    def __init__(self, prices: Prices | None, answering: Answering) -> None:
        self._prices = prices
        self._answering = answering
        self._cost = 0.0
        self._seen: dict[str, int] = _NOTHING
        self._is_reported = False
        self.unpriced: str | None = None
        """The price for want of which the cost is not known, if that is why."""

    @property
    def cost(self) -> float | None:
        """The cost so far; None where it is not known, and where no tokens have been reported."""
        return self._cost if self._prices is not None and self._is_reported and self.unpriced is None else None

    def rerouted(self, model: str) -> None:
        """Another model answers from now on."""
        self._answering = self._answering._replace(model=model)

    def used(self, total: Mapping[str, int], last: Mapping[str, int] | None = None) -> None:
        """Add what the thread has used since the last report. `last`: its last request, where that is known."""
        since = {name: total.get(name, 0) - self._seen.get(name, 0) for name in _NOTHING}
        self._is_reported = True
        if not any(since.values()):
            return
        self._seen = dict(total)
        if min(since.values()) < 0:
            self._unknown("the tokens of its thread were counted from zero again")
            return
        is_one = last is not None and all(last.get(name, 0) == tokens for name, tokens in since.items())
        self._add(since, self._answering, 1 if is_one else None)

    def used_by_agent(self, total: Mapping[str, int], model: str | None) -> None:
        """Add all that a sub-agent's thread has used, of a model of its own if it has one."""
        answering = self._answering if model is None else self._answering._replace(model=model)
        self._add(total, answering, None)

    def searched(self, times: int) -> None:
        """Add web searches."""
        if self._prices is None or not times:
            return
        try:
            price = self._prices.price(*self._answering)
        except UnpricedError as error:
            self._unknown(str(error))
            return
        if price.web_search is None:
            self._unknown("no price of a web search")
        else:
            self._cost += times * price.web_search

    def made_image(self) -> None:
        """Add an image that was made: no table of prices here has one for it."""
        self._unknown("no price of an image")

    def _add(self, usage: Mapping[str, int], answering: Answering, requests: int | None) -> None:
        if self._prices is None:
            return
        try:
            self._cost += self._prices.price(*answering).cost(usage, requests=requests)
        except UnpricedError as error:
            named = "" if "model" in str(error) else f" of model {answering.model!r}"
            self._unknown(f"{error}{named}")

    def _unknown(self, why: str) -> None:
        if self._prices is not None and self.unpriced is None:
            self.unpriced = why
