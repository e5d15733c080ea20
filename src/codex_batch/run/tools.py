"""Programs that a run starts and that are not its own: git, the shell, those that scorers name.

Python itself, the guard of scorers, and codex with its sandbox come with the installation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import chain
from typing import Any

from codex_app_server._runtime.text import plural

from ..dataset import Sample
from ..scoring import Scorer, Scorers
from ..workspace import git

SHELL = "/bin/sh"
LOOK_LIMIT_S = 10.0
# The beginning of a shell command that is one word as it stands.
_WORD = re.compile(r"\s*([A-Za-z0-9_.+-]+)(?=\s|$)")


class ToolsError(Exception):
    """A program that a run needs and that is not there; the message tells why it is needed and where it comes from."""


class Tools:
    """Observes each sample as a dataset is read; reports afterwards what the selected ones of them lack."""

    def __init__(self, scorers: Scorers) -> None:
        self._scorers = scorers
        self._has_workspaces = False
        self._programs: set[str] = set()

    @cached_property
    def git_problem(self) -> str | None:
        """Return why git cannot be used; None when it can."""
        return git.problem()

    def observe(self, sample: Sample) -> None:
        """Note what a sample whose scorers are right needs."""
        self._has_workspaces |= sample.workspace is not None
        self._programs |= self._programs_of(sample)

    def check(self, samples: Iterable[Sample]) -> None:
        """Raises ToolsError when some of the samples have workspaces and git cannot be used."""
        if self._has_workspaces and self.git_problem is not None:
            count = sum(sample.workspace is not None for sample in samples)
            if count:
                raise ToolsError(_needs_git(self.git_problem, count))

    def not_found(self, samples: Iterable[Sample]) -> list[str]:
        """The programs that command scorers begin with and that are not on PATH, a line for each.

        That is no fault yet: an agent may be to make them.
        """
        missing = {program for program in self._programs if not _is_there(program)}
        if not missing:
            return []
        of_samples = (self._programs_of(sample) & missing for sample in samples)
        return [
            f"{program!r} is not on PATH, and a command scorer of {plural(count, 'sample')} begins with it; "
            "install it, unless agents are to"
            for program, count in sorted(Counter(chain.from_iterable(of_samples)).items())
        ]

    def _programs_of(self, sample: Sample) -> set[str]:
        if (sample.workspace or {}).get("setup") is not None or sample.container is not None:
            # It may bring them, or has its own.
            return set()
        return {program for scorer in self._scorers.of(sample) if (program := _program(scorer)) is not None}


def check_git(workspaces: int) -> None:
    """Raises ToolsError when so many workspaces are to be made and git cannot be used."""
    problem = git.problem() if workspaces else None
    if problem is not None:
        raise ToolsError(_needs_git(problem, workspaces))


def check_shell(commands: Mapping[str, str | None]) -> None:
    """Raises ToolsError when there are shell commands and no shell; `commands` by the options that name them."""
    given = [name for name, command in commands.items() if command is not None]
    if given and not os.access(SHELL, os.X_OK):
        raise ToolsError(f"{SHELL} is missing: {' and '.join(given)} cannot go without it; install a shell")


def _needs_git(problem: str, workspaces: int) -> str:
    have = plural(workspaces, "sample has", "samples have")
    why = f"{have} a workspace, which needs it to tell what an agent changed"
    return f"{problem}: {why}; {git.REMEDY}"


def _program(scorer: Scorer) -> str | None:
    """The program that a command scorer begins with, by its name; None of a path, or of anything else."""
    command: Any = scorer.options.get("command") if scorer.type == "command" else None
    if command is None or "PATH" in scorer.options.get("env", {}):
        return None
    if isinstance(command, list):
        return None if "/" in command[0] else str(command[0])
    word = _WORD.match(command)
    return None if word is None else word[1]


def _is_there(program: str) -> bool:
    if shutil.which(program) is not None:
        return True
    # The shell has some of its own.
    look = [SHELL, "-c", 'command -v -- "$1"', "sh", program]
    try:
        return subprocess.run(look, stdin=subprocess.DEVNULL, capture_output=True, timeout=LOOK_LIMIT_S).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return True
