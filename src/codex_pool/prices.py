"""Prices of tokens by model, and the cost of model requests at them. Pure but for reading a TOML file.

currency = "USD"

[models."gpt-5.1-codex"]
input = 1.25          # per million tokens
cached_input = 0.125  # of the input tokens, those read from a cache; as input unless given
cache_write = 1.5625  # of the input tokens, those written to a cache
output = 10.0         # reasoning included, unless reasoning is given
web_search = 0.01     # one search

[[models."gpt-5.1-codex".above]]  # a request with more input than this
input_tokens = 200000
input = 2.5
output = 15.0

[models."gpt-5.1-codex".service_tiers.priority]
input = 2.5
output = 20.0

A price that is not given makes the cost of what needs it unknown, which is None here and never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from codex_app_server._runtime.files import read_text_file

PER_TOKENS = 1_000_000
ANY_MODEL = "*"
UNKNOWN = "unknown"
# Service tiers at the price that a model has without one; codex writes `fast` for what the service calls priority.
_STANDARD = frozenset({"default", "standard", "auto"})
_TIER_NAMES = {"fast": "priority"}
_RATES = ("input", "cached_input", "cache_write", "output", "reasoning")
_FIELDS = (*_RATES, "web_search")
_TIERS, _ABOVE, _THRESHOLD = "service_tiers", "above", "input_tokens"


class PricesError(ValueError):
    """A table of prices that cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Price:
    """Prices of one model, per million tokens; None where one is not known.

    `reasoning` None: reasoning is priced as output. `above`: (input tokens, prices) of requests with more input than
    that, in rising order. `service_tiers`: prices by service tier, instead of these. `web_search`: one search.
    """

    input: float | None
    cached_input: float | None
    output: float | None
    cache_write: float | None = None
    reasoning: float | None = None
    above: tuple[tuple[int, Price], ...] = ()
    service_tiers: Mapping[str, Price] = field(default_factory=dict)
    web_search: float | None = None

    def cost(self, usage: Mapping[str, int], *, requests: int | None = 1) -> float:
        """The cost of model requests. `requests` None: their number, and so their size, is not known.

        Raises UnpricedError.
        """
        given = usage.get("input_tokens", 0)
        rates = self
        for threshold, prices in self.above:
            if given > threshold:
                if requests != 1:
                    raise UnpricedError(f"requests of more than {threshold:,} input tokens cannot be told apart")
                rates = prices
        cached = min(usage.get("cached_input_tokens", 0), given)
        written = min(usage.get("cache_write_input_tokens", 0), given - cached)
        made = usage.get("output_tokens", 0)
        reasoned = 0 if rates.reasoning is None else min(usage.get("reasoning_output_tokens", 0), made)
        parts = (
            (given - cached - written, rates.input, "input"),
            (cached, rates.cached_input, "cached input"),
            (written, rates.cache_write, "cache writes"),
            (made - reasoned, rates.output, "output"),
            (reasoned, rates.reasoning, "reasoning"),
        )
        total = 0.0
        for tokens, rate, name in parts:
            if tokens:
                if rate is None:
                    raise UnpricedError(f"no price of {name}{_of_size(rates, self)}")
                total += tokens * rate
        return total / PER_TOKENS


class UnpricedError(ValueError):
    """A cost that is not known; the message names the missing price."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by model. `*` stands for every model that is not named."""

    currency: str = "USD"
    models: Mapping[str, Price] = field(default_factory=dict)
    source: str = field(default="", compare=False)
    """The file they are of, and the version of what it belongs to."""

    def price(self, model: str | None, provider: str | None = None, tier: str | None = None) -> Price:
        """The prices of a model at a service tier: those of `provider/model`, of `model`, or of `*`.

        Raises UnpricedError, naming what has none.
        """
        names = (f"{provider}/{model}", model, ANY_MODEL) if model is not None else (ANY_MODEL,)
        found = next((self.models[name] for name in names if name in self.models), None)
        if found is None:
            named = "a model that is not known" if model is None else f"model {model!r}"
            raise UnpricedError(f"no price of {named}")
        tier = _TIER_NAMES.get(tier, tier) if tier is not None else None
        if tier is None or tier in _STANDARD:
            return found
        if tier not in found.service_tiers:
            raise UnpricedError(f"no price of model {model!r} at service tier {tier!r}")
        return found.service_tiers[tier]

    def knows(self, model: str) -> bool:
        """Return True if the model has a price, with some provider at least."""
        ending = f"/{model}"
        return model in self.models or ANY_MODEL in self.models or any(each.endswith(ending) for each in self.models)

    def cost(self, usage: Mapping[str, int] | None, model: str | None) -> float | None:
        """The cost of one model request, in `currency`; None where that is not known.

        `usage` as in a record: tokens read from and written to a cache are part of the input, reasoning of the output.
        """
        if usage is None:
            return None
        try:
            return self.price(model).cost(usage)
        except UnpricedError:
            return None


