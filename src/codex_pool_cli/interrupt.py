"""`codex-pool interrupt`: one turn of a daemon."""

from __future__ import annotations

import click

from .steering import operator, operator_options


@click.command(short_help="Interrupt a turn that runs on a daemon.")
@click.argument("turn")
@operator_options
@click.pass_context
def interrupt(context: click.Context, turn: str, connect: str | None, key: str | None, as_json: bool) -> None:
    """Interrupt the turn TURN, whosever it is: its id, or the beginning of it. `codex-pool turns` lists them."""
    with operator(context, connect, key, as_json=as_json) as daemon:
        daemon.ask("pool/turn/interrupt", {"turnId": turn})
