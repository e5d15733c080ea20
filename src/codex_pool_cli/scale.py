"""`codex-pool scale`: how many workers a daemon has."""

from __future__ import annotations

import click

from .steering import operator, operator_options


@click.command(short_help="Change how many workers a daemon has.")
@click.argument("count", metavar="WORKERS", type=int)
@operator_options
@click.pass_context
def scale(context: click.Context, count: int, connect: str | None, key: str | None, as_json: bool) -> None:
    """Have a daemon run so many WORKERS, until it is started again.

    Further ones start at once. Of too many, the last ones get nothing new and end once their turns are over; their
    threads move to the others.
    """
    with operator(context, connect, key, as_json=as_json) as daemon:
        daemon.ask("pool/scale", {"workers": count})
