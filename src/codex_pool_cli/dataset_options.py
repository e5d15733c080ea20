"""Options that select the samples of a dataset to run, and how their prompts are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import options

if TYPE_CHECKING:
    from codex_batch.dataset import Request, Shard

F = TypeVar("F", bound=Callable[..., Any])


def _shard(context: click.Context, parameter: click.Parameter, value: str | None) -> Shard | None:
    if value is None:
        return None
    from codex_batch.dataset import Shard

    try:
        return Shard.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


_SELECTION = ("filters", "sample_ids", "limit", "shuffle", "seed", "epochs", "shard")
_NAMES = ("format", "columns", "prompt_template", *_SELECTION, "ignored_keys", "oracle")
_OPTIONS = (
    click.option(
        "--format",
        metavar="NAME",
        callback=options.as_text,
        help="Of DATASET, if its name does not say it: jsonl, json, csv, tsv, parquet, folders, or that of a plug-in "
        "(codex-pool plugins); JSON lines for a file without a known ending.",
    ),
    click.option(
        "--field",
        "columns",
        multiple=True,
        metavar="FIELD=COLUMN",
        callback=options.as_text,
        help="A field of the samples by its column, as id=task_id; deeper: a.b.0; or a Jinja template. Other columns "
        "become metadata.",
    ),
    click.option(
        "--prompt-template",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="A Jinja template that makes each prompt of the sample's columns.",
    ),
    click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="EXPR",
        callback=options.as_text,
        help="Only samples with FIELD=VALUE, or !=, <, <=, >, >=, ~ (regular expression), !~; all of several.",
    ),
    click.option(
        "--sample-id",
        "sample_ids",
        multiple=True,
        metavar="ID",
        callback=options.as_text,
        help="Only this sample; patterns with *, ? and [...]; any of several.",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N samples."),
    click.option("--shuffle", is_flag=True, help="In a random order, the same for the same --seed."),
    click.option("--seed", type=int, metavar="N", help="For --shuffle; 0 unless given."),
    click.option(
        "--epochs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Each sample N times."
    ),
    click.option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        help="Only the I-th of N parts of the samples, counted from 1: for several machines, each with its own DIR. "
        "`codex-pool runs merge` joins them.",
    ),
    click.option(
        "--ignore-key",
        "ignored_keys",
        multiple=True,
        metavar="KEY",
        callback=options.as_text,
        help="For --format harbor: a key of task.toml, as environment.storage_mb, that is not supported and is left "
        "out of account instead of refused.",
    ),
    click.option(
        "--oracle",
        is_flag=True,
        help="For --format harbor: runs the solutions of the tasks instead of an agent; each is to get a reward of 1.",
    ),
)


def dataset_options(function: F) -> F:
    """Give a command the options; it gets them as keywords, for `request_of`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def request_of(context: click.Context, source: str | Path, given: dict[str, Any]) -> Request:
    """The request of a command's keywords; takes its own out of `given`. Raises UsageError."""
    from codex_batch.dataset import Request

    asked = {name: given.pop(name) for name in _NAMES}
    seed = asked.pop("seed")
    if seed is not None and not asked["shuffle"]:
        raise click.UsageError("--seed is for --shuffle, which is missing", context)
    return Request(source=source, seed=seed or 0, **asked)
