"""`codex-pool usage`: what the principals of a daemon have used."""

from __future__ import annotations

import csv
import datetime as dt
import json
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from . import listing, options
from .errors import reported

if TYPE_CHECKING:
    from .line_client import LineClient

_DURATION = re.compile(r"([1-9][0-9]{0,4})([dwh])")
_UNITS = {"d": "days", "w": "weeks", "h": "hours"}
_COUNTS = ("turns", "inputTokens", "cachedInputTokens", "outputTokens", "reasoningOutputTokens")
_TITLES = ("turns", "input", "cached", "output", "reasoning", "spend")
UNKNOWN = "unknown"
OWNER = "owner"


class Group(NamedTuple):
    """Sums of rows that belong together. `spend` is None where a part of it is not known."""

    name: str
    counts: dict[str, int]
    spend: float | None
    currency: str | None


@click.command("usage", short_help="Show what principals have used: turns, tokens, spend.")
@options.connect_option
@click.option("--by", type=click.Choice(("principal", "day", "model")), default="principal", show_default=True)
@click.option(
    "--since",
    metavar="WHEN",
    help="Begin with the UTC day of this time: so long ago, such as 7d, 4w or 12h, or a date, YYYY-MM-DD.  "
    "[default: all]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated, with a header.")
@click.pass_context
def usage(
    context: click.Context,
    connect: str | None,
    key: str | None,
    by: str,
    since: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show what the principals of a daemon have used: turns that have ended, their tokens, and the spend.

    The owner and admin keys see everything, a client with another key its own. Cached tokens are part of the input,
    reasoning ones of the output. Spend needs `serve --prices`; it is unknown where any part of it is.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    at = None if since is None else since_of(since, dt.datetime.now(dt.timezone.utc))

    def fetch(client: LineClient) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(client.call("pool/usage", {} if at is None else {"since": at}))
        return found

    with reported():
        result = listing.with_client(context, connect, key, "codex-pool usage", fetch)
    groups = grouped(result["data"], by)
    if as_json:
        click.echo(json.dumps({"by": by, "since": at, "data": [_json_row(by, each) for each in groups]}))
    elif as_csv:
        _write_csv(by, groups)
    else:
        _write_table(by, groups)


def since_of(text: str, now: dt.datetime) -> int:
    """The Unix second at which the day of UTC begins that an option names. Raises UsageError."""
    found = _DURATION.fullmatch(text)
    try:
        day = now - dt.timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else dt.datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.UsageError(f"--since {text}: expected a duration such as 7d, or a day such as 2027-01-31") from None
    return max(0, int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.timezone.utc).timestamp()))


def grouped(rows: list[dict[str, Any]], by: str) -> list[Group]:
    """The sums of rows by principal, day or model; principals in the order of their names."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(_key_of(row, by), []).append(row)
    return [_group(name, rows) for (name, _), rows in sorted(found.items())]


def _key_of(row: dict[str, Any], by: str) -> tuple[str, str]:
    if by == "day":
        return dt.datetime.fromtimestamp(row["day"], dt.timezone.utc).date().isoformat(), ""
    if by == "model":
        return row["model"] or UNKNOWN, ""
    # Two principals may have had the same name, one after the other.
    return row["principalName"] or OWNER, row["principal"]


def _group(name: str, rows: list[dict[str, Any]]) -> Group:
    counts = {count: sum(row[count] for row in rows) for count in _COUNTS}
    currencies = {row["currency"] for row in rows}
    is_known = len(currencies) == 1 and None not in currencies and not any(row["unpriced"] for row in rows)
    currency = currencies.pop() if is_known else None
    return Group(name, counts, sum(row["spend"] for row in rows) if is_known else None, currency)


def _json_row(by: str, group: Group) -> dict[str, Any]:
    return {by: group.name, **group.counts, "spend": group.spend, "currency": group.currency}


def _cells(group: Group) -> list[str]:
    from codex_pool.prices import amount

    return [*(f"{count:,}" for count in group.counts.values()), amount(group.spend, group.currency)]


def _write_table(by: str, groups: list[Group]) -> None:
    rows = [[by, *_TITLES], *([group.name, *_cells(group)] for group in groups)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        figures = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join([row[0].ljust(widths[0]), *figures]))
    if not groups:
        click.echo("nothing was used", err=True)


def _write_csv(by: str, groups: list[Group]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([by, *_TITLES, "currency"])
    for group in groups:
        spend = UNKNOWN if group.spend is None else f"{group.spend:.6f}"
        writer.writerow([group.name, *group.counts.values(), spend, group.currency or ""])
