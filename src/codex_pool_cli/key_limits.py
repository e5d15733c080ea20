"""Options of `codex-pool keys` for the limits of a key, and their words in a list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
NONE = "none"
# Options with a value that always counts, and those that may be `none`.
_BOUNDS = {
    "max_message_bytes": "Bytes of one message.",
    "max_sessions": "Sessions at once.",
    "max_threads": "Threads, archived ones left out.",
    "max_turns": "Turns that run and wait, together.",
    "priority": "Share of turns beside other principals, 1 to 100; the pool's owner has 10.",
}
_LIMITS = {
    "max_running_turns": "Turns that run at once, sub-agents' among them; further ones wait.",
    "max_waiting_turns": "Turns that wait; further ones are refused.",
    "max_tokens_per_day": "Input and output tokens a day, of UTC.",
    "max_tokens": "Input and output tokens in all.",
    "max_spend_per_day": "Spend a day, in the currency of `serve --prices`.",
    "max_spend": "Spend in all.",
}


class _Limit(click.ParamType[Any]):
    """A number, or `none`."""

    def __init__(self, kind: type[int | float]) -> None:
        self._kind = kind
        self.name = "amount" if kind is float else "integer"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, self._kind) or value == NONE:
            return value
        try:
            number = self._kind(str(value).replace("_", ""))
        except ValueError:
            number = self._kind(-1)
        if not number >= 0:
            self.fail(f"{value!r} is neither {NONE} nor a number of at least 0", param, context)
        return number


def limit_options(function: F) -> F:
    """Add an option for each limit; `taken` takes them out of the arguments."""
    for name, text in reversed(_LIMITS.items()):
        money = "spend" in name
        kind, metavar = _Limit(float if money else int), "AMOUNT" if money else "N"
        option = click.option(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=f"{text}  [or none]")
        function = option(function)
    for name, text in reversed(_BOUNDS.items()):
        function = click.option(f"--{name.replace('_', '-')}", type=click.IntRange(min=1), help=text)(function)
    return function


def taken(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of Identity that were given; `none` is None there."""
    found = {name: given[name] for name in (*_BOUNDS, *_LIMITS) if given.get(name) is not None}
    return {name: None if value == NONE else value for name, value in found.items()}


def words(entry: Any) -> str:
    """The limits of a key beyond what every key has, for a list; "" without any."""
    from codex_pool.auth.principal import Identity

    usual = Identity(name="")
    found = []
    for name in (*_BOUNDS, *_LIMITS):
        value = getattr(entry, name)
        if value != getattr(usual, name):
            shown = f"{value:,g}" if isinstance(value, float) else f"{value:,}"
            found.append(f"{name.removeprefix('max_').replace('_', ' ')} {shown}")
    return ", ".join(found)
