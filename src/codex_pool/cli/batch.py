"""`codex-pool batch`: every prompt of a dataset, with results on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from codex_pool.cli import options
from codex_pool.cli.dataset_options import dataset_options, request_of


@click.command(short_help="Run every prompt of a dataset; results on disk.")
@click.argument("dataset", required=False, metavar="[DATASET]")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The run directory: results.jsonl, run.sqlite, config.json, pool.log. Made if missing; taken up if not.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Try a sample that failed, was lost or stalled up to N more times.",
)
@click.option("--fresh", is_flag=True, help="Remove what an earlier run left in DIR, and begin anew.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout: launch, one line a sample, done.")
@dataset_options
@options.pool_options
@click.option(
    "--home",
    default="run",
    show_default=True,
    metavar="run|user|PATH",
    help="CODEX_HOME: DIR/home, made from your own (its config.toml copied, its login linked); your own; or PATH.",
)
@options.connect_option
@options.demo_option
@click.option(
    "--demo-script",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="As --demo, with a script of answers of your own, such as examples/eval/_demo/agent.toml.",
)
@click.pass_context
def batch(
    context: click.Context,
    /,
    dataset: str | None,
    output: Path,
    retries: int,
    fresh: bool,
    as_json: bool,
    workers: int,
    turns_per_worker: int,
    overrides: tuple[str, ...],
    codex_bin: str | None,
    home: str,
    connect: str | None,
    key: str | None,
    demo: bool,
    demo_script: Path | None,
    **asked: Any,
) -> None:
    """Run every prompt of DATASET, each in a thread of its own, and keep the results in DIR.

    DATASET is a file of JSON lines, CSV or Parquet, a directory of task folders, or `-` for stdin. A sample has a
    `prompt`, or `prompts`, and if wanted `id`, `cwd`, `workspace`, `model`, `effort`, `sandbox`, `output_schema`,
    `timeout_s`, `limits`, `target`, `scorers`, `tags`, `metadata`. Without `cwd` and `workspace` it works in
    DIR/work/ID. With --demo, DATASET may be left out.

    The same command again runs only what is not completed, however the last run ended. Ctrl-C stops what runs and keeps
    what there is; a second one ends at once.

    \b
    Exit codes:
      0    every sample is completed
      1    some are not
      2    wrong usage or a wrong dataset; nothing was started
      3    the pool could not start
      130  interrupted

    \b
    Examples:
      codex-pool batch --demo --retries 1 -o demo
      codex-pool batch prompts.jsonl --workers 4 -o runs/monday
      codex-pool batch prompts.jsonl --connect default --json -o runs/tuesday
    """
    endpoint, key = options.endpoint_of(context, connect, key)
    demo = demo or demo_script is not None
    if dataset is None and not demo:
        raise click.UsageError("DATASET is missing; name a file, or try --demo", context)
    if demo and context.get_parameter_source("home") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--demo has a home of its own in DIR and cannot go with --home", context)
    if not home:
        raise click.BadParameter("is empty; give run, user, or an existing CODEX_HOME", param_hint="--home")

    from codex_pool.batch.run import Settings, run_batch

    settings = Settings(
        request=request_of(context, "-" if dataset is None else dataset, asked),
        demo_dataset=dataset is None,
        output=output.resolve(),
        workers=workers,
        turns_per_worker=turns_per_worker,
        retries=retries,
        home=home,
        fresh=fresh,
        as_json=as_json,
        endpoint=endpoint,
        key=key,
        overrides=overrides,
        codex_bin=codex_bin,
        demo=demo,
        demo_script=demo_script,
    )
    try:
        code = run_batch(settings)
    except KeyboardInterrupt:
        code = options.INTERRUPTED
    sys.exit(code)
