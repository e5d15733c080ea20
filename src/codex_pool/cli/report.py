"""`codex-pool report`: one page of a run, or of two runs compared."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command(short_help="Write a run, or two runs compared, as one HTML page.")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("other", required=False, metavar="[OTHER]", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page. Without it RUN/report.html, or OTHER/report-against-RUN.html.",
)
def report(run: Path, other: Path | None, output: Path | None) -> None:
    """Write what happened in RUN as one HTML page, or compare OTHER with RUN sample by sample.

    RUN and OTHER are run directories of `codex-pool batch`; a run may still be under way. The page opens from the disk,
    without a server, and loads nothing from anywhere. Of large runs the transcripts stand in a directory beside it,
    FILE.segments without the .html: copy them together.

    The page's path goes to stdout.

    \b
    Examples:
      codex-pool report runs/monday
      codex-pool report runs/monday runs/tuesday -o compared.html
    """
    from codex_pool.batch.report.write import ReportError, write_comparison, write_run_report
    from codex_pool.batch.store import RunDirectoryError, open_run

    progress = _Progress()
    try:
        if other is None:
            path = output or run / "report.html"
            with open_run(run) as store:
                write_run_report(store, path, progress.show)
        else:
            path = output or other / f"report-against-{Path(os.path.realpath(run)).name}.html"
            with open_run(run) as first, open_run(other) as second:
                write_comparison(first, second, path, progress.show)
    except (RunDirectoryError, ReportError) as error:
        progress.end()
        raise click.UsageError(str(error)) from None
    progress.end()
    click.echo(str(path))


class _Progress:
    """How many samples are written, on a terminal's stderr."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, done: int) -> None:
        if done % 100 == 0 and sys.stderr.isatty():
            click.echo(f"\r{done:,} samples", nl=False, err=True)
            self._shown = True

    def end(self) -> None:
        if self._shown:
            click.echo(err=True)
