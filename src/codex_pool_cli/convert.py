"""`codex-pool convert`: tasks of other programs as a dataset."""

from __future__ import annotations

from pathlib import Path

import click

from . import options, streams
from .errors import fail

_FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")


@click.group(short_help="Make a dataset of the tasks of another program: swebench.")
def convert() -> None:
    """Make a dataset of the tasks of another program."""


@convert.command()
@click.argument("rows", metavar="ROWS")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where tasks.jsonl is written, and the check of its scorer. Made if missing.",
)
@click.option(
    "--repositories",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Clones of the repositories: DIR/OWNER/NAME, DIR/OWNER__NAME or DIR/NAME.  [default: from GitHub]",
)
@click.option(
    "--test-command",
    metavar="COMMAND",
    callback=options.as_text,
    help="Score with this shell command, which runs tests and prints results as `pytest -rA` does; {files} stands for "
    "the files of the test patch.  [default: no scorer]",
)
@click.option("--images", is_flag=True, help="Have each sample ask for a container of the image of its row.")
@click.option(
    "--format",
    type=click.Choice(_FORMATS),
    help="Of ROWS, if its name does not say it.",
)
def swebench(
    rows: str, output: Path, repositories: Path | None, test_command: str | None, images: bool, format: str | None
) -> None:
    """Make a dataset of ROWS of SWE-bench: JSON lines, Parquet, or hf://ORG/NAME:SPLIT.

    The issue is the prompt, the repository at its base commit the workspace. The agent sees neither the fix nor the
    tests. The predictions for SWE-bench's own harness are `codex-pool runs export RUN --format swebench`.

    \b
    Examples:
      codex-pool convert swebench hf://SWE-bench/SWE-bench_Verified:test -o verified
      codex-pool convert swebench rows.jsonl --repositories clones --test-command 'pytest -rA {files}' -o tasks
    """
    import sys

    from codex_batch.dataset import DatasetError
    from codex_batch.dataset.swebench import TASKS, Conversion, write_tasks

    conversion = Conversion(repositories=repositories, test_command=test_command, images=images)
    try:
        count = write_tasks(rows, output, conversion, format=format, stdin=sys.stdin.buffer)
    except DatasetError as error:
        fail(str(error), options.USAGE)
    except OSError as error:
        fail(f"{output}: cannot be written: {error.strerror}; name another directory", options.USAGE)
    click.echo(streams.shown(f"{output / TASKS}: {count:,} tasks"), err=True)
