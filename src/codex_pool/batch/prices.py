"""What tokens cost: a table of prices by model, in a TOML file. Pure but for reading it.

currency = "USD"

[models."gpt-5.1-codex"]
input = 1.25          # per million tokens
cached_input = 0.125  # of the input tokens, those that were cached
output = 10.0         # reasoning included
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from codex_app_server._files import read_text_file

PER_TOKENS = 1_000_000
ANY_MODEL = "*"
_FIELDS = ("input", "cached_input", "output")


class PricesError(ValueError):
    """A table of prices that cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Price:
    """Of one model, per million tokens."""

    input: float
    cached_input: float
    output: float


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by model. `*` stands for every model that is not named."""

    currency: str = "USD"
    models: Mapping[str, Price] = field(default_factory=dict)

    def cost(self, usage: Mapping[str, int] | None, model: str | None) -> float | None:
        """What tokens of a model cost, in `currency`; None where that is not known.

        `usage` as in a record: cached tokens are part of the input, reasoning part of the output.
        """
        price = self.models.get(model or ANY_MODEL, self.models.get(ANY_MODEL))
        if price is None or usage is None:
            return None
        cached = min(usage.get("cached_input_tokens", 0), usage.get("input_tokens", 0))
        return (
            (usage.get("input_tokens", 0) - cached) * price.input
            + cached * price.cached_input
            + usage.get("output_tokens", 0) * price.output
        ) / PER_TOKENS


def read_prices(path: Path) -> Prices:
    """The prices of a file. Raises PricesError."""
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
        where = f"{name}: models.{model}"
        if not isinstance(given, dict):
            problems.append(f"{where}: is {given!r}; expected {', '.join(_FIELDS)} per million tokens")
            continue
        wrong = [f"{where}: {key}: expected one of {', '.join(_FIELDS)}" for key in given if key not in _FIELDS]
        wrong += [f"{where}: {key}: is missing" for key in ("input", "output") if key not in given]
        wrong += [
            f"{where}: {key}: is {value!r}; expected a price of at least 0"
            for key, value in given.items()
            if key in _FIELDS and not _is_price(value)
        ]
        if wrong:
            problems += wrong
        else:
            # Who names no discount has none.
            prices[model] = Price(**{"cached_input": given["input"], **given})
    if problems:
        raise PricesError(problems)
    return Prices(currency, prices)


def _is_price(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
