"""`codex-pool kick`: ends a client's session with a daemon."""

from __future__ import annotations

import click

from .steering import operator, operator_options


@click.command(short_help="End a client's session with a daemon.")
@click.argument("session")
@operator_options
@click.pass_context
def kick(context: click.Context, session: str, connect: str | None, key: str | None, as_json: bool) -> None:
    """End the session SESSION: its id, or the beginning of it. `codex-pool sessions` lists them.

    What waits for it is dropped, and the turns that only it follows are interrupted. The client may connect again; to
    prevent that, revoke its key (`codex-pool keys revoke`).
    """
    with operator(context, connect, key, as_json=as_json) as daemon:
        daemon.ask("pool/session/kick", {"session": session})
