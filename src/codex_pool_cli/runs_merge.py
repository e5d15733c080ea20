"""`codex-pool runs merge`: the run directories of shards become one run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from . import options, streams
from .errors import fail

if TYPE_CHECKING:
    from codex_batch.merge import Merged


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="DIR...", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The merged run. Made if missing; an earlier merge is added to.",
)
@click.option("--allow-missing", is_flag=True, help="Merge although shards are missing; they may be added later.")
@click.option(
    "--prefer",
    type=click.Choice(("first", "last")),
    help="Of a sample with different answers in several DIRs, take that of the first or the last of them. Without it "
    "that is refused.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def merge(
    runs: tuple[Path, ...], output: Path, allow_missing: bool, prefer: Literal["first", "last"] | None, as_json: bool
) -> None:
    """Make one run of the runs of shards: those of batch --shard 1/N to N/N.

    The merged run has their records, scores, attempts, costs, event logs and artifacts, and all commands for runs work
    on it: show, report, export, score, check; `batch -o` without --shard goes on with what is not done. The DIRs are
    not changed, and none may be under way. The same merge again changes nothing.

    \b
    Exit codes:
      0  merged, though perhaps not every sample is done
      2  the DIRs cannot become one run; nothing was changed

    \b
    Examples:
      codex-pool runs merge runs/shard-1 runs/shard-2 runs/shard-3 -o runs/all
      codex-pool runs merge runs/shard-* -o runs/all --allow-missing
    """
    from codex_batch.merge import MergeError
    from codex_batch.merge import merge as merge_runs
    from codex_batch.store import RunDirectoryError
    from codex_pool.runtime.os_errors import describe

    try:
        merged = merge_runs(runs, output, allow_missing=allow_missing, prefer=prefer)
    except MergeError as error:
        for problem in error.problems:
            click.echo(f"codex-pool: {problem}", err=True)
        fail(f"{output}: nothing was merged", options.USAGE)
    except RunDirectoryError as error:
        fail(str(error), options.USAGE)
    except OSError as error:
        fail(f"{describe(error)}; the same merge again goes on", options.USAGE)
    if as_json:
        value = {
            "path": str(merged.path),
            "of": merged.of,
            "shards": merged.shards,
            "missing": merged.missing,
            "changed": merged.taken,
            "ended": merged.ended,
            "counts": merged.counts,
        }
        click.echo(streams.json_text(json.dumps(value, indent=2)))
        return
    for line in _lines(merged):
        click.echo(streams.shown(line))


def _lines(merged: Merged) -> list[str]:
    """The merge in words, with what may be done next."""
    from codex_app_server._runtime.text import plural
    from codex_batch.display.next_steps import next_steps, shown_path

    here = os.getcwd()
    run = shown_path(str(merged.path), here)
    found = [f"{run}: {len(merged.shards)} of {plural(merged.of, 'shard')}, {plural(merged.taken, 'sample')} changed"]
    if merged.missing:
        found.append(f"  missing    {', '.join(f'{index}/{merged.of}' for index in merged.missing)}")
    found += [f"  {name.replace('_', ' '):<9}  {count:,}" for name, count in merged.counts.items() if count]
    if merged.ended:
        found.append(
            f"  {plural(merged.ended, 'attempt')} under way when a shard ended, taken as lost; the command of it "
            "looks for what they have done, so run it and merge again"
        )
    steps = next_steps(run, here, merged.counts, merged.command)
    if steps:
        found.append("next:")
    width = max((len(name) for name, _ in steps), default=0)
    return [*found, *(f"  {name:<{width}}  {command}" for name, command in steps)]
