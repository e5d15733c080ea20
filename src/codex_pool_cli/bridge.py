"""`codex-pool bridge`: an app-server on stdin and stdout, with a pool behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import options, pool_options
from .errors import fail, reported
from .groups import Grouped

if TYPE_CHECKING:
    from codex_pool.bridge import Bridge
    from codex_pool.pool import Pool


@click.command(short_help="Be a codex app-server on stdin and stdout, with a pool behind it.", cls=Grouped)
@options.connect_option
@options.demo_option
@pool_options.pool_options(of_run=True)
@click.pass_context
def bridge(context: click.Context, /, connect: str | None, key: str | None, demo: bool, **given: Any) -> None:
    """Be to a client what `codex app-server` is, JSON lines on stdin and stdout, with a pool behind it.

    Uses the daemon at the default endpoint if one is running there, else a pool of its own; --connect names a daemon,
    and the options of a pool, -c, --codex-bin and --demo ask for an own pool.

    Ends as `codex app-server` does: when stdin ends or SIGTERM comes, with exit code 0. Turns go on where a daemon runs
    them. Lost connections are made again; what cannot be kept is an error, or a failed turn, to the client.

    \b
    Exit codes:
      0    the client has ended it
      2    wrong usage
      3    there is no pool, or it is gone for good

    \b
    Examples:
      codex-pool bridge
      codex-pool bridge --workers 2 --turns-per-worker 16
      codex-pool bridge --connect tcp://build-host:7601 --key me.key
    """
    endpoint, key = options.endpoint_of(context, connect, key)
    if endpoint is None and not options.of_own_pool(context):
        endpoint = _daemon()
        if endpoint is None:
            workers = given["workers"]
            click.echo(f"codex-pool: no daemon runs; making a pool of its own, --workers {workers}", err=True)
    if endpoint is not None:
        number = run(_connected(endpoint, key))
    else:
        with reported(), _own_pool(demo, given) as pool:
            from codex_pool.bridge import to_pool

            made = to_pool(pool)
            made.connect()
            number = run(made)
    end(number)


def run(made: Bridge) -> int | None:
    """Run a bridge that is connected, and return the signal that has ended it, if one has."""
    from codex_app_server.errors import TransportClosedError
    from codex_pool.bridge import NotReadError

    try:
        return made.run()
    except (TransportClosedError, NotReadError) as error:
        fail(str(error), options.CANNOT_START)


def end(number: int | None) -> NoReturn:
    """End this process as `codex app-server` ends: SIGINT kills it, all else is an orderly end."""
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(options.OK)


def _daemon() -> str | None:
    """The default endpoint if a pool holds it."""
    from codex_pool.protocol import endpoints

    try:
        endpoint = endpoints.default_endpoint()
        path = endpoints.ipc_path(endpoint)
    except endpoints.EndpointError as error:
        fail(str(error), options.USAGE)
    return endpoint if endpoints.why_unreachable(path) is None or endpoints.is_held(path) else None


def _connected(endpoint: str, key: str | None) -> Bridge:
    from codex_app_server.errors import InvalidInputError, TransportClosedError
    from codex_pool.bridge import to_endpoint

    try:
        made = to_endpoint(endpoint, key=key)
        made.connect()
        return made
    except (ValueError, InvalidInputError) as error:
        fail(str(error), options.USAGE)
    except TransportClosedError as error:
        fail(str(error), options.CANNOT_START)


@contextlib.contextmanager
def _own_pool(demo: bool, given: dict[str, Any]) -> Iterator[Pool]:
    import tempfile
    from pathlib import Path

    from codex_app_server import AppServerConfig
    from codex_pool import Pool
    from codex_pool.demo import demo_home

    asked = pool_options.take(given)
    env = {}
    with contextlib.ExitStack() as stack:
        if demo:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codex-pool-demo-")))
            env["CODEX_HOME"] = str(stack.enter_context(demo_home(home)))
        config = AppServerConfig(codex_bin=given["codex_bin"], config_overrides=given["overrides"], env=env)
        yield stack.enter_context(Pool.of(asked, config))
