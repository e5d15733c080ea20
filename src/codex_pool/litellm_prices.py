"""Prices from the table of LiteLLM, `model_prices_and_context_window.json`: of an installed litellm, or a copy.

An installed one is found by the metadata of its package and never imported. The table gives prices per token in US
dollars; names of fields are those of https://github.com/BerriAI/litellm:

    input_cost_per_token, output_cost_per_token, cache_read_input_token_cost, cache_creation_input_token_cost,
    output_cost_per_reasoning_token     each also with `_above_200k_tokens`, `_priority`, `_flex`, or both
    tiered_pricing                      a list of such prices with a `range` of input tokens
    search_context_cost_per_query       of one web search
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server._runtime.files import read_file

from .prices import PER_TOKENS, Price, Prices, PricesError, is_price, read_prices, with_tiers

NAME = "litellm"
TABLE = "model_prices_and_context_window.json"
_PACKAGED = "model_prices_and_context_window_backup.json"
_FIELDS = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "reasoning",
}
_FIELD = re.compile(rf"({'|'.join(_FIELDS)})(?:_above_(\d+)(k?)_tokens)?(?:_([a-z]+))?")
_SEARCH, _SEARCH_SIZE = "search_context_cost_per_query", "search_context_size_medium"
# Tiers for work that is handed in as a file: codex does not.
_LEFT_OUT = frozenset({"batches"})

_Parts = dict[tuple[str | None, int], dict[str, float]]


def find_prices(asked: str) -> Prices:
    """The prices that `--prices` names: `litellm`, `litellm:FILE`, or a TOML file. Raises PricesError."""
    kind, colon, name = asked.partition(":")
    if kind != NAME:
        return read_prices(Path(asked))
    if colon:
        if not name:
            raise PricesError([f"--prices {asked}: the file is missing; expected {NAME}:FILE, a copy of {TABLE}"])
        return read_table(Path(name).expanduser())
    return read_table(*installed())


def installed() -> tuple[Path, str]:
    """The table of an installed litellm, and what to call it. Raises PricesError."""
    try:
        distribution = importlib.metadata.distribution(NAME)
        version = distribution.version
        places = [Path(str(distribution.locate_file(f"{NAME}/{name}"))) for name in (_PACKAGED, TABLE)]
        places += [Path(str(file.locate())) for file in distribution.files or () if file.name in (_PACKAGED, TABLE)]
    except importlib.metadata.PackageNotFoundError:
        raise PricesError(
            [
                f"--prices {NAME}: no litellm is installed for this Python; pip install litellm, or give "
                f"{NAME}:FILE, a copy of its {TABLE}"
            ]
        ) from None
    # One that is installed from a checkout: looking for a package does not import it.
    spec = importlib.util.find_spec(NAME)
    for directory in (spec.submodule_search_locations or ()) if spec is not None else ():
        places += [Path(directory) / _PACKAGED, Path(directory).parent / TABLE]
    for path in places:
        if path.is_file():
            return path, f"litellm {version}: {path}"
    raise PricesError(
        [f"--prices {NAME}: litellm {version} is installed without {_PACKAGED}; give {NAME}:FILE, a copy of {TABLE}"]
    )


def read_table(path: Path, name: str | None = None) -> Prices:
    """The prices of a copy of the table. Raises PricesError."""
    try:
        text = read_file(path)
    except OSError as error:
        raise PricesError([f"{path}: {error.strerror}; expected a copy of LiteLLM's {TABLE}"]) from None
    return parse_table(text, name or f"litellm: {path}")


def parse_table(text: bytes, name: str) -> Prices:
    """The prices of the table's JSON; `name` is what messages call it. Raises PricesError.

    Entries without prices of input and output tokens are left out: their models have no known price.
    """
    try:
        table = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PricesError([f"{name}: not JSON: {error}"]) from None
    if not isinstance(table, dict):
        raise PricesError([f"{name}: expected an object with an entry for each model, as in LiteLLM's {TABLE}"])
    models = {}
    for model, entry in table.items():
        price = _price(entry) if isinstance(entry, dict) and model != "sample_spec" else None
        if price is not None:
            models[model] = price
    if not models:
        raise PricesError([f"{name}: no entry has input_cost_per_token and output_cost_per_token"])
    return Prices("USD", models, name)


def _price(entry: Mapping[str, Any]) -> Price | None:
    parts: _Parts = {}
    for key, value in entry.items():
        found = _FIELD.fullmatch(key)
        if found is None or found[4] in _LEFT_OUT or not is_price(value):
            continue
        threshold = int(found[2] or 0) * (1000 if found[3] else 1)
        # `above_1hr`, a cache kept for longer, does not match: codex asks for none.
        parts.setdefault((found[4], threshold), {})[_FIELDS[found[1]]] = value * PER_TOKENS
    for tier in entry.get("tiered_pricing") or ():
        span = tier.get("range") if isinstance(tier, dict) else None
        if not isinstance(span, list) or not span or not is_price(span[0]):
            return None
        rates = {name: tier[key] * PER_TOKENS for key, name in _FIELDS.items() if is_price(tier.get(key))}
        parts.setdefault((None, int(span[0])), {}).update(rates)
    plain = parts.get((None, 0), {})
    if "input" not in plain or "output" not in plain:
        return None
    has_reasoning = any("reasoning" in rates for rates in parts.values())
    tiers = {tier for tier, _ in parts if tier is not None}
    search = entry.get(_SEARCH)
    cost = search.get(_SEARCH_SIZE) if isinstance(search, dict) else None
    price = _with_sizes(parts, None, has_reasoning, cost if is_price(cost) else None)
    return with_tiers(price, {tier: _with_sizes(parts, tier, has_reasoning, None) for tier in tiers})


def _with_sizes(parts: _Parts, tier: str | None, has_reasoning: bool, search: float | None) -> Price:
    sizes = sorted(threshold for of, threshold in parts if of == tier and threshold)
    above = tuple((threshold, _rates(parts[tier, threshold], has_reasoning)) for threshold in sizes)
    plain = _rates(parts.get((tier, 0), {}), has_reasoning)
    return Price(
        plain.input, plain.cached_input, plain.output, plain.cache_write, plain.reasoning, above, web_search=search
    )


def _rates(given: Mapping[str, float], has_reasoning: bool) -> Price:
    reasoning = given.get("reasoning")
    output = given.get("output")
    # Where reasoning is priced apart somewhere, it is not known to be output elsewhere.
    if has_reasoning and reasoning is None:
        output = None
    return Price(given.get("input"), given.get("cached_input"), output, given.get("cache_write"), reasoning)
