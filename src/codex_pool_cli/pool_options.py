"""Options of a pool on the command line, each made of a field of PoolOptions, and `--pool-config`, a file of them.

A daemon takes them from its default file and from the environment too (see `codex_pool.option_sources`); a pool that
belongs to a run does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from codex_pool.options import GROUPS, OF_RUNS, Field, Group, PoolOptions, fields, options_of

from . import options
from .groups import group

if TYPE_CHECKING:
    from codex_pool.option_sources import Given

F = TypeVar("F", bound=Callable[..., Any])
_GIVEN = "codex_pool_cli.pool_options"
_OF_DAEMON = (
    "variables CODEX_POOL_<OPTION> and the command line go before.  [default: $CODEX_POOL_CONFIG, else "
    "codex-pool/config.toml in the user's configuration, if it is there]"
)
_TITLES: dict[Group, str] = {
    "Workers": "The pool",
    "Connections": "Where clients connect",
    "Users": "Users of a pool",
    "Recycling": "When workers are replaced",
    "Limits of turns": "When turns are ended",
    "Stopping": "When it is stopped",
}


class _Value(click.ParamType):  # type: ignore[type-arg]  # It is generic in some versions only.
    """The value of an option, checked as `Pool` checks its keyword; 0 is no limit."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self.name = {int: "integer", float: "float", str: "text", bool: "boolean"}[field.kind]

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        field = self._field
        if isinstance(value, str):
            value = field.of_text(value)
        if field.is_none(value):
            return None
        problem = field.problem(value, none="0")
        if problem is not None:
            raise click.UsageError(f"{field.flag} {problem}", context)
        return value


def _option(field: Field) -> Callable[[F], F]:
    limit = field.optional and field.kind is not str
    help_text = field.option.help
    if field.default is None:
        help_text += f"  [default: {field.option.default}]"
    elif limit:
        help_text += "  [0: no limit]"
    names = (field.name, field.flag, *([field.option.alias] if field.option.alias else []))
    if field.kind is bool:
        return click.option(*names, type=_Value(field), is_flag=True, default=field.default, help=help_text)
    return click.option(
        *names,
        type=_Value(field),
        metavar=field.option.metavar if field.kind is str else None,
        default=field.default,
        show_default=field.default is not None,
        help=help_text,
    )


def _use(context: click.Context, values: dict[str, Any]) -> None:
    """Have these values in place of defaults. None would be no value, and 0 is no limit."""
    plain = {name: 0 if value is None else value for name, value in values.items()}
    context.default_map = {**(context.default_map or {}), **plain}


def _read_for_run(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    from codex_app_server import InvalidInputError
    from codex_pool.option_sources import read_options

    try:
        _use(context, read_options(value, OF_RUNS))
    except InvalidInputError as error:
        raise click.UsageError(str(error), context) from None
    return value


def _read_for_daemon(*, shows_problems: bool) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    def read(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if context.resilient_parsing:
            return value
        from codex_pool.option_sources import read_given

        given = context.meta[_GIVEN] = read_given(value, os.environ)
        if given.problems and not shows_problems:
            raise click.UsageError("\n".join(map(str, given.problems)), context)
        _use(context, {name: each.value for name, each in given.values.items()})
        return value

    return read


def given_of(context: click.Context) -> Given:
    """Return what the sources of a daemon give, in one of its commands."""
    given: Given = context.meta[_GIVEN]
    return given


def flags_of(context: click.Context) -> dict[str, Any]:
    """The options of the pool that the command line gives."""
    return {
        field.name: context.params[field.name]
        for field in fields()
        if context.get_parameter_source(field.name) is click.core.ParameterSource.COMMANDLINE
    }


def pool_options(*, of_run: bool) -> Callable[[F], F]:
    """Give a command every option of a pool, `--pool-config`, `-c` and `--codex-bin`; see `take`.

    `of_run`: the pool is a run's own, to which no other program connects.
    """
    if of_run:
        file = _file(_read_for_run, "those of the command line go before.")
    else:
        file = _file(_read_for_daemon(shows_problems=False), _OF_DAEMON)
    return _options(OF_RUNS if of_run else GROUPS, lambda function: file(options.app_server_options(function)))


def daemon_options(function: F) -> F:
    """Give a command the options of a daemon's pool. `given_of` has what is wrong with its file and its environment."""
    return _options(GROUPS, _file(_read_for_daemon(shows_problems=True), _OF_DAEMON))(function)


def _options(groups: tuple[Group, ...], first: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        # What stands below, such as --home, belongs to the pool too.
        function = group(_TITLES["Workers"])(function)
        for title in reversed(groups):
            if title == "Workers":
                function = first(function)
            for field in reversed(fields(groups=(title,))):
                function = _option(field)(function)
            function = group(_TITLES[title])(function)
        return function

    return decorate


def _file(read: Callable[[click.Context, click.Parameter, str | None], str | None], rest: str) -> Callable[[F], F]:
    return click.option(
        "--pool-config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=read,
        help=f"Options of the pool in a TOML file, named as keywords of Pool, as in workers = 4; {rest}",
    )


def take(given: dict[str, Any], *, of_run: bool = False) -> PoolOptions:
    """The options of the pool, taken out of a command's keywords.

    `of_run`: as in `pool_options`; a run has options of its own by the names of others, such as `prices`.
    """
    groups = OF_RUNS if of_run else GROUPS
    return options_of({field.name: given.pop(field.name) for field in fields(groups=groups) if field.name in given})
