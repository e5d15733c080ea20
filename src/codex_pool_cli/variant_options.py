"""Options for the model, the effort and the sandbox of a run, and for its variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from codex_pool.sandbox_modes import SANDBOX_MODES

from . import options

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = (
    click.option(
        "--model",
        "models",
        metavar="NAME",
        multiple=True,
        callback=options.as_text,
        help="Model of the samples that name none.  [default: the configured one]  Several make variants: each sample "
        "is run with each.",
    ),
    click.option(
        "--effort",
        "efforts",
        metavar="LEVEL",
        multiple=True,
        callback=options.as_text,
        help="Reasoning effort of the samples that name none.  [default: the configured one]  Several make variants, "
        "with each of the models.",
    ),
    click.option(
        "--variants",
        "variants_file",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="A TOML file of variants, which each sample is run with: model, effort, config, agents_md, codex_bin.",
    ),
    click.option("--sandbox", type=click.Choice(SANDBOX_MODES), help="Sandbox of the samples that name none."),
)


def variant_options(function: F) -> F:
    """`--model`, `--effort`, `--variants`, `--sandbox`; a command gets them as keywords, for `variants_of`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def variants_of(given: dict[str, Any], *, is_stored: bool) -> None:
    """Put `model`, `effort` and `variants` in place of the keywords of the options. Raises UsageError.

    `is_stored`: the variants are those that the run has stored, and their file is not read.
    """
    models, efforts, file = given.pop("models"), given.pop("efforts"), given.pop("variants_file")
    for option, values in (("--model", models), ("--effort", efforts)):
        if not all(value.strip() for value in values):
            raise click.UsageError(f"{option} is empty; name one, or leave it out for the configured one")
    given.update(model=None, effort=None, variants=())
    if is_stored and (file is not None or len(models) > 1 or len(efforts) > 1):
        return
    from codex_batch.configuration.variants import VariantsError, variants_of

    try:
        given["variants"] = variants_of(models, efforts, file)
    except VariantsError as error:
        raise click.UsageError(str(error)) from None
    if not given["variants"]:
        given.update(model=next(iter(models), None), effort=next(iter(efforts), None))
