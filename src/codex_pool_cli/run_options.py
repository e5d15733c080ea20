"""Options for how samples are scored, limited and tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import options

if TYPE_CHECKING:
    from codex_batch.rules.limits import Limits, RunLimits

F = TypeVar("F", bound=Callable[..., Any])
_SECONDS, _COUNT = click.FloatRange(min=0, min_open=True), click.IntRange(min=1)
_LIMITS = ("wall_s", "idle_s", "tokens", "turns", "tool_calls")
_RUN_LIMITS = ("tokens", "cost", "wall_s")


def _retry_on(context: click.Context, parameter: click.Parameter, value: str | None) -> frozenset[str]:
    from codex_batch.rules.retry import RETRY_ON_DEFAULT, parse_retry_on

    if value is None:
        return RETRY_ON_DEFAULT
    try:
        return parse_retry_on(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _apply(function: F, decorators: list[Callable[[F], F]]) -> F:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


answer_option = click.option(
    "--answer",
    metavar="HOW",
    help='What of a response the scorers named with --scorer compare: boxed, stated ("Answer: X"), auto (either), or a '
    "regular expression, as '#### (.*)'; its last match.",
)


def with_answer(context: click.Context, scorers: tuple[str, ...], answer: str | None) -> tuple[str, ...]:
    """The specs of `--scorer` with `--answer` as their option. Raises UsageError."""
    if answer is None:
        return scorers
    from codex_batch.scoring import ScorerError
    from codex_batch.scoring.parse import with_answer as answered

    try:
        return answered(scorers, answer)
    except ScorerError as error:
        raise click.UsageError(str(error), context) from None


def scoring_options(function: F) -> F:
    """`--scorer`, `--answer`, `--keep`, `--unguarded`, `--trust-workspaces`, `--workspace-hook`."""
    return _apply(
        function,
        [
            click.option(
                "--scorer",
                "scorers",
                multiple=True,
                metavar="SPEC",
                callback=options.as_text,
                help="exact, includes, regex, number, choice, json_schema, command:..., python:MODULE:FUNCTION, "
                "judge:...; or a JSON object; may be repeated. A sample's own are used instead.",
            ),
            answer_option,
            click.option("--keep", is_flag=True, help="Keep workspaces when their samples are done, in DIR/work."),
            click.option(
                "--unguarded",
                is_flag=True,
                help="Agents may read the dataset and the run, answers included.",
            ),
            click.option(
                "--trust-workspaces",
                is_flag=True,
                help="codex takes all that a workspace brings: .codex, skills, MCP servers. These run outside of every "
                "sandbox, as you. Without it AGENTS.md alone counts.",
            ),
            click.option(
                "--workspace-hook",
                "hook",
                metavar="COMMAND",
                help="A shell command for each workspace, at its start and at its end: into a container, say.",
            ),
        ],
    )


def policy_options(function: F) -> F:
    """`--retries`, `--retry-on`, `--max-failures`, limits of a sample and of the run, `--prices`."""
    return _apply(
        function,
        [
            click.option(
                "--retries",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                metavar="N",
                help="Try a sample that failed, was lost or stalled up to N more times.",
            ),
            click.option(
                "--retry-on",
                callback=_retry_on,
                metavar="WORDS",
                help="Only after these: lost, stalled, failed, overload, or kinds of errors; between commas.",
            ),
            click.option("--max-failures", type=_COUNT, metavar="N", help="Start nothing more after N failed samples."),
            click.option("--wall-s", type=_SECONDS, metavar="S", help="Seconds that a sample may run, waits left out."),
            click.option("--idle-s", type=_SECONDS, metavar="S", help="Seconds without anything coming of a sample."),
            click.option("--tokens", type=_COUNT, metavar="N", help="Tokens of a sample."),
            click.option("--turns", type=_COUNT, metavar="N", help="Turns of a sample."),
            click.option("--tool-calls", type=_COUNT, metavar="N", help="Tool calls of a sample."),
            click.option("--run-tokens", type=_COUNT, metavar="N", help="Tokens of the run: then nothing more starts."),
            click.option(
                "--run-cost", type=_SECONDS, metavar="X", help="Money of the run and its judges, by --prices."
            ),
            click.option("--run-wall-s", type=_SECONDS, metavar="S", help="Seconds of the run."),
            click.option(
                "--prices",
                metavar="FILE|litellm[:FILE]",
                help="Prices of tokens: a TOML file; or the table of an installed litellm, or a copy of it.",
            ),
        ],
    )


def limits_of(given: dict[str, Any]) -> Limits:
    """The limits of a sample, taken out of a command's keywords."""
    from codex_batch.rules.limits import Limits

    return Limits(**{name: given.pop(name) for name in _LIMITS})


def run_limits_of(given: dict[str, Any]) -> RunLimits:
    """The limits of the run, taken out of a command's keywords. Raises UsageError."""
    from codex_batch.rules.limits import RunLimits

    limits = RunLimits(**{name: given.pop(f"run_{name}") for name in _RUN_LIMITS})
    if limits.cost is not None and given["prices"] is None:
        raise click.UsageError(
            "--run-cost needs --prices: without prices nothing is known of money; name a TOML file, litellm, or "
            "litellm:FILE"
        )
    return limits
