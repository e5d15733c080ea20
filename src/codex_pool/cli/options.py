"""Options that several verbs share. Nothing heavy is imported here: `--help` must be fast."""

from __future__ import annotations

import os
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
HUNG_UP = 129
INTERRUPTED = 130

_OWN_POOL = ("workers", "turns_per_worker", "overrides", "codex_bin", "demo", "demo_script", "home")


def as_text(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Callback for words that are compared with text of files: what is UTF-8 is that, whatever the locale."""
    if isinstance(value, str):
        try:
            return os.fsencode(value).decode("utf-8")
        except UnicodeError:
            return value
    return tuple(as_text(context, parameter, each) for each in value) if isinstance(value, tuple) else value


def pool_options(function: F) -> F:
    """`--workers`, `--turns-per-worker`, `-c`, `--codex-bin`: how an own pool is made."""
    for option in (
        click.option(
            "--codex-bin",
            metavar="FILE",
            help="The codex binary; a name without a separator is looked for on PATH.  [default: the one of the "
            "installed runtime package]",
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


def limit_options(function: F) -> F:
    """`--recycle-...`, `--turn-...`: when a worker is replaced, and when a turn has taken too long."""
    count, seconds = click.IntRange(min=0), click.FloatRange(min=0)
    for name, kind, default, text in (
        ("turn-wall-limit-s", seconds, 0.0, "Seconds that a turn may run at most."),
        (
            "turn-idle-limit-s",
            seconds,
            defaults.TURN_IDLE_LIMIT_S,
            "Seconds after which a turn without any event is stalled, unless a tool or an approval is open.",
        ),
        (
            "recycle-memory-bytes",
            count,
            defaults.RECYCLE_MEMORY_BYTES,
            "Replace a worker that occupies so much memory with all below it.",
        ),
        (
            "recycle-descendants",
            count,
            defaults.RECYCLE_DESCENDANTS,
            "Replace a worker with so many MCP servers and commands left of turns; it loads no thread beyond.",
        ),
        ("recycle-age-s", seconds, 0.0, "Replace a worker that has run for so many seconds."),
        ("recycle-threads", count, 0, "Replace a worker that has loaded so many threads."),
        ("recycle-turns", count, 0, "Replace a worker that has finished so many turns."),
    ):
        function = click.option(
            f"--{name}",
            type=kind,
            default=default,
            show_default=bool(default),
            callback=_none_for_zero,
            help=f"{text}  [0: no limit]" if default else f"{text}  [default: no limit]",
        )(function)
    return function


def _none_for_zero(context: click.Context, parameter: click.Parameter, value: float) -> float | None:
    return value or None


def connect_option(function: F) -> F:
    """`--connect ENDPOINT`, `--key FILE`: a running daemon instead of an own pool."""
    function = click.option(
        "--key",
        metavar="FILE",
        envvar="CODEX_POOL_KEY",
        type=click.Path(dir_okay=False),
        help="The key file for --connect tcp://HOST:PORT.  [default: $CODEX_POOL_KEY]",
    )(function)
    return click.option(
        "--connect",
        metavar="ENDPOINT",
        help="Use the daemon at this endpoint instead of an own pool; `default` is the one of `codex-pool serve`.",
    )(function)


def keys_option(function: F) -> F:
    """`--keys DIR`: where the keys are of those who may connect over TCP."""
    return click.option(
        "--keys",
        metavar="DIR",
        envvar="CODEX_POOL_KEYS",
        type=click.Path(file_okay=False),
        help="Where the keys are.  [default: $CODEX_POOL_KEYS, else codex-pool/keys in the user's configuration]",
    )(function)


def demo_option(function: F) -> F:
    """`--demo`: the loopback model instead of an account."""
    return click.option("--demo", is_flag=True, help="Run on the built-in model on loopback: no account, no network.")(
        function
    )


def endpoint_of(context: click.Context, connect: str | None, key: str | None) -> tuple[str | None, str | None]:
    """The endpoint that `--connect` means, None for an own pool, and the key that goes with it.

    Raises UsageError when options that make an own pool are given besides it, or when it cannot be an endpoint.
    """
    from codex_pool import endpoints

    if context.get_parameter_source("key") is not click.core.ParameterSource.COMMANDLINE and not (
        connect is not None and endpoints.is_tcp(connect)
    ):
        # One in the environment is for the endpoints that want it.
        key = None
    if connect is None:
        if key is not None:
            raise click.UsageError("--key goes with --connect tcp://HOST:PORT")
        return None, None
    given = [
        parameter
        for parameter in context.command.params
        if parameter.name in _OWN_POOL
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        names = ", ".join(parameter.opts[-1] for parameter in given)
        raise click.UsageError(f"{names} makes an own pool and cannot go with --connect; give it to codex-pool serve")
    endpoint = endpoints.default_endpoint() if connect == "default" else connect
    try:
        endpoints.check_client(endpoint, key)
    except endpoints.EndpointError as error:
        raise click.UsageError(str(error)) from None
    return endpoint, key


def _check_overrides(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for override in value:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{override!r} is not of the form KEY=VALUE")
    return value
