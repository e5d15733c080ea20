"""Next steps of a user after a run, as commands to copy. Pure."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

AGAIN = ("failed", "interrupted", "lost", "stalled")
COMMAND_CHARACTERS = 160
_SAME = "the same command again"


def next_steps(
    run: str,
    directory: str,
    counts: Mapping[str, int],
    command: Sequence[str],
    *,
    is_estimate: bool = False,
    baseline: str | None = None,
    variant: str | None = None,
) -> list[tuple[str, str]]:
    """The steps that apply, each with its command, quoted for a shell.

    `run` and `directory` are absolute paths, of the run and of where the user is; `counts` are samples by status and
    `not_run`; `command` are the words of the run's command after `codex-pool`, as its record has them. `baseline` is a
    run that this one was compared with, `variant` that of its variants which was named.
    """
    named = shlex.quote(shown_path(run, directory))
    done = sum(count for status, count in counts.items() if status != "not_run")
    steps = []
    if done:
        steps.append(("report", f"codex-pool report {named}"))
    if done and baseline is not None:
        other = shown_path(baseline, directory) + ("" if variant is None else f"@{variant}")
        if baseline == run:
            steps.append(("compare", f"codex-pool report {named} --baseline {shlex.quote(other)}"))
        else:
            steps.append(("compare", f"codex-pool report {shlex.quote(other)} {named}"))
    if any(counts.get(status) for status in AGAIN):
        steps.append(("failed ones", f"codex-pool runs retry {named}"))
    if is_estimate and counts.get("not_run"):
        steps.append(("go on", "the same command without --estimate"))
    elif counts.get("not_run"):
        steps.append(("go on", _again(command)))
    return steps


def shown_path(path: str, directory: str) -> str:
    """A path as the user would type it: relative to the directory if it is below it."""
    below = os.path.relpath(path, directory)
    if below == ".." or below.startswith(f"..{os.sep}"):
        return path
    return f".{os.sep}{below}" if below.startswith("-") else below


def _again(command: Sequence[str]) -> str:
    # Standard input is not there any more, and a secret is not kept.
    if "-" in command or any(word.endswith("=...") for word in command):
        return _SAME
    line = shlex.join(["codex-pool", *command])
    return line if len(line) <= COMMAND_CHARACTERS and line.isprintable() else _SAME
