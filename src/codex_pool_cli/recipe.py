"""`codex-pool recipe`: jobs of cluster managers that run the shards of a dataset, as text to save."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from . import streams
from .recipes import kubernetes as of_kubernetes
from .recipes import slurm as of_slurm
from .recipes.kubernetes import Pods
from .recipes.shards import ShardedRun

F = TypeVar("F", bound=Callable[..., Any])
MAX_SHARDS = 10_000
# What follows DATASET is for `codex-pool batch`.
_REST = {"allow_interspersed_args": False}
_MEMORY = re.compile(r"[1-9][0-9]{0,9}(K|M|G|T)?")
_QUANTITY = re.compile(r"[1-9][0-9]{0,9}(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?")
_CPUS = re.compile(r"[1-9][0-9]{0,4}(\.[0-9]+)?|[1-9][0-9]{0,6}m")
_TIME = re.compile(r"[0-9]{1,5}(:[0-9]{1,2}){0,2}|[0-9]{1,4}-[0-9]{1,2}(:[0-9]{1,2}){0,2}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Pods and their host names are named by it, with an index.
_DNS = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,254}")
_REFUSED = {
    "detach": "a job ends with its command",
    "fresh": "a task that is started again would remove what it has",
    "estimate": "each shard would run some samples only",
    "as_json": "results are in the run directories",
}


def _checked(pattern: re.Pattern[str], expected: str) -> Callable[..., Any]:
    def check(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is not None and not pattern.fullmatch(value):
            raise click.BadParameter(f"{value!r}; expected {expected}")
        return value

    return check


def _of_runs(function: F) -> F:
    """Give a recipe the arguments and options of every recipe."""
    for add in (
        click.option(
            "-o",
            "--output",
            required=True,
            metavar="DIR",
            help="The directory of the runs, which all machines have: DIR/shard-1 and so on, DIR/merged.",
        ),
        click.option("--shards", required=True, type=click.IntRange(1, MAX_SHARDS), metavar="N", help="N shards."),
        click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION OF BATCH]..."),
        click.argument("dataset", metavar="DATASET"),
    ):
        function = add(function)
    return function


@click.group(short_help="Print a job that runs the shards of a dataset on a cluster: slurm, kubernetes.")
def recipe() -> None:
    """Print a job that runs the shards of a dataset on a cluster, ready to be saved and submitted.

    Options of `codex-pool batch` follow DATASET, and are checked here. Nothing is started.
    """


@recipe.command(context_settings=_REST)
@_of_runs
@click.option("--name", default="codex-pool", show_default=True, callback=_checked(_WORD, "letters, digits, . _ -"))
@click.option("--time", metavar="T", callback=_checked(_TIME, "minutes, H:MM:SS or D-HH"), help="Limit of each task.")
@click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="CPUs of each task.")
@click.option(
    "--memory", metavar="SIZE", callback=_checked(_MEMORY, "a size such as 8G"), help="Memory of each task, as 8G."
)
@click.option("--partition", metavar="NAME", callback=_checked(_WORD, "letters, digits, . _ -"))
@click.option("--account", metavar="NAME", callback=_checked(_WORD, "letters, digits, . _ -"))
@click.pass_context
def slurm(
    context: click.Context,
    /,
    dataset: str,
    words: tuple[str, ...],
    shards: int,
    output: str,
    name: str,
    time: str | None,
    cpus: int | None,
    memory: str | None,
    partition: str | None,
    account: str | None,
) -> None:
    """Print a job array for sbatch: each task runs one shard.

    \b
    Example:
      codex-pool recipe slurm --shards 20 --time 4:00:00 -o /shared/runs/monday \\
          tasks/ --workers 4 --scorer 'command:pytest -q' --retries 1 > shards.sh
    """
    run = _sharded(context, dataset, words, shards, output)
    settings = {
        "job-name": name,
        "time": time,
        "cpus-per-task": None if cpus is None else str(cpus),
        "mem": memory,
        "partition": partition,
        "account": account,
    }
    click.echo(streams.shown(of_slurm.script(run, settings)), nl=False)


@recipe.command(context_settings=_REST)
@_of_runs
@click.option(
    "--image", required=True, callback=_checked(_IMAGE, "the name of an image"), help="Image with codex-pool."
)
@click.option(
    "--claim",
    required=True,
    metavar="NAME",
    callback=_checked(_DNS, "a name of Kubernetes: a-z, 0-9, -"),
    help="PersistentVolumeClaim that DIR is on.",
)
@click.option("--mount", default="/runs", show_default=True, metavar="PATH", help="Where the claim is mounted.")
@click.option("--secret", metavar="NAME", callback=_checked(_DNS, "a name"), help="Secret with OPENAI_API_KEY.")
@click.option("--name", default="codex-pool", show_default=True, callback=_checked(_DNS, "a name: a-z, 0-9, -"))
@click.option("--namespace", metavar="NAME", callback=_checked(_DNS, "a name of Kubernetes: a-z, 0-9, -"))
@click.option("--parallelism", type=click.IntRange(min=1), metavar="N", help="Pods that run at once.  [default: all]")
@click.option("--cpus", metavar="N", callback=_checked(_CPUS, "a number such as 2 or 500m"), help="CPUs of each pod.")
@click.option(
    "--memory", metavar="SIZE", callback=_checked(_QUANTITY, "a size such as 8Gi"), help="Memory of each pod, as 8Gi."
)
@click.option("--merge", "is_merge", is_flag=True, help="The Job that merges the shards, for when they have ended.")
@click.pass_context
def kubernetes(
    context: click.Context,
    /,
    dataset: str,
    words: tuple[str, ...],
    shards: int,
    output: str,
    is_merge: bool,
    **given: Any,
) -> None:
    """Print an Indexed Job for kubectl: each pod runs one shard.

    DATASET and DIR are paths in the pods; DIR lies below the mount of the claim.

    \b
    Example:
      codex-pool recipe kubernetes --shards 20 --image registry.example/evals:1 --claim runs --secret openai \\
          -o /runs/monday /data/tasks --workers 4 --scorer 'command:pytest -q' > shards.yaml
    """
    mount = given["mount"].rstrip("/")
    if not mount.startswith("/") or ":" in mount:
        raise click.BadParameter(f"{given['mount']!r}; expected an absolute path without a colon", param_hint="--mount")
    if not output.startswith(f"{mount}/"):
        raise click.BadParameter(f"{output!r} is not below the mount of the claim, {mount}", param_hint="-o")
    run, pods = _sharded(context, dataset, words, shards, output), Pods(**{**given, "mount": mount})
    text = of_kubernetes.merge(run, pods) if is_merge else of_kubernetes.shards(run, pods)
    click.echo(streams.shown(text), nl=False)


def _sharded(context: click.Context, dataset: str, words: tuple[str, ...], shards: int, output: str) -> ShardedRun:
    """Make the run of a recipe's arguments; the options of `batch` are parsed as it will. Raises UsageError."""
    from .batch import batch

    for what, text in (("DATASET", dataset), ("DIR", output)):
        if not text or not text.isprintable():
            raise click.UsageError(f"{what} is {text!r}; expected a path that can be printed", context)
    if dataset == "-":
        raise click.UsageError("DATASET is -, and the tasks of a job have no standard input; name a file", context)
    # -o is required there.
    place = f"{output}/of-the-recipe"
    parsed = batch.make_context("batch", ["-o", place, dataset, *words], parent=context.find_root())
    for option, is_given in (("--shard", parsed.params["shard"]), ("-o", str(parsed.params["output"]) != place)):
        if is_given:
            raise click.UsageError(f"{option} is set by the recipe; leave it out of the options of batch", context)
    for name, why in _REFUSED.items():
        if parsed.params[name]:
            option = next(each.opts[0] for each in batch.params if each.name == name)
            raise click.UsageError(f"{option} cannot go into a recipe: {why}; leave it out", context)
    return ShardedRun(dataset, words, shards, output.rstrip("/") or "/")
