"""`codex-pool runs`: what there is to do with runs, while they go on and afterwards."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from . import options, streams
from .errors import fail
from .runs_check import check
from .runs_list import list_
from .runs_merge import merge
from .runs_view import view

_RUN = click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True)
_STATUSES = ("completed", "failed", "interrupted", "lost", "stalled", "limit")


@contextmanager
def _reported() -> Iterator[None]:
    from codex_batch.store import RunDirectoryError

    try:
        yield
    except RunDirectoryError as error:
        fail(str(error), options.USAGE)
    except KeyError as error:
        fail(error.args[0], options.USAGE)


@click.group(short_help="List, view, show, check, tail, cancel, retry, merge, export and remove runs.")
def runs() -> None:
    """List, view, show, check, tail, cancel, retry, merge, export and remove runs.

    RUN is a run directory; SAMPLE an id, ID#EPOCH, or ID@VARIANT, ID@VARIANT#EPOCH in a run with variants.
    """


runs.add_command(check)
runs.add_command(list_)
runs.add_command(view)
runs.add_command(merge)


@runs.command()
@click.argument("run", type=_RUN)
@click.argument("sample", required=False, callback=options.as_text)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(run: Path, sample: str | None, as_json: bool) -> None:
    """Show a run: its state, counts and spending; or one of its samples: its record, scores and attempts."""
    import json
    from dataclasses import asdict

    from codex_batch.display import by_variant, summary
    from codex_batch.display.summary import cost as spent_in_words
    from codex_batch.manage import runs as work
    from codex_batch.store import open_run
    from codex_batch.store.export import exported
    from codex_batch.store.rows import counted
    from codex_pool.prices import amount

    with _reported(), open_run(run) as store:
        of_variants: list[tuple[str, str]] = []
        if sample is None:
            spent, info = store.spending(), store.info()
            currency = info["config"].get("currency")
            cost = None if currency is None else spent.cost
            value: dict[str, Any] = {**info, "counts": store.counts(), "not_valid": store.not_valid()}
            value |= {"tokens": spent.tokens, "cost": cost, **store.answered()}
            figures = by_variant.by_variant(store, store.variant_names())
            if figures:
                value["variants"] = by_variant.as_json(figures, currency)
                of_variants = by_variant.table(figures, currency)
            value["hosts"] = [asdict(host) for host in store.hosts()]
            if not as_json:
                config = value.pop("config")
                value.pop("hosts")
                value |= {f"host {host.host}": host.in_words for host in store.hosts()}
                for name in ("judged", "variants"):
                    value.pop(name, None)
                merged = value.pop("merged", None)
                value["merged"] = merged and f"{len(merged['shards'])} of {merged['of']} shards"
                value["cost"] = spent_in_words(spent.known, spent.unknown, currency)
                value["launches"] = len(info["launches"])
                value["command"] = " ".join(["codex-pool", *config.get("command", [])])
                value["dataset"] = (config.get("dataset") or {}).get("name")
                value["outcome"] = (info["outcome"] or {}).get("problem")
                value["gates"] = "; ".join(
                    f"{'passed' if gate['passed'] else 'FAILED'}: {gate['gate']}: {gate['reason']}"
                    for gate in (info["outcome"] or {}).get("gates") or ()
                )
                for name, values in store.answered().items():
                    value[name] = counted(values)
                counts = value["counts"].items()
                value["counts"] = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts if count)
                value["not_valid"] = next((words for _, words in summary.not_valid(store.not_valid())), None)
        else:
            row = work.named(store, sample)
            value = {
                "id": row.id,
                "epoch": row.epoch,
                **({"variant": row.variant} if row.variant else {}),
                "state": row.state,
                "prompts": row.spec["prompts"],
            }
            value |= {} if row.record is None else exported(row)
            if not as_json:
                value["cost"] = amount(value.get("cost"), store.info()["config"].get("currency"))
            value["attempts"] = [asdict(attempt) for attempt in store.attempts(row.n)]
            if not as_json:
                for attempt in value.pop("attempts"):
                    reason = "" if attempt["error"] is None else f": {attempt['error']['message']}"
                    took = "" if attempt["duration_ms"] is None else f" after {attempt['duration_ms'] / 1000:.1f} s"
                    where = "" if attempt["host"] is None else f" on {attempt['host']}"
                    ended = f"{attempt['status'] or 'under way'}{where}{took}{reason}"
                    value[f"attempt {attempt['attempt']}"] = ended
    if as_json:
        click.echo(streams.json_text(json.dumps(value, indent=2)))
        return
    shown = {name: one for name, one in value.items() if one not in (None, "", [], {})}
    width = max(map(len, shown))
    for name, one in shown.items():
        if name.endswith("_at"):
            one = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one))
        words = one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)
        click.echo(streams.shown(f"{name.replace('_', ' '):<{width}}  {words}"))
    width = max((len(name) for name, _ in of_variants), default=0)
    for name, columns in of_variants:
        click.echo(streams.shown(f"{name:<{width}}  {columns}"))


@runs.command()
@click.argument("run", type=_RUN)
@click.option("-n", "count", type=click.IntRange(min=0), default=10, show_default=True, help="How many to begin with.")
@click.option("-f", "--follow", is_flag=True, help="Go on as long as the run does.")
def tail(run: Path, count: int, follow: bool) -> None:
    """Print the samples that ended last, as lines of results.jsonl."""
    from codex_batch.manage import runs as work

    with _reported():
        try:
            work.tail(run, count, follow, work.write_line)
        except KeyboardInterrupt:
            sys.exit(options.INTERRUPTED)


@runs.command()
@click.argument("run", type=_RUN)
@click.argument("sample", required=False, callback=options.as_text)
def cancel(run: Path, sample: str | None) -> None:
    """Stop a run that is under way, as Ctrl-C does; or only one of its samples, which ends as interrupted."""
    from codex_batch.manage import runs as work

    with _reported():
        work.cancel(run, sample)
    click.echo(f"{run}: {'the run stops' if sample is None else f'{sample} is cancelled'}", err=True)


@runs.command()
@click.argument("run", type=_RUN)
@click.argument("samples", nargs=-1, metavar="[SAMPLE]...", callback=options.as_text)
@click.option(
    "--status",
    "statuses",
    type=click.Choice(_STATUSES),
    multiple=True,
    default=("failed", "interrupted", "lost", "stalled"),
    help="Those that ended so, if no SAMPLE is named; may be repeated.  [default: all but completed and limit]",
)
@click.option("--mark", is_flag=True, help="Only mark them; the next run of the directory runs them.")
def retry(run: Path, samples: tuple[str, ...], statuses: tuple[str, ...], mark: bool) -> None:
    """Run samples of a run again that are done, as they are stored in it, with the options of its last command.

    Relative paths in the options begin where that command was begun, if the directory is still there. Neither the
    dataset is read again nor what the command asked of it. Samples that were never begun are left to the command.
    """
    from codex_batch.configuration.settings import STORED
    from codex_batch.manage import runs as work
    from codex_batch.redaction.redactor import is_redacted
    from codex_batch.store import open_run
    from codex_pool.runtime import startup

    with _reported():
        with open_run(run) as store:
            config = store.info()["config"]
        command: list[str] = config.get("command", [])
        if not mark and "batch" not in command:
            fail(f"{run} does not say with what command it was begun; --mark the samples and run it", options.USAGE)
        if not mark and any(word.endswith("=...") or is_redacted(word) for word in command):
            fail("the command held a secret that is not kept; --mark the samples and run it yourself", options.USAGE)
        work.retry(run, samples, statuses)
        count = work.count_started(run)
    click.echo(f"{run}: {count:,} to be run again", err=True)
    if mark or count == 0:
        return
    place = command.index("batch") + 1
    if os.path.isdir(config["directory"]):
        os.chdir(config["directory"])
    words = startup.python("codex_pool_cli", *command[:place], STORED, str(run), *command[place:], utf8=False)
    sys.stdout.flush()
    # In place of this process: Ctrl-C and signals are for the run, and its exit code is that of the command.
    os.execv(words[0], words)


@runs.command()
@click.argument("run", type=_RUN)
@click.option(
    "--format",
    metavar="NAME",
    callback=options.as_text,
    help="jsonl, csv, parquet, inspect; a job: harbor; trajectories: atif, atif-1.8; for fine-tuning: chat; "
    "predictions: swebench; or that of a plug-in (codex-pool plugins).  [default: as FILE ends; jsonl on stdout]",
)
@click.option("--variant", metavar="NAME", callback=options.as_text, help="Only this variant of the run.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="FILE.jsonl, .csv, .parquet, or .eval, a log for `inspect view`: FILE-VARIANT.eval for each variant; a "
    "directory for harbor.  "
    "[default: stdout]",
)
def export(run: Path, format: str | None, variant: str | None, output: Path | None) -> None:
    """Export the finished samples of a run: results with scores, logs of Inspect AI, or whole trajectories."""
    from codex_batch.export import ExportError, check_variant, export_to, format_of
    from codex_batch.export import export as export_file
    from codex_batch.store import open_run

    with _reported(), open_run(run) as store:
        try:
            if output is not None:
                for path in export_file(store, output, format, variant):
                    click.echo(f"{run}: exported to {path}", err=True)
            elif not format_of(format, None).for_stdout:
                fail(f"{format} is not for stdout; name a file with -o", options.USAGE)
            else:
                check_variant(store, variant)
                export_to(store, streams.binary_output(), format, variant)
        except ExportError as error:
            fail(str(error), options.USAGE)


@runs.command()
@click.argument("run", type=_RUN)
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(run: Path, yes: bool) -> None:
    """Remove a run: its record, event logs, artifacts, workspaces and home. Other files in the directory stay."""
    from codex_batch.manage import runs as work
    from codex_batch.store import open_run

    with _reported():
        with open_run(run) as store:
            counts = store.counts()
        if not yes:
            click.confirm(f"Remove {run}, with {counts['done']:,} samples that are done?", abort=True, err=True)
        work.remove(run)
    click.echo(f"{run}: removed", err=True)
