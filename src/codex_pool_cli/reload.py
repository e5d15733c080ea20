"""`codex-pool reload`: a daemon reads its configuration again."""

from __future__ import annotations

import click

from .steering import operator, operator_options


@click.command(short_help="Have a daemon read its configuration again.")
@operator_options
@click.pass_context
def reload(context: click.Context, connect: str | None, key: str | None, as_json: bool) -> None:
    """Have a daemon read its file of options again; `codex-pool config check` says before what is wrong with it.

    The number of workers, recycling and the limits of turns change at once, for turns that run too; turns go on. For
    other options a restart is needed, which the answer and `codex-pool status` say. Variables and the command line of
    the daemon are those of its start. A file with an error changes nothing.

    \b
    Exit codes:
      0  read again; there may be options that need a restart
      1  not read: the file has an error, or the key may not do this
      3  there is no daemon at the endpoint
    """
    with operator(context, connect, key, as_json=as_json) as daemon:
        daemon.ask("pool/reload", {})
