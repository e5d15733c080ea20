"""Lists of a daemon, as the verbs `turns`, `sessions`, `threads` and `workers` print them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from . import options, views
from .errors import reported

if TYPE_CHECKING:
    from .line_client import LineClient

DIM, YELLOW, RED, RESET = "\x1b[2m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
MAX_ROWS = 10_000


def verb(name: str, summary: str, more: str) -> click.Command:
    """Return the command that prints the list of this name; `more` completes its help."""
    view = views.VIEWS[name]

    @click.command(name, short_help=summary, help=f"{summary}\n\n{more}")
    @options.connect_option
    @click.option("--json", "as_json", is_flag=True, help=f"The result of {view.method} as one JSON line.")
    @click.option(
        "--sort",
        metavar="COLUMN",
        type=click.Choice(view.titles),
        help=f"Sort by a column, numbers from the greatest: {', '.join(view.titles)}.",
    )
    @click.option("--reverse", is_flag=True, help="The other way round; with --sort.")
    @click.option("--full", is_flag=True, help="All columns and whole ids, however wide the terminal is.")
    @click.pass_context
    def command(
        context: click.Context,
        connect: str | None,
        key: str | None,
        as_json: bool,
        sort: str | None,
        reverse: bool,
        full: bool,
    ) -> None:
        if reverse and sort is None:
            raise click.UsageError("--reverse goes with --sort COLUMN")
        with reported():
            result = with_client(context, connect, key, f"codex-pool {name}", lambda client: fetch(client, view))
        if as_json:
            import json

            click.echo(json.dumps(result))
            return
        _show(view, result, sort, reverse=reverse, full=full)

    return command


def with_client(
    context: click.Context, connect: str | None, key: str | None, client_name: str, use: Callable[[LineClient], Any]
) -> Any:
    """Call `use` with a client of the daemon that the options name, which is closed then; return its result.

    Raises what LineClient raises, and UsageError.
    """
    endpoint, key = options.endpoint_of(context, connect, key)

    from codex_pool.protocol import endpoints

    from .daemon_client import to_daemon
    from .line_client import LineClient

    transport = to_daemon(endpoint or endpoints.default_endpoint(), key, client_name)
    client = LineClient(transport, on_queue=lambda ahead: None, on_problem=lambda text: click.echo(text, err=True))
    try:
        client.start()
        return use(client)
    finally:
        client.close()


def fetch(client: LineClient, view: views.View, limit: int = MAX_ROWS) -> dict[str, Any]:
    """The daemon's list: at most `limit` rows as `data`, and how many there are as `total`."""
    import msgspec

    result: dict[str, Any] = msgspec.json.decode(client.call(view.method, {"limit": limit}))
    return result


def find(client: LineClient, name: str, prefix: str) -> dict[str, Any]:
    """The row of the list `name` whose id begins with `prefix`, or is that; of workers also the one of that slot.

    Raises UsageError if there is none, or more than one.
    """
    view = views.VIEWS[name]
    rows = fetch(client, view)["data"]
    exact = [row for row in rows if row.get(view.id) == prefix]
    if name == "workers" and prefix.isdecimal():
        exact = [row for row in rows if row["slot"] == int(prefix)]
    found = exact or [row for row in rows if prefix and str(row.get(view.id) or "").startswith(prefix)]
    if not found:
        raise click.UsageError(f"no {view.one} {prefix!r}; codex-pool {name} lists them")
    if len(found) > 1:
        ids = ", ".join(str(row[view.id]) for row in found[:5])
        raise click.UsageError(f"{prefix!r} is the beginning of {len(found)} {view.one}s: {ids}; give more of the id")
    row: dict[str, Any] = found[0]
    return row


def _show(view: views.View, result: dict[str, Any], sort: str | None, *, reverse: bool, full: bool) -> None:
    from .tables import fitted, ordered

    rows = result["data"]
    if sort is not None:
        rows = ordered(rows, view.column(sort), reverse=reverse)
    # A program that reads the table gets all of it.
    width = None if full or not sys.stdout.isatty() else shutil.get_terminal_size().columns
    columns = view.columns
    if rows and not any("worker" in row for row in rows) and view is views.WORKERS:
        # A limited key sees no more of the workers.
        columns = tuple(view.column(title) for title in ("slot", "state", "restarts"))
    table = fitted(columns, rows, width)
    styled = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    dim, reset = (DIM, RESET) if styled else ("", "")
    lines = [f"{dim}{table.header}{reset}"]
    for row, line in zip(rows, table.lines, strict=True):
        style = _STYLES.get(str(row.get("state")), "") if styled else ""
        lines.append(f"{style}{line}{reset}" if style else line)
    out = getattr(sys.stdout, "raw_text", sys.stdout)
    out.write("\n".join(lines) + "\n")
    out.flush()
    if result["total"] > len(rows):
        click.echo(f"the first {len(rows):,} of {result['total']:,} {view.one}s", err=True)
    elif not rows:
        click.echo(f"no {view.one}s", err=True)


# A row that wants attention stands out, one that waits for its turn steps back.
_STYLES = {
    "waiting": YELLOW,
    "queued": DIM,
    "starting": DIM,
    "away": DIM,
    "silent": RED,
    "wedged": RED,
    "stale": YELLOW,
    "draining": YELLOW,
}
