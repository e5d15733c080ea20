"""`codex-pool pause`: new turns of a daemon wait."""

from __future__ import annotations

import click

from .steering import operator, operator_options


@click.command(short_help="Have new turns of a daemon wait, until `resume`.")
@operator_options
@click.pass_context
def pause(context: click.Context, connect: str | None, key: str | None, as_json: bool) -> None:
    """Have new turns of a daemon wait; those that run go on. `resume` ends it.

    Clients that wait see that the pool is paused. Turns that codex begins by itself, such as those of a goal, do
    not wait.
    """
    with operator(context, connect, key, as_json=as_json) as daemon:
        daemon.ask("pool/pause", {})
