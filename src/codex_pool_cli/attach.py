"""`codex-pool attach`: the display of a run that goes on somewhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from . import options
from .errors import fail


@click.command(short_help="Show a run that goes on in the background.")
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
def attach(run: Path) -> None:
    """Show the run in the directory RUN as it goes on, until it ends. Ctrl-C stops looking, not the run.

    The exit code is that of the run, 130 if it still goes on.
    """
    from codex_batch.display import live
    from codex_batch.manage import runs
    from codex_batch.store import RunDirectoryError, open_run

    try:
        state = runs.attach(Path(os.path.realpath(run)), live.make)
        with open_run(Path(os.path.realpath(run))) as store:
            outcome = store.info()["outcome"] or {}
    except RunDirectoryError as error:
        fail(str(error), options.USAGE)
    except KeyboardInterrupt:
        click.echo(f"codex-pool: the run goes on; `codex-pool runs cancel {run}` stops it", err=True)
        sys.exit(options.INTERRUPTED)
    counts = ", ".join(f"{count} {status}" for status, count in outcome.get("counts", {}).items() if count)
    click.echo(f"{run}: {state}{f': {counts}' if counts else ''}", err=True)
    sys.exit(outcome.get("exit_code", options.SOME_FAILED))
