"""Options for gates: what the scores of a run must be for the command to succeed, and files for CI systems."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import options

if TYPE_CHECKING:
    from codex_batch.gates.options import FailUnder, GateOptions

F = TypeVar("F", bound=Callable[..., Any])
_NAMES = ("fail_under", "worse_than", "gate_scorers", "margin", "alpha", "min_scored", "junit")


def _fail_under(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[FailUnder, ...]:
    if not value:
        return ()
    from codex_batch.gates.options import parse_fail_under

    try:
        return tuple(map(parse_fail_under, options.as_text(context, parameter, value)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


_OPTIONS = (
    click.option(
        "--fail-under",
        multiple=True,
        metavar="SCORER=X",
        callback=_fail_under,
        help="Exit code 4 unless the mean of SCORER is X or more; samples without a score count as 0. Of each variant, "
        "or SCORER@VARIANT=X of one. May be repeated.",
    ),
    click.option(
        "--fail-if-worse-than",
        "worse_than",
        multiple=True,
        metavar="RUN[@VARIANT]",
        help="Exit code 4 if scores are worse than in the run directory RUN, sample by sample, and by more than chance "
        "explains. May be repeated.",
    ),
    click.option(
        "--gate-scorer",
        "gate_scorers",
        multiple=True,
        metavar="SCORER",
        callback=options.as_text,
        help="Scorer that --fail-if-worse-than compares; may be repeated.  [default: all of the run]",
    ),
    click.option(
        "--margin",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        metavar="X",
        help="How much worse than the baseline the mean may be.",
    ),
    click.option(
        "--alpha",
        type=click.FloatRange(min=0.0001, max=0.5),
        default=0.05,
        show_default=True,
        metavar="P",
        help="How likely a comparison may fail a run that is no worse.",
    ),
    click.option(
        "--min-scored",
        type=click.FloatRange(min=0, max=1, min_open=True),
        default=1.0,
        show_default=True,
        metavar="PART",
        help="Part of the samples that must have a score for a gate to pass, above 0 to 1.",
    ),
    click.option(
        "--junit",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write samples and gates as JUnit XML, also when the run is interrupted.",
    ),
)


def gate_options(function: F) -> F:
    """Give a command the options; it gets them as keywords, for `gates_of`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def gates_of(context: click.Context, given: dict[str, Any]) -> GateOptions:
    """The gates of a command's keywords; takes its own out of `given`. Raises UsageError."""
    from codex_batch.gates.options import GateOptions

    asked = {name: given.pop(name) for name in _NAMES}

    def is_given(name: str) -> bool:
        return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    if not asked["worse_than"]:
        for name, option in (("gate_scorers", "--gate-scorer"), ("margin", "--margin"), ("alpha", "--alpha")):
            if is_given(name):
                raise click.UsageError(f"{option} is for --fail-if-worse-than, which is missing", context)
    if is_given("min_scored") and not (asked["worse_than"] or asked["fail_under"]):
        raise click.UsageError("--min-scored is for --fail-under or --fail-if-worse-than, which are missing", context)
    junit = asked.pop("junit")
    return GateOptions(
        scorers=asked.pop("gate_scorers"), junit=None if junit is None else Path(os.path.realpath(junit)), **asked
    )
