"""Output for GitHub Actions about a run: a step summary in Markdown, and annotations. Pure.

All text of samples stands in cells of tables with its punctuation as character references: it is shown as it is, and is
neither markup, nor a link, nor HTML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from codex_app_server._runtime.text import one_line, plural
from codex_pool.runtime.terminal import plain
from codex_pool.runtime.workflow_commands import command

from ..scoring.metric_rows import figures
from .cases import Case, Overview
from .verdicts import Verdict

# GitHub takes 1 MiB of each step, and nothing of a longer one.
SUMMARY_BYTES = 2**20
# GitHub keeps 10 errors and 10 warnings of a step.
ANNOTATIONS = 10
ROWS = 100
CELL_CHARACTERS = 300
_MARKUP = re.compile(r"[^\w .,;()/%+=-]|_", re.ASCII)


def summary(title: str, overview: Overview, verdicts: Sequence[Verdict], redact: Callable[[str], str] = str) -> str:
    """The step summary of a run: gates, scores by variant, and the worst samples; well below SUMMARY_BYTES."""
    cell = _cell(redact)
    lines = [f"### codex-pool: {cell(title)}", ""]
    if verdicts:
        rows = ((_word(verdict), cell(verdict.gate), cell(verdict.reason)) for verdict in verdicts)
        lines += _table(("", "gate", "result"), rows, len(verdicts))
    has_variants = any(overview.columns)
    columns = []
    for variant, column in overview.columns.items():
        counts = ", ".join(f"{count:,} {_KINDS[kind]}" for kind in _KINDS if (count := column.kinds[kind]))
        scorers = column.metrics().scorers
        said = "<br>".join(f"{cell(name)}: {cell(figures(metrics))}" for name, metrics in scorers.items())
        name = (cell(variant),) if has_variants else ()
        columns.append((*name, f"{column.count:,}", counts, said))
    heads = ("variant",) if has_variants else ()
    lines += _table((*heads, "samples", "of them", "scores of those scored"), columns, len(columns))
    worst = overview.worst
    if worst:
        lines += [f"{plural(overview.not_passed, 'sample')} did not pass" + _first(overview, worst), ""]
        rows = ((cell(_named(case)), cell(case.message), cell(case.scores)) for case in worst)
        lines += _table(("sample", "why", "scores"), rows, len(worst))
    return "\n".join(lines) + "\n"


def workflow_commands(overview: Overview, verdicts: Sequence[Verdict], redact: Callable[[str], str] = str) -> list[str]:
    """Workflow commands: an error for each gate that has failed, a warning for each of the worst samples."""

    def made(name: str, texts: list[tuple[str, str]], count: int, more: str) -> list[str]:
        shown = texts[: ANNOTATIONS if count <= ANNOTATIONS else ANNOTATIONS - 1]
        if count > len(shown) and shown:
            shown = [*shown, (more, f"{count - len(shown):,} more; see the step summary")]
        return [command(name, plain(redact(title)), plain(redact(text))) for title, text in shown]

    gates = [(f"gate failed: {verdict.gate}", verdict.reason) for verdict in verdicts if not verdict.passed]
    samples = [(f"sample {_named(case)}", case.message) for case in overview.worst if case.kind != "skipped"]
    skipped = sum(column.kinds["skipped"] for column in overview.columns.values())
    return [
        *made("error", gates, len(gates), "gates failed"),
        *made("warning", samples, overview.not_passed - skipped, "samples did not pass"),
    ]


_KINDS = {"passed": "passed", "failure": "wrong", "error": "in error", "skipped": "not run"}


def _named(case: Case) -> str:
    return f"{case.name} ({case.variant})" if case.variant else case.name


def _word(verdict: Verdict) -> str:
    return "passed" if verdict.passed else "**failed**"


def _first(overview: Overview, worst: Sequence[Case]) -> str:
    return "." if len(worst) == overview.not_passed else f"; the first {len(worst)}:"


def _cell(redact: Callable[[str], str]) -> Callable[[str], str]:
    def cell(text: str) -> str:
        return _MARKUP.sub(_reference, one_line(plain(redact(text)), CELL_CHARACTERS))

    return cell


def _reference(match: re.Match[str]) -> str:
    letter = match[0]
    # Letters of other scripts stay; lone surrogates are no text.
    if ord(letter) < 0x80 or not letter.isprintable():
        return f"&#{ord(letter)};"
    return letter


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], count: int) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for number, row in enumerate(rows):
        if number == ROWS:
            lines.append(f"| and {count - ROWS:,} more |{' |' * (len(heads) - 1)}")
            break
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]
