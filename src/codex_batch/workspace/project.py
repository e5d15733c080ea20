"""Projects that samples work in: marked untrusted, but for their AGENTS.md, which the agent gets as instructions.

codex reads AGENTS.md only of directories that are not marked untrusted, and there it may run MCP servers outside of
every sandbox. So the batch reads the files as codex 0.163.0 does: from the root of the repository down to the
directory, of each the first of AGENTS.override.md and AGENTS.md.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from codex_pool import trust

# The bound of codex itself, for all files together.
MAX_BYTES = 32 * 1024
MAX_SKILLS = 256
AGENTS_MD = "AGENTS.md"
# Of the two in one directory, codex reads the first.
_NAMES = ("AGENTS.override.md", AGENTS_MD)
_SKILLS = (".agents/skills", ".codex/skills")


class Project:
    """The project around the absolute path `cwd`, as it is now. `own`: `cwd` was made for the sample."""

    def __init__(self, cwd: str, *, own: bool) -> None:
        self._cwd = cwd
        self._real = _real_path(cwd) if own else os.path.realpath(cwd)
        self._levels = _levels(self._real, own=own)

    def untrusted(self) -> dict[str, Any]:
        """Return the `config` of a thread that takes nothing from the project."""
        config = {**trust.untrusting(self._cwd, self._real), "project_doc_max_bytes": 0}
        skills = [str(path) for directory in self._levels for path in _skills(directory)]
        return config | (trust.skills_off(skills) if skills else {})

    def agents_md(self) -> str | None:
        """Return the text for the agent of the AGENTS.md files that count; None if there are none.

        Links that lead out of the project are left out: what they name, the agent's sandbox may deny.
        """
        joined = self.instructions()
        return None if joined is None else self.told(joined)

    def told(self, instructions: str) -> str:
        """Return the text for the agent that gives it `instructions` as those of an AGENTS.md."""
        return f"# AGENTS.md instructions for {self._cwd}\n\n<INSTRUCTIONS>\n{instructions}\n</INSTRUCTIONS>"

    def instructions(self) -> str | None:
        """Return the texts of the AGENTS.md files that count, the outermost first; None if there are none."""
        texts, left = [], MAX_BYTES
        for directory in self._levels:
            found = next((path for name in _NAMES if (path := directory / name).exists()), None)
            if found is None or left <= 0:
                continue
            data = _read(found, self._levels[0], left)
            left -= len(data)
            text = data.decode("utf-8", "replace")
            if text.strip():
                texts.append(text)
        return "\n\n".join(texts) if texts else None


def write_agents_md(directory: Path, text: str) -> None:
    """Make `text` the only AGENTS.md of a directory, in place of files and links that are there. Raises OSError."""
    for name in _NAMES:
        (directory / name).unlink(missing_ok=True)
    (directory / AGENTS_MD).write_bytes(text.encode())


def _real_path(own: str) -> str:
    """Return the real path of the directory of a sample; what is above it is the same for all samples of a run."""
    parent, _, name = own.rpartition("/")
    path = f"{_real_parent(parent)}/{name}"
    return os.path.realpath(own) if name in ("", ".", "..") or os.path.islink(path) else path


@lru_cache(maxsize=64)
def _real_parent(path: str) -> str:
    return os.path.realpath(path or "/").rstrip("/")


def _levels(real: str, *, own: bool) -> list[Path]:
    """List the directories that count, the outermost first."""
    if own:
        # Most samples begin in an empty one, in which nothing need be looked for.
        with contextlib.suppress(OSError):
            if not os.listdir(real):
                return []
        return [Path(real)]
    cwd = Path(real)
    above = [cwd, *cwd.parents]
    root = next((place for place, directory in enumerate(above) if (directory / ".git").exists()), 0)
    return above[root::-1]


def _read(path: Path, root: Path, limit: int) -> bytes:
    try:
        # Opened without following, after it has been resolved: nothing is read that was not looked at.
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(root):
            return b""
        with open(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(limit) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""


def _skills(directory: Path) -> Iterator[Path]:
    count = 0
    for place in _SKILLS:
        for below, _, names in os.walk(directory / place, followlinks=False):
            for name in names:
                count += 1
                if count > MAX_SKILLS:
                    return
                if name == "SKILL.md":
                    yield Path(os.path.realpath(os.path.join(below, name)))