def amount(value: float | None, currency: str | None = None) -> str:
    """A sum of money as people read it: `unknown`, or with as many digits that it is not shown as nothing."""
    if value is None:
        return UNKNOWN
    if value == 0 or abs(value) >= 0.995:
        figure = f"{value:,.2f}"
    else:
        figure = f"{value:.{max(4, 1 - math.floor(math.log10(abs(value))))}f}"
    return f"{figure} {currency}" if currency else figure


def read_prices(path: Path) -> Prices:
    """The prices of a TOML file. Raises PricesError."""
    try:
        return parse_prices(read_text_file(path), str(path))
    except OSError as error:
        raise PricesError([f"{path}: {error.strerror}; expected a TOML file of prices"]) from None
    except UnicodeDecodeError:
        raise PricesError([f"{path}: not UTF-8; expected a TOML file of prices"]) from None


def parse_prices(text: str, name: str) -> Prices:
    """The prices of TOML text; `name` is what messages call it. Raises PricesError with all problems at once."""
    try:
        table: dict[str, Any] = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise PricesError([f"{name}: not TOML: {error}"]) from None
    problems = [f"{name}: {key}: expected currency or models" for key in table if key not in ("currency", "models")]
    currency, models = table.get("currency", "USD"), table.get("models")
    if not isinstance(currency, str) or not currency.strip():
        problems.append(f"{name}: currency: is {currency!r}; expected a name such as USD")
    if not isinstance(models, dict) or not models:
        problems.append(f'{name}: models: is missing; expected a table for each model, [models."NAME"]')
        models = {}
    prices = {}
    for model, given in models.items():
        reader = _Reader(problems)
        prices[model] = reader.price(given, f"{name}: models.{model}", (*_FIELDS, _ABOVE, _TIERS))
    if problems:
        raise PricesError(problems)
    return Prices(currency, prices, name)


class _Reader:
    """Reads the table of a model; what is wrong with it is added to `problems`."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def price(self, given: Any, where: str, known: Sequence[str]) -> Price:
        if not isinstance(given, dict):
            self._problems.append(f"{where}: is {given!r}; expected {', '.join(_FIELDS)} per million tokens")
            return _NOTHING
        wrong = [f"{where}: {key}: expected one of {', '.join(known)}" for key in given if key not in known]
        wrong += [f"{where}: {key}: is missing" for key in ("input", "output") if key not in given]
        wrong += [
            f"{where}: {key}: is {value!r}; expected a price of at least 0"
            for key, value in given.items()
            if key in _FIELDS and not is_price(value)
        ]
        above = given.get(_ABOVE, []) if _ABOVE in known else []
        tiers = given.get(_TIERS, {}) if _TIERS in known else {}
        if not isinstance(above, list):
            wrong.append(f"{where}: {_ABOVE}: is {above!r}; expected tables, each with {_THRESHOLD}")
        if not isinstance(tiers, dict):
            wrong.append(f"{where}: {_TIERS}: is {tiers!r}; expected a table for each service tier")
        self._problems += wrong
        larger = {}
        for place, one in enumerate(above if isinstance(above, list) else ()):
            at = f"{where}: {_ABOVE}[{place}]"
            prices = self.price(one, at, (*_RATES, _THRESHOLD))
            threshold = one.get(_THRESHOLD) if isinstance(one, dict) else None
            if not isinstance(threshold, int) or isinstance(threshold, bool) or threshold <= 0:
                self._problems.append(f"{at}: {_THRESHOLD}: is {threshold!r}; expected a whole number above 0")
            else:
                larger[threshold] = prices
        of_tiers = {
            name: self.price(one, f"{where}: {_TIERS}.{name}", (*_FIELDS, _ABOVE))
            for name, one in (tiers if isinstance(tiers, dict) else {}).items()
        }
        if wrong:
            return _NOTHING
        rates: dict[str, Any] = {name: given.get(name) for name in _FIELDS}
        # Without a discount of its own, cached input costs what input costs.
        rates["cached_input"] = given.get("cached_input", given["input"])
        return with_tiers(Price(**rates, above=tuple(sorted(larger.items()))), of_tiers)


def with_tiers(price: Price, tiers: Mapping[str, Price]) -> Price:
    """Add the prices of service tiers. A size of requests that is priced apart has no known price in a tier that does
    not name it."""
    sizes = dict(price.above)
    complete = {}
    for name, tier in tiers.items():
        above = dict.fromkeys(sizes, _NOTHING) | dict(tier.above)
        search = price.web_search if tier.web_search is None else tier.web_search
        complete[_TIER_NAMES.get(name, name)] = _replace(tier, above=tuple(sorted(above.items())), web_search=search)
    return _replace(price, service_tiers=complete)


def is_price(value: Any) -> bool:
    """True for a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _replace(price: Price, **changes: Any) -> Price:
    fields = {name: getattr(price, name) for name in price.__dataclass_fields__}
    return Price(**(fields | changes))


def _of_size(rates: Price, of: Price) -> str:
    if rates is of:
        return ""
    return f" of requests with more than {next(limit for limit, each in of.above if each is rates):,} input tokens"


_NOTHING = Price(None, None, None)
