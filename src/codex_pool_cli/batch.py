"""`codex-pool batch`: every sample of a dataset, with results on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from . import options, pool_options, streams
from .container_options import container_of, container_options
from .dataset_options import dataset_options, request_of
from .gate_options import gate_options, gates_of
from .groups import Grouped, group
from .host_options import host_options, hosts_of
from .run_options import limits_of, policy_options, run_limits_of, scoring_options, with_answer
from .variant_options import variant_options, variants_of


@click.command(short_help="Run every prompt of a dataset; results on disk.", cls=Grouped)
@click.argument("dataset", required=False, metavar="[DATASET]")
@group("Samples")
@dataset_options
@group("Workspaces and scores")
@scoring_options
@container_options
@group("Limits and failures")
@policy_options
@group("Gates")
@gate_options
@pool_options.pool_options(of_run=True)
@click.option(
    "--home",
    default="run",
    show_default=True,
    metavar="run|user|PATH",
    help="CODEX_HOME: DIR/home, made from your own (its config.toml copied, its login linked); your own; or PATH.",
)
@variant_options
@options.connect_option
@host_options
@options.demo_option
@click.option(
    "--demo-script",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="As --demo, with a script of answers of your own, such as examples/eval/_demo/agent.toml.",
)
@group("The run")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The run directory: results.jsonl, run.sqlite, config.json, pool.log. Made if missing; continued if not.",
)
@click.option("--fresh", is_flag=True, help="Remove what an earlier run left in DIR, and start over.")
@click.option(
    "--changed",
    type=click.Choice(("refuse", "rerun")),
    default="refuse",
    show_default=True,
    help="What to do with samples that were done and ask something else now, or with another configuration.",
)
@click.option(
    "--estimate",
    type=click.IntRange(min=1),
    metavar="N",
    help="Run N samples only, and say what all will cost. The same command without it goes on.",
)
@click.option(
    "--no-redaction",
    "redact",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Keep secrets in DIR as they come: values of variables that look secret, of config.toml and of a login.",
)
@click.option(
    "--no-rollouts",
    "rollouts",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Keep no session files of codex in DIR, some 13 KB a sample: exports of trajectories are made of them.",
)
@click.option("--detach", is_flag=True, help="Go on in the background once it runs; see codex-pool attach.")
@click.option("--notify", metavar="COMMAND", help="A shell command at the end; $CODEX_POOL_RUN, _STATE, _EXIT_CODE.")
@click.option(
    "--on-record",
    multiple=True,
    metavar="NAME",
    callback=options.as_text,
    help="Give each record to this hook, in a process of its own: opentelemetry, or one of a plug-in (codex-pool "
    "plugins); may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout: launch, one line a sample, done.")
@click.option("--stored", hidden=True, type=click.Path(file_okay=False, path_type=Path))
@click.pass_context
def batch(context: click.Context, /, dataset: str | None, **given: Any) -> None:
    """Run every sample of DATASET, each in a thread of its own, and keep the results in DIR.

    DATASET is a file - JSON lines, a JSON array, CSV, Parquet; also with gzip - or a directory of task folders, or `-`
    for stdin, or hf://ORG/NAME[/CONFIG]:SPLIT[@REVISION]. A sample has a `prompt`, or several `prompts` in turn, and
    more if wanted; --field names them as the file does. One without `cwd` or `workspace` works in DIR/work/ID. With
    --demo, DATASET may be left out.

    The same command again runs only what is not done, however the last run ended. Ctrl-C stops what runs and keeps
    what there is; a second one ends at once. When the terminal is closed the run goes on without its display.

    \b
    Exit codes:
      0    every sample is completed, or reached a limit
      1    some are not
      2    wrong usage, a wrong dataset, or git is missing that it needs; nothing was started
      3    the pool could not start, or the CODEX_HOME cannot be used
      4    a gate has failed, whatever samples are not completed; if all have passed, the code is 0
      130  interrupted

    \b
    Examples:
      codex-pool batch --demo --retries 1 -o demo
      codex-pool batch prompts.jsonl --workers 4 -o runs/monday
      codex-pool batch test.json.gz --field id=n --field prompt=question --field target=answer --scorer exact -o runs/qa
      codex-pool batch tasks/ --scorer 'command:pytest -q' --epochs 3 --detach -o runs/tuesday
      codex-pool batch tasks/ --ray auto --workers 4 --retries 2 -o runs/wednesday
    """
    given["demo"] = given["demo"] or given["demo_script"] is not None
    endpoint, key = options.endpoint_of(context, given.pop("connect"), given.pop("key"))
    if given["demo_script"] is not None and endpoint is not None:
        raise click.UsageError("--demo-script makes an own pool and cannot go with --connect", context)
    if dataset is None and not given["demo"]:
        raise click.UsageError("DATASET is missing; name a file of JSON lines, or try --demo", context)
    if given["demo"] and context.get_parameter_source("home") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--demo has a home of its own in DIR and cannot go with --home", context)
    if not given["home"]:
        raise click.BadParameter("is empty; give run, user, or an existing CODEX_HOME", param_hint="--home")
    request = request_of(context, "-" if dataset is None else dataset, given)
    output, stored = Path(os.path.realpath(given.pop("output"))), given.pop("stored")
    if stored is not None:
        # The command of a run once more, for samples that it has: see `runs retry`.
        output = Path(os.path.realpath(stored))
        given.update(detach=False, fresh=False, estimate=None)
    variants_of(given, is_stored=stored is not None)
    given["hosts"] = hosts_of(context, given, endpoint)
    given["gates"] = gates_of(context, given)
    given["container"] = container_of(context, given)
    if given["estimate"] is not None and given["gates"].any_gate:
        raise click.UsageError("--estimate runs some of the samples only and cannot go with gates", context)
    given["scorers"] = with_answer(context, given["scorers"], given.pop("answer"))
    if given.pop("detach"):
        if dataset == "-":
            raise click.UsageError("--detach cannot read standard input; name a file", context)
        from codex_batch.manage.detach import detach

        sys.exit(detach(sys.argv[1:], output))

    streams.unblock(f"the run goes on, and its results are in {output}", patience_s=streams.READER_S)
    from codex_batch.configuration.settings import Settings
    from codex_batch.run.controller import run_batch

    settings = Settings(
        request=request,
        demo_dataset=dataset is None,
        output=output,
        stored=stored is not None,
        pool=pool_options.take(given, of_run=True),
        endpoint=endpoint,
        key=key,
        rerun_changed=given.pop("changed") == "rerun",
        limits=limits_of(given),
        run_limits=run_limits_of(given),
        **given,
    )
    try:
        code = run_batch(settings)
    except KeyboardInterrupt:
        code = options.INTERRUPTED
    if code == options.INTERRUPTED:
        streams.hurry()
    sys.exit(code)
