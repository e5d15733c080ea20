"""`codex-pool status`: what a daemon is doing."""

from __future__ import annotations

import json
import sys

import click

from codex_pool.cli import options
from codex_pool.cli.errors import reported
from codex_pool.terminal import plain

TABLE_COLUMNS = 160


@click.command(short_help="Show what a daemon's workers and turns are doing.")
@options.connect_option
@click.option("--json", "as_json", is_flag=True, help="The result of pool/status as one JSON line.")
@click.pass_context
def status(context: click.Context, connect: str | None, key: str | None, as_json: bool) -> None:
    """Show what the workers and turns of a daemon are doing."""
    endpoint, key = options.endpoint_of(context, connect, key)
    with reported():
        from codex_pool.pool import connect as connect_to

        with connect_to(endpoint, name="codex-pool status", key=key) as codex:
            result = codex.client.request("pool/status")
    if as_json:
        click.echo(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from codex_pool.daemon import status as view

    out = getattr(sys.stdout, "raw_text", sys.stdout)
    console = Console(file=out, highlight=False)
    console.print(plain(view.summary(result)), soft_wrap=True, markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for number, title in enumerate(view.HEADER):
        table.add_column(title, justify="right" if 2 <= number <= 5 or number >= 8 else "left", no_wrap=True)
    for row in view.rows(result):
        table.add_row(*(Text(plain(cell)) for cell in row))
    # Its lines are wrapped on a narrow terminal: no cell is cut.
    Console(file=out, highlight=False, width=max(console.width, TABLE_COLUMNS)).print(table)
    for line in view.problems(result):
        console.print(plain(line), style="yellow", soft_wrap=True, markup=False)
