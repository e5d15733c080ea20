"""Options in groups, so that a long help can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def group(title: str) -> Callable[[F], F]:
    """The options of decorators below this one, down to the next group, stand under `title` in the help."""

    def decorate(function: F) -> F:
        for option in getattr(function, "__click_params__", ()):
            if isinstance(option, click.Option) and not hasattr(option, "group_title"):
                option.group_title = title  # type: ignore[attr-defined]
        return function

    return decorate


class Grouped(click.Command):
    """A command whose options stand in groups."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group_title", "Other"), []).append(record)
        # What belongs to nothing in particular, `--help`, comes last.
        groups["Other"] = groups.pop("Other", [])
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)
