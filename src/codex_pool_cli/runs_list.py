"""`codex-pool runs list`: runs below a directory, with their scores, models and efforts."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from codex_pool.runtime.terminal import plain

if TYPE_CHECKING:
    from codex_batch.manage.listing import Listed, Part

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True)
_HEADINGS = ("RUN", "STATE", "DONE", "COMPLETED", "SCORE", "SCORED", "MODEL", "EFFORT", "BEGUN", "DATASET")
# Left out on a terminal that is too narrow, in this order.
_LESS_WANTED = ("DATASET", "BEGUN", "COMPLETED", "EFFORT", "MODEL", "SCORED")
_ORDERS = ("name", "begun", "score", "state", "model", "effort", "dataset")
# Highest, and latest, first.
_DESCENDING = ("begun", "score")


class _Line(NamedTuple):
    cells: tuple[str, ...]
    order: dict[str, Any]


@click.command("list")
@click.argument("directory", default=".", type=_DIRECTORY)
@click.option(
    "--sort",
    type=click.Choice(_ORDERS),
    default="name",
    show_default=True,
    help="score: highest first; begun: latest first; others by name.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a run.")
def list_(directory: Path, sort: str, as_json: bool) -> None:
    """List the runs in DIRECTORY and three levels below, the current one unless given.

    SCORE is the mean of the first scorer over the samples that have ended, one without a score as 0; SCORED is how many
    it scored. Each variant of a run has a line of its own, RUN@VARIANT; in JSON they stand in `variants`. A directory
    that cannot be read is listed with the reason. A terminal that is too narrow shows fewer columns.
    """
    import json

    from codex_batch.manage import listing

    found = [listing.listed(path) for path in listing.find(directory)]
    if as_json:
        for run in _sorted_runs(found, sort):
            click.echo(json.dumps(run.to_json()))
        return
    if not found:
        click.echo(f"no runs in {directory}", err=True)
        return
    lines = [line for run in found for line in _lines(run)]
    rows = [_HEADINGS, *(line.cells for line in sorted(lines, key=lambda line: line.order[sort]))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    shown = _columns(widths, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    for row in rows:
        click.echo(plain("  ".join(row[column].ljust(widths[column]) for column in shown).rstrip(), paths=True))


def _columns(widths: Sequence[int], room: int | None) -> list[int]:
    """Return the columns that are shown on a terminal of so many columns, None for all."""
    shown = list(range(len(widths)))
    for heading in _LESS_WANTED:
        if room is None or sum(widths[column] + 2 for column in shown) - 2 <= room:
            break
        shown.remove(_HEADINGS.index(heading))
    return shown


def _sorted_runs(found: list[Listed], sort: str) -> list[Listed]:
    """Sort runs by the first of the lines that they have."""
    return sorted(found, key=lambda run: min(line.order[sort] for line in _lines(run)))


def _lines(run: Listed) -> list[_Line]:
    name = os.path.relpath(run.path)
    if run.counts is None:
        cells = (name, "unreadable", *[""] * (len(_HEADINGS) - 3), run.problem or "")
        return [_Line(cells, {order: _missing(name) for order in _ORDERS} | {"name": (0, name)})]
    return [_line(run, name, part) for part in run.parts]


def _line(run: Listed, name: str, part: Part) -> _Line:
    if part.variant:
        name = f"{name}@{part.variant}"
    begun = "" if run.created_at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at))
    score = scored = ""
    if part.score is not None:
        scorer, (_, count) = part.score
        score, scored = f"{part.mean:.3f} {scorer}", f"{count:,}/{part.counts['total']:,}"
    model, effort = (_most(counts) for counts in (part.models, part.efforts))
    cells = (
        name,
        run.state,
        f"{part.counts['done']:,}/{part.counts['total']:,}",
        f"{part.counts.get('completed', 0):,}",
        score,
        scored,
        model,
        effort,
        begun,
        run.dataset,
    )
    values = {"name": name, "begun": run.created_at, "score": part.mean, "state": run.state}
    values |= {"model": model, "effort": effort, "dataset": run.dataset}
    return _Line(cells, {order: _key(order, values[order], name) for order in _ORDERS})


def _key(order: str, value: Any, name: str) -> tuple[Any, ...]:
    if value is None or value == "":
        return _missing(name)
    return (0, -value if order in _DESCENDING else value, name)


def _missing(name: str) -> tuple[Any, ...]:
    """Sort key that puts rows without a value last."""
    return (1, math.inf, name)


def _most(counts: Any) -> str:
    """The value that most records have, with the number of others."""
    values = list(counts)
    return "" if not values else values[0] if len(values) == 1 else f"{values[0]} +{len(values) - 1}"
