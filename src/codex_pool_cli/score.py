"""`codex-pool score`: a run scored again, without running it again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from . import options, pool_options, streams
from .groups import Grouped, group
from .run_options import answer_option, with_answer


@click.command(short_help="Score a run again, without running it again.", cls=Grouped)
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@group("Scores")
@click.option(
    "--scorer",
    "scorers",
    multiple=True,
    metavar="SPEC",
    callback=options.as_text,
    help="TYPE, TYPE:VALUE or a JSON object; may be repeated.  [default: the scorers of the run and its samples]",
)
@click.option(
    "--sample-id",
    "samples",
    multiple=True,
    metavar="ID",
    callback=options.as_text,
    help="Only this sample; may be repeated.",
)
@answer_option
@click.option("--missing", is_flag=True, help="Only what a scorer has not scored yet, or failed to.")
@click.option("--pass-at", "k", multiple=True, type=click.IntRange(min=1), metavar="K", help="Say pass@K as well.")
@click.option(
    "--prices",
    metavar="FILE|litellm[:FILE]",
    help="Prices of what a judge is asked, as in `codex-pool batch`.  [default: those of the run]",
)
@click.option(
    "--no-redaction",
    "redact",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Keep secrets as they come.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout: launch, one line a sample, done.")
@pool_options.pool_options(of_run=True)
@click.option(
    "--home",
    default="run",
    show_default=True,
    metavar="run|user|PATH",
    help="CODEX_HOME for a judge, as in `codex-pool batch`.",
)
@options.connect_option
@options.demo_option
@click.pass_context
def score(
    context: click.Context,
    /,
    run: Path,
    scorers: tuple[str, ...],
    answer: str | None,
    samples: tuple[str, ...],
    missing: bool,
    k: tuple[int, ...],
    prices: str | None,
    redact: bool,
    as_json: bool,
    overrides: tuple[str, ...],
    codex_bin: str | None,
    home: str,
    connect: str | None,
    key: str | None,
    demo: bool,
    **given: Any,
) -> None:
    """Score the finished samples of the run directory RUN again; no sample is run.

    Scores by scorers of the same name are replaced. With --scorer or --missing those of all others stay. A scorer that
    needs the workspace gets the one that was kept, or a fresh one with the sample's diff applied. A pool is started
    only for a judge.

    \b
    Scorers: exact, includes, regex, number, choice, json_schema, command, python, judge.

    \b
    Exit codes:
      0    everything is scored
      1    some scorers failed
      2    wrong usage, a wrong scorer, no run in RUN, or no git that it needs; nothing was scored
      3    the pool could not start
      129  the terminal was closed; what was scored is kept
      130  interrupted; what was scored is kept

    \b
    Examples:
      codex-pool score runs/monday
      codex-pool score runs/monday --scorer 'command:pytest -q' --scorer python:checks:style
      codex-pool score runs/monday --scorer 'judge:Is the answer polite?' --missing
    """
    endpoint, key = options.endpoint_of(context, connect, key)

    streams.unblock(f"scoring goes on, and the scores are in {os.path.realpath(run)}", patience_s=streams.READER_S)
    from codex_batch.manage.score import Settings, score_run

    settings = Settings(
        run=Path(os.path.realpath(run)),
        scorers=with_answer(context, scorers, answer),
        samples=samples,
        missing=missing,
        k=tuple(sorted({1, *k})),
        as_json=as_json,
        pool=pool_options.take(given, of_run=True),
        home=home,
        endpoint=endpoint,
        key=key,
        overrides=overrides,
        codex_bin=codex_bin,
        demo=demo,
        prices=prices,
        redact=redact,
    )
    code = score_run(settings)
    if code in (options.INTERRUPTED, options.HUNG_UP):
        streams.hurry()
    sys.exit(code)
