"""`codex-pool runs check`: gates decided for a run that there is, without running it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from . import options, streams
from .errors import fail
from .gate_options import gate_options, gates_of
from .groups import Grouped, group


@click.command(cls=Grouped)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True))
@group("Gates")
@gate_options
@group("Output")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def check(context: click.Context, /, run: Path, as_json: bool, **given: Any) -> None:
    """Decide gates for RUN, by the scores that it has; nothing is run or scored.

    \b
    Exit codes:
      0  all gates have passed
      2  wrong usage, or a gate that cannot be decided: no such scorer, no such run
      4  a gate has failed

    \b
    Examples:
      codex-pool runs check runs/today --fail-under exact=0.8
      codex-pool runs check runs/today --fail-if-worse-than runs/main --margin 0.02 --junit junit.xml
    """
    asked = gates_of(context, given)
    if not asked.any_gate and asked.junit is None:
        raise click.UsageError("no gate is named; give --fail-under, --fail-if-worse-than, or --junit", context)
    from codex_batch.gates import judge
    from codex_batch.gates.options import GateError
    from codex_batch.gates.prepare import plan_of_store, prepare
    from codex_batch.scoring import ScorerError
    from codex_batch.store import RunDirectoryError, open_run
    from codex_batch.store.reader import SHARD

    try:
        with open_run(run) as store:
            gates = judge.Gates(asked, prepare(asked, plan_of_store(store), run))
            found = gates.judge(store, options.OK, None)
            shard = store.info().get(SHARD)
    except (RunDirectoryError, ScorerError, GateError) as error:
        fail(str(error), options.USAGE)
    if shard is not None:
        click.echo(f"{run} is shard {shard}: gates are decided for its samples alone", err=True)
    if as_json:
        gates_json = [verdict.to_json() for verdict in found.verdicts]
        click.echo(streams.json_text(json.dumps({"gates": gates_json, "exit_code": found.code}, indent=2)))
    for name, words in found.rows:
        # Gates are what was asked for; files are told of on stderr.
        if name != judge.GATE:
            click.echo(f"{name}: {words}", err=True)
        elif not as_json:
            click.echo(streams.shown(f"{name}: {words}"))
    found.annotate()
    sys.exit(found.code)
