"""Options that several verbs share. Nothing heavy is imported here: `--help` must be fast."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from codex_batch.exit_codes import CANNOT_START as CANNOT_START
from codex_batch.exit_codes import GATE_FAILED as GATE_FAILED
from codex_batch.exit_codes import HUNG_UP as HUNG_UP
from codex_batch.exit_codes import INTERRUPTED as INTERRUPTED
from codex_batch.exit_codes import OK as OK
from codex_batch.exit_codes import SOME_FAILED as SOME_FAILED
from codex_batch.exit_codes import USAGE as USAGE

F = TypeVar("F", bound=Callable[..., Any])

# Beside the options of a pool: what makes a pool, or an app-server, of one's own.
_OWN = ("pool_config", "overrides", "codex_bin", "demo", "demo_script", "home")


def as_text(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Callback for words that are compared with text of files: what is UTF-8 is that, whatever the locale."""
    if isinstance(value, str):
        try:
            return os.fsencode(value).decode("utf-8")
        except UnicodeError:
            return value
    return tuple(as_text(context, parameter, each) for each in value) if isinstance(value, tuple) else value


def app_server_options(function: F) -> F:
    """`-c`, `--codex-bin`: how app-servers are started."""
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
    ):
        function = option(function)
    return function


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


def demo_option(function: F) -> F:
    """`--demo`: the loopback model instead of an account."""
    return click.option("--demo", is_flag=True, help="Run on the built-in model on loopback: no account, no network.")(
        function
    )


def endpoint_of(context: click.Context, connect: str | None, key: str | None) -> tuple[str | None, str | None]:
    """The endpoint that `--connect` means, None for an own pool, and the key that goes with it.

    Raises UsageError when options that make an own pool are given besides it, or when it cannot be an endpoint.
    """
    from codex_pool.protocol import endpoints

    if context.get_parameter_source("key") is not click.core.ParameterSource.COMMANDLINE and not (
        connect is not None and endpoints.is_tcp(connect)
    ):
        # One in the environment is for the endpoints that want it.
        key = None
    if connect is None:
        if key is not None:
            raise click.UsageError("--key goes with --connect tcp://HOST:PORT")
        return None, None
    given = of_own_pool(context)
    if given:
        raise click.UsageError(
            f"{', '.join(given)} makes an own pool and cannot go with --connect; give it to codex-pool serve"
        )
    endpoint = endpoints.default_endpoint() if connect == "default" else connect
    try:
        endpoints.check_client(endpoint, key)
    except endpoints.EndpointError as error:
        raise click.UsageError(str(error)) from None
    return endpoint, key


def of_own_pool(context: click.Context) -> list[str]:
    """The options on the command line that make a pool, or an app-server, of one's own."""
    from codex_pool.options import fields

    own = {*_OWN, *(field.name for field in fields())}
    return [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name in own
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]


def _check_overrides(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for override in value:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{override!r} is not of the form KEY=VALUE")
    return value
