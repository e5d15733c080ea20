"""`codex-pool recycle`: replaces workers of a daemon."""

from __future__ import annotations

import click

from .steering import operator, operator_options


@click.command(short_help="Replace workers of a daemon, without a failed turn.")
@click.argument("worker", required=False)
@operator_options
@click.pass_context
def recycle(context: click.Context, worker: str | None, connect: str | None, key: str | None, as_json: bool) -> None:
    """Replace all workers, one after the other, or the WORKER of one slot (`1`, or the beginning of its name).

    A successor is ready before a worker gets nothing new. The worker ends once its turns are over, however long that
    takes; turns that wait for a person count as well.
    """
    with operator(context, connect, key, as_json=as_json) as daemon:
        daemon.ask("pool/recycle", {} if worker is None else {"worker": worker})
