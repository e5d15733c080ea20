"""`codex-pool status`: what a daemon is doing."""

from __future__ import annotations

import os
import sys

import click

from codex_pool.runtime.terminal import plain

from . import options
from .errors import reported
from .tables import aligned

DIM, YELLOW, RESET = "\x1b[2m", "\x1b[33m", "\x1b[0m"
# Columns of text; those of numbers are aligned to the right.
_LEFT = {0, 1, 6, 7}


@click.command(short_help="Show what a daemon's workers and turns are doing.")
@options.connect_option
@click.option("--json", "as_json", is_flag=True, help="The result of pool/status as one JSON line.")
@click.option("--trace", is_flag=True, help="Add the broker's last events, and requests by state. No texts of turns.")
@click.pass_context
def status(context: click.Context, connect: str | None, key: str | None, as_json: bool, trace: bool) -> None:
    """Show what the workers and turns of a daemon are doing."""
    endpoint, key = options.endpoint_of(context, connect, key)
    with reported():
        import msgspec

        from codex_pool.protocol import endpoints

        from .daemon_client import to_daemon
        from .line_client import LineClient

        transport = to_daemon(endpoint or endpoints.default_endpoint(), key, "codex-pool status")
        client = LineClient(transport, on_queue=lambda ahead: None, on_problem=lambda text: click.echo(text, err=True))
        try:
            client.start()
            result = msgspec.json.decode(client.call("pool/status", {"trace": True} if trace else {}))
        finally:
            client.close()
    if as_json:
        import json

        click.echo(json.dumps(result))
        return
    from codex_pool.daemon import status_text as view

    styled = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    dim, yellow, reset = (DIM, YELLOW, RESET) if styled else ("", "", "")
    header, *rows = aligned([view.HEADER, *view.rows(result)], left=_LEFT)
    lines = [plain(view.summary(result)), f"{dim}{header}{reset}", *rows]
    lines += [f"{yellow}{plain(line)}{reset}" for line in view.problems(result)]
    lines += [plain(line) for line in (view.trace(result) if trace else ())]
    # What may control the terminal has been taken out of each line.
    out = getattr(sys.stdout, "raw_text", sys.stdout)
    out.write("\n".join(lines) + "\n")
    out.flush()
