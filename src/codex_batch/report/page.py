"""The whole page: its template with stylesheet, script, values and packed data. Pure, its own files aside.

The page's security policy lets only its own script run, and scripts from the disk (the segments); what a sample
contains could not run even if it were taken for markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from . import comparison_view, run_view
from .document import COLUMNS, PAIR_COLUMNS, PAIR_SIDE
from .figures import PairFigures, RunFigures
from .leaderboard.differing import line, model_and_effort
from .leaderboard.view import Page as LeaderboardPage
from .markup import render
from .packing import pack
from .source import RunFacts

SCRIPTS = ("base.js", "table.js", "detail.js", "main.js")
LEADERBOARD_SCRIPTS = ("base.js", "leaderboard.js")
LIVE_SCRIPTS = ("base.js", "table.js", "detail.js", "live.js", "main.js")
RUNS_SCRIPTS = ("base.js", "runs.js")
# Directive of the policy for pages that ask their server for changes.
CONNECT = "connect-src 'self'; "


def run_page(
    facts: RunFacts,
    figures: RunFigures,
    scorers: Sequence[str],
    rows: str,
    segments: Mapping[str, Any],
    inline: Sequence[str],
) -> str:
    """Return the report of one run: `rows` is a packed list, `inline` are packed segments, `segments` names others."""
    data = {**_run_data(facts, figures, scorers), "segments": segments}
    return _page("run.html", f"{facts.name}: report", data, rows, inline, **_run_values(facts, figures))


def live_page(
    facts: RunFacts, figures: RunFigures, scorers: Sequence[str], rows: str, live: Mapping[str, Any], state: str
) -> str:
    """Return the page of a run that asks its server for changes: `live` has their `version` and `every_ms`."""
    data = {**_run_data(facts, figures, scorers), "segments": {"live": True}, "live": live}
    packed = {"data": pack(data), "rows": rows}
    values = {**_run_values(facts, figures), "state": state}
    return _filled("live_run.html", facts.name, packed, LIVE_SCRIPTS, values, connect=CONNECT)


def live_figures(facts: RunFacts, figures: RunFigures) -> str:
    """Return the figures of a run as they stand on its page, as markup."""
    return render("run_body.html", **_run_values(facts, figures))


def runs_page() -> str:
    """Return the page of the list of runs, which asks its server for them."""
    return _filled("live_runs.html", "Runs", {}, RUNS_SCRIPTS, {}, connect=CONNECT)


def _run_data(facts: RunFacts, figures: RunFigures, scorers: Sequence[str]) -> dict[str, Any]:
    return {
        "kind": "run",
        "columns": COLUMNS,
        "scorers": list(scorers),
        "epochs": figures.epochs,
        "currency": facts.currency,
    }


def _run_values(facts: RunFacts, figures: RunFigures) -> dict[str, Any]:
    return {
        "runs": [run_view.known_of(facts, figures)],
        "totals": run_view.totals(figures, facts.currency),
        "scores": run_view.scores(figures),
        "plots": run_view.plots_of(figures),
    }


def comparison_page(
    facts: Sequence[RunFacts],
    pairs: PairFigures,
    runs: Sequence[RunFigures],
    settings: Sequence[Mapping[str, Any]],
    scorers: Sequence[str],
    rows: str,
    segments: Mapping[str, Any],
    inline: Sequence[str],
) -> str:
    """Return the comparison of two runs, A and B, with the `settings` of each as of `differing.settings`."""
    currency = facts[0].currency if facts[0].currency == facts[1].currency else None
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
    return _page(
        "comparison.html",
        f"{facts[0].name} and {facts[1].name}: comparison",
        data,
        rows,
        inline,
        runs=[run_view.known_of(*run) for run in zip(facts, runs, strict=True)],
        answered=[model_and_effort(found) for found in settings],
        differs=line(*settings),
        changes=comparison_view.changes(pairs, {name: number for number, name in enumerate(scorers)}),
        outcomes=comparison_view.outcomes(pairs, runs[0], runs[1], currency),
    )


def leaderboard_page(page: LeaderboardPage) -> str:
    """Return the page of a leaderboard, which holds no samples."""
    return _filled("leaderboard.html", page.title, {}, LEADERBOARD_SCRIPTS, {"page": page})


def _page(
    template: str, title: str, data: Mapping[str, Any], rows: str, inline: Sequence[str], **values: object
) -> str:
    packed = {"data": pack(data), "rows": rows}
    packed |= {f"segment-{number}": segment for number, segment in enumerate(inline)}
    return _filled(template, title, packed, SCRIPTS, values)


def _filled(
    template: str,
    title: str,
    packed: Mapping[str, str],
    scripts: Sequence[str],
    values: Mapping[str, object],
    *,
    connect: str = "",
) -> str:
    script, style = "\n".join(static(name) for name in scripts), static("report.css")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}' 'self' file:; style-src '{_digest(style)}'; {connect}"
        "base-uri 'none'; form-action 'none'"
    )
    return render(
        template,
        title=title,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        packed={name: Markup(content) for name, content in packed.items()},
        **values,
    )


@cache
def static(name: str) -> str:
    """Read a file of the page as it stands in the package."""
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
