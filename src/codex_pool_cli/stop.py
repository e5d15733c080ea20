"""`codex-pool stop`: ends a daemon."""

from __future__ import annotations

import time

import click

from . import options
from .errors import fail
from .steering import Operator, operator, operator_options, waits_for

# What a daemon takes to end is 10 s at most.
GONE_LIMIT_S = 15.0
_POLL_S = 0.05


@click.command(short_help="Stop a daemon once its turns are over.")
@click.option("--now", is_flag=True, help="Do not wait for turns that run.")
@operator_options
@click.pass_context
def stop(context: click.Context, now: bool, connect: str | None, key: str | None, as_json: bool) -> None:
    """Stop a daemon, as SIGTERM does, and wait until it has ended.

    Turns that run are waited for, for up to the --drain-timeout of `serve`; new ones are refused.
    """
    from codex_app_server.errors import TransportClosedError

    with operator(context, connect, key, as_json=as_json) as daemon:
        daemon.ask("pool/stop", {"now": True} if now else {})
        try:
            while True:
                report = waits_for(daemon.status())
                if report["turns"] and not now:
                    daemon.show(report)
                daemon.wait()
        except TransportClosedError:
            _await_end(daemon)
    click.echo("stopped", err=True)


def _await_end(daemon: Operator) -> None:
    """Wait until another daemon may use the endpoint; one over TCP is only known to have closed the connection."""
    from codex_pool.protocol import endpoints
    from codex_pool.runtime import endpoint_name

    if endpoints.is_tcp(daemon.endpoint):
        return
    path = endpoints.ipc_path(daemon.endpoint)
    deadline = time.monotonic() + GONE_LIMIT_S
    while endpoint_name.holder(path) is not None:
        if time.monotonic() > deadline:
            fail(f"the daemon has not ended within {GONE_LIMIT_S:g} s", options.SOME_FAILED)
        time.sleep(_POLL_S)
