"""`codex-pool report`: one page of a run, of two results compared, or of any number side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options, streams

if TYPE_CHECKING:
    from codex_batch.report.leaderboard.operands import Chosen
    from codex_batch.report.leaderboard.table import Table

_FILE = click.Path(dir_okay=False, path_type=Path)
_STDOUT = Path("-")


@click.command(short_help="Write a run, two compared, or any number side by side, as one HTML page.")
@click.argument("runs", metavar="RUN[@VARIANT]...", nargs=-1, required=True, type=click.Path())
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=_FILE,
    help="The page. Without it a report.html in the run directory, or leaderboard.html in this one; see below.",
)
@click.option("--table", "as_table", is_flag=True, help="A leaderboard, also of one or two results.")
@click.option(
    "--baseline",
    metavar="RUN[@VARIANT]",
    type=click.Path(),
    help="A leaderboard with paired comparisons of all others with this result, added if it is not among them.",
)
@click.option(
    "--scorer",
    metavar="NAME",
    callback=options.as_text,
    help="The scorer that a leaderboard begins with, and that its chart is of.  [default: the first of the first run]",
)
@click.option("--svg", metavar="FILE", type=_FILE, help="The chart of a leaderboard as SVG.")
@click.option("--png", metavar="FILE", type=_FILE, help="The chart as PNG; needs pip install 'codex-pool[png]'.")
@click.option("--csv", metavar="FILE", type=_FILE, help="A leaderboard as CSV; - is stdout.")
@click.option("--json", "json_", metavar="FILE", type=_FILE, help="A leaderboard as JSON; - is stdout.")
def report(
    runs: tuple[str, ...],
    output: Path | None,
    as_table: bool,
    baseline: str | None,
    scorer: str | None,
    svg: Path | None,
    png: Path | None,
    csv: Path | None,
    json_: Path | None,
) -> None:
    """Write what happened in runs as one HTML page.

    RUN is a run directory of `codex-pool batch`, which may still be under way. A run with variants stands for each of
    them, RUN@VARIANT for one. The page opens from the disk, without a server, and loads nothing from anywhere.

    \b
    One result     its samples with their transcripts      RUN/report.html
    two            compared sample by sample               OTHER/report-against-RUN.html
    three or more  a leaderboard                           leaderboard.html
    The variants of one RUN                                RUN/report.html

    A leaderboard ranks by the mean over all planned samples, in which a sample without a score counts as 0. --table,
    --baseline, --scorer and files of a chart or a table ask for one. With such a file and without -o there is no page.

    Of large runs the transcripts stand in a directory beside the page, FILE.segments without the .html: copy them
    together. The paths of what was written go to stdout.

    \b
    Examples:
      codex-pool report runs/monday
      codex-pool report runs/monday runs/tuesday -o compared.html
      codex-pool report runs/* --baseline runs/monday --png chart.png -o leaderboard.html
    """
    from codex_batch.report.leaderboard import operands
    from codex_batch.report.leaderboard.picture import PictureError
    from codex_batch.report.write import ReportError
    from codex_batch.store import RunDirectoryError

    files = {"svg": svg, "png": png, "csv": csv, "json": json_}
    if csv == json_ == _STDOUT:
        raise click.UsageError("--csv and --json cannot both be on stdout; name a file for one of them")
    progress = _Progress()
    try:
        chosen = operands.choose(runs)
        if len(chosen) > 2 or as_table or baseline is not None or scorer is not None or any(files.values()):
            table = _table(chosen, baseline, scorer, progress)
            written = _write_leaderboard(table, files, output or _default(chosen, runs, any(files.values())))
        else:
            written = [_write_samples(chosen, output, len(runs), progress)]
    except (RunDirectoryError, ReportError, PictureError) as error:
        progress.end()
        raise click.UsageError(str(error)) from None
    progress.end()
    for path in written:
        # Beside a table on stdout there is nothing else.
        click.echo(str(path), err=_STDOUT in files.values())


def _write_samples(chosen: list[Chosen], output: Path | None, operands: int, progress: _Progress) -> Path:
    """Write the page of one result, or the comparison of two."""
    from codex_batch.report.leaderboard.operands import source_of
    from codex_batch.report.leaderboard.write import file_name, report_name
    from codex_batch.report.write import write_comparison, write_run_report
    from codex_batch.store import open_run

    last = chosen[-1]
    with open_run(chosen[0].path) as first, open_run(last.path) as second:
        if len(chosen) == 1:
            path = output or last.path / report_name(last.variant)
            write_run_report(source_of(first, last), path, progress.show)
            return path
        if operands == 1:
            path = output or last.path / report_name("")
        else:
            before, after = (_label(one) for one in chosen)
            against = f"report@{after}-against-{before}" if last.variant else f"report-against-{before}"
            path = output or last.path / f"{file_name(against)}.html"
        write_comparison(source_of(first, chosen[0]), source_of(second, last), path, progress.show)
        return path


def _label(one: Chosen) -> str:
    """The name of a result in the name of a comparison."""
    from codex_app_server._runtime.files import resolved

    return one.variant or resolved(one.path).name


def _table(chosen: list[Chosen], baseline: str | None, scorer: str | None, progress: _Progress) -> Table:
    from codex_batch.report.leaderboard import operands
    from codex_batch.report.leaderboard.table import table_of

    place = None
    if baseline is not None:
        base = operands.one(baseline)
        identities = [one.identity for one in chosen]
        if base.identity not in identities:
            chosen = operands.named([*chosen, base])
            identities.append(base.identity)
        place = identities.index(base.identity)
    results = operands.read(chosen, progress.show)
    names = dict.fromkeys(name for result in results for name in result.scorers())
    if scorer is not None and scorer not in names:
        has = f"they have {', '.join(names)}" if names else "they have no scorers"
        raise click.UsageError(f"--scorer {scorer}: no run has it; {has}")
    return table_of(results, place, scorer)


def _write_leaderboard(table: Table, files: dict[str, Path | None], page: Path | None) -> list[Path]:
    from codex_batch.report.leaderboard import write

    if not table.scorers and (files["svg"] or files["png"]):
        raise click.UsageError("there is no chart: no scorer has scored anything; `codex-pool score` scores answers")
    written = []
    for name, path in files.items():
        if path is None:
            continue
        if name in ("svg", "png"):
            (write.write_svg if name == "svg" else write.write_png)(table, path)
        else:
            content = (write.as_csv if name == "csv" else write.as_json)(table)
            if path == _STDOUT:
                streams.binary_output().write(content.encode())
                continue
            write.write(path, content.encode())
        written.append(path)
    if page is not None:
        write.write_page(table, page)
        written.append(page)
    return written


def _default(chosen: list[Chosen], operands: tuple[str, ...], has_files: bool) -> Path | None:
    """The page of a leaderboard without -o; None if files were asked for instead."""
    if has_files:
        return None
    return chosen[0].path / "report.html" if len(operands) == 1 else Path("leaderboard.html")


class _Progress:
    """Progress of samples that are read, on a terminal's stderr."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, done: int) -> None:
        if done % 100 == 0 and sys.stderr.isatty():
            click.echo(f"\r{done:,} samples", nl=False, err=True)
            self._shown = True

    def end(self) -> None:
        if self._shown:
            click.echo(err=True)
