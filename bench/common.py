"""Helpers that the benches share: the machine's description, alternating runs, medians, a table, a JSON report."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict

Figures = dict[str, list[float]]


class Row(TypedDict):
    """One line of what a bench is to show, as its JSON has it under `rows`.

    `figure` is of `unit`; `ratio` is how many times the peer's it is; it is `met` when `ratio`, or without one
    `figure`, is at least or at most `wanted`.
    """

    what: str
    figure: float
    unit: str
    peer: str | None
    ratio: float | None
    bound: Literal["at least", "at most"]
    wanted: float | None
    met: bool | None


def machine() -> dict[str, object]:
    """Describe what the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def alternate(competitors: dict[str, Callable[[], float]], rounds: int, unit: str) -> Figures:
    """`rounds` runs of each, taking turns in an order that rotates, so that a drift of the machine hits all alike."""
    figures: Figures = {name: [] for name in competitors}
    for number in range(rounds):
        names = list(competitors)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            figures[name].append(competitors[name]())
            print(f"round {number + 1}/{rounds}  {name:<14} {figures[name][-1]:>12,.1f} {unit}", file=sys.stderr)
    return figures


median = statistics.median


def ratio(figures: Figures, name: str, peer: str) -> float:
    """The median over rounds of how many times the peer's figure this one is."""
    return median(a / b for a, b in zip(figures[name], figures[peer], strict=True))


def table(title: str, figures: Figures, subject: str, unit: str) -> dict[str, float]:
    """Print the figures and the subject's ratio to each peer; returns the ratios."""
    ratios = {peer: ratio(figures, subject, peer) for peer in figures if peer != subject}
    print(f"\n{title}")
    print(f"{'':<16}{unit:>14}{'lowest':>12}{'highest':>12}{subject + ' against it':>26}")
    for name, values in figures.items():
        against = f"{ratios[name]:.2f} x" if name in ratios else ""
        middle = median(values)
        print(f"{name:<16}{middle:>14,.1f}{min(values):>12,.1f}{max(values):>12,.1f}{against:>26}")
    return ratios


def row(
    what: str,
    figure: float,
    unit: str,
    *,
    peer: str | None = None,
    ratio: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """A row for `write`; with neither bound it is shown and not judged."""
    judged = figure if ratio is None else ratio
    wanted = at_most if at_least is None else at_least
    met = None if wanted is None else (judged <= wanted if at_least is None else judged >= wanted)
    bound: Literal["at least", "at most"] = "at most" if at_least is None and at_most is not None else "at least"
    return Row(what=what, figure=figure, unit=unit, peer=peer, ratio=ratio, bound=bound, wanted=wanted, met=met)


def show(rows: list[Row]) -> None:
    """Print what was to be shown, and whether it was."""
    print(f"\n{'':<62}{'figure':>14} {'unit':<12}{'ratio':>9}{'wanted':>18}")
    for each in rows:
        ratio = "" if each["ratio"] is None else f"{each['ratio']:.2f} x"
        wanted = "" if each["wanted"] is None else f"{each['bound']} {each['wanted']:g}"
        said = {True: "met", False: "NOT MET", None: ""}[each["met"]]
        what = each["what"] if each["peer"] is None else f"{each['what']}, against {each['peer']}"
        figure = f"{each['figure']:,.1f}" if each["figure"] >= 10 else f"{each['figure']:.2f}"
        print(f"{what:<62}{figure:>14} {each['unit']:<12}{ratio:>9}{wanted:>18}  {said}")


def report(path: Path, settings: dict[str, Any], rows: list[Row], **raw: object) -> None:
    """Show the rows and write the report of a bench: machine, settings, rows, and the raw figures."""
    show(rows)
    write(path, {"settings": settings, "rows": rows, **raw})


def write(path: Path, report: dict[str, object]) -> None:
    """The report as JSON, with the machine's description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **report}, indent=2) + "\n")
    print(f"\nwritten to {path}", file=sys.stderr)
