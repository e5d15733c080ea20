"""The whole page: the template with stylesheet, script, markup and packed data in it. Pure, its own files aside.

The page's security policy lets only its own script run, and scripts from the disk (the segments); what a sample
contains could not run even if it were taken for markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from . import compare_sections, sections
from .document import COLUMNS, PAIR_COLUMNS, PAIR_SIDE
from .figures import PairFigures, RunFigures
from .markup import Html, element, join, text
from .packing import pack
from .source import RunFacts

SCRIPTS = ("base.js", "table.js", "detail.js", "main.js")


def run_page(
    facts: RunFacts,
    figures: RunFigures,
    scorers: Sequence[str],
    rows: str,
    segments: Mapping[str, Any],
    inline: Sequence[str],
) -> str:
    """The report of one run. `rows` is a packed list, `inline` are packed segments, `segments` tells of others."""
    body = [
        sections.heading("Report of a run", [facts], [figures]),
        sections.totals(figures, facts.currency),
        sections.scores(figures),
        sections.figures_of(figures),
    ]
    data = {
        "kind": "run",
        "columns": COLUMNS,
        "scorers": list(scorers),
        "epochs": figures.epochs,
        "currency": facts.currency,
        "segments": segments,
    }
    return _page(f"{facts.name}: report", body, data, rows, inline)


def comparison_page(
    facts: Sequence[RunFacts],
    pairs: PairFigures,
    runs: Sequence[RunFigures],
    scorers: Sequence[str],
    rows: str,
    segments: Mapping[str, Any],
    inline: Sequence[str],
) -> str:
    """The comparison of two runs, A and B."""
    currency = facts[0].currency if facts[0].currency == facts[1].currency else None
    body = [
        sections.heading("Comparison of two runs", facts, runs, ("A", "B")),
        compare_sections.changes(pairs, {name: place for place, name in enumerate(scorers)}),
        compare_sections.costs(pairs, runs[0], runs[1], currency),
    ]
    data = {
        "kind": "comparison",
        "columns": PAIR_COLUMNS,
        "side": PAIR_SIDE,
        "scorers": list(scorers),
        "epochs": max(run.epochs for run in runs),
        "names": [run.name for run in facts],
        "currency": currency,
        "segments": segments,
    }
    return _page(f"{facts[0].name} and {facts[1].name}: comparison", body, data, rows, inline)


def _page(title: str, body: Sequence[object], data: Mapping[str, Any], rows: str, inline: Sequence[str]) -> str:
    script, style = "\n".join(static(name) for name in SCRIPTS), static("report.css")
    held = [_packed("data", pack(data)), _packed("rows", rows)]
    held += [_packed(f"segment-{number}", segment) for number, segment in enumerate(inline)]
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}' 'self' file:; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(static("page.html")).substitute(
        title=text(title), policy=text(policy), style=style, script=script, body=join(body), data=join(held)
    )


@cache
def static(name: str) -> str:
    """A file of the page as it stands in the package."""
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")


def _packed(name: str, packed: str) -> Html:
    return element("script", Html(packed), type="text/plain", id=f"packed-{name}")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
