"""Options that several verbs share. Nothing heavy is imported here: `--help` must be fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from codex_pool import defaults

F = TypeVar("F", bound=Callable[..., Any])

# Exit codes, the same for every verb.
OK = 0
SOME_FAILED = 1
USAGE = 2
CANNOT_START = 3
INTERRUPTED = 130

_OWN_POOL = ("workers", "turns_per_worker", "overrides", "codex_bin", "demo", "home")


def pool_options(function: F) -> F:
    """`--workers`, `--turns-per-worker`, `-c`, `--codex-bin`: how an own pool is made."""
    for option in (
        click.option(
            "--codex-bin",
            type=click.Path(dir_okay=False),
            help="The codex binary.  [default: the one of the installed runtime package]",
        ),
        click.option(
            "-c",
            "--config",
            "overrides",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_check_overrides,
            help="Override a value of codex's configuration, as in `codex -c`; may be repeated.",
        ),
        click.option(
            "--turns-per-worker",
            type=click.IntRange(min=1),
            default=defaults.TURNS_PER_WORKER,
            show_default=True,
            help="Turns that run at once on one app-server; further ones wait.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            default=defaults.WORKERS,
            show_default=True,
            help="App-server processes.",
        ),
    ):
        function = option(function)
    return function


def connect_option(function: F) -> F:
    """`--connect ENDPOINT`: a running daemon instead of an own pool."""
    return click.option(
        "--connect",
        metavar="ENDPOINT",
        help="Use the daemon at this endpoint instead of an own pool; `default` is the one of `codex-pool serve`.",
    )(function)


def demo_option(function: F) -> F:
    """`--demo`: the loopback model instead of an account."""
    return click.option("--demo", is_flag=True, help="Run on the built-in model on loopback: no account, no network.")(
        function
    )


def endpoint_of(context: click.Context, connect: str | None) -> str | None:
    """The endpoint that `--connect` means, None for an own pool.

    Raises UsageError when options that make an own pool are given besides it, or when it cannot be an endpoint.
    """
    if connect is None:
        return None
    given = [
        parameter
        for parameter in context.command.params
        if parameter.name in _OWN_POOL
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        names = ", ".join(parameter.opts[-1] for parameter in given)
        raise click.UsageError(f"{names} makes an own pool and cannot go with --connect; give it to codex-pool serve")
    from codex_pool import endpoints

    if connect == "default":
        return endpoints.default_endpoint()
    try:
        endpoints.ipc_path(connect)
    except endpoints.EndpointError as error:
        raise click.UsageError(str(error)) from None
    return connect


def _check_overrides(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for override in value:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{override!r} is not of the form KEY=VALUE")
    return value
