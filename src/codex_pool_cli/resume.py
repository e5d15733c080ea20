"""`codex-pool resume`: ends `pause` and `drain`."""

from __future__ import annotations

import click

from .steering import operator, operator_options


@click.command(short_help="End `pause` and `drain`.")
@click.argument("worker", required=False)
@operator_options
@click.pass_context
def resume(context: click.Context, worker: str | None, connect: str | None, key: str | None, as_json: bool) -> None:
    """End `pause` and `drain`: of a daemon and of all its workers, or of one WORKER, which is named by its slot."""
    with operator(context, connect, key, as_json=as_json) as daemon:
        daemon.ask("pool/resume", {} if worker is None else {"worker": worker})
