"""Containers that a run has left, found by the label of its directory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from . import calls, engine
from .errors import ContainerError

_REMOVE_LIMIT_S = 120.0


def label_of(run: Path) -> str:
    """Return the value of the label of a run directory's containers."""
    return hashlib.sha256(str(run).encode("utf-8", "surrogateescape")).hexdigest()[:16]


async def remove(program: str, names: Sequence[str]) -> None:
    """Remove containers, those that are there. Raises ContainerError."""
    ran = await calls.call(engine.remove(program, names), timeout_s=_REMOVE_LIMIT_S)
    if ran.exit_code != 0 and not ran.timed_out and "no such container" in calls.words(ran).lower():
        return
    if ran.exit_code != 0:
        raise ContainerError(f"the container {', '.join(names)} could not be removed: {calls.words(ran)}")


async def sweep(program: str, label: str, kept: frozenset[str]) -> int:
    """Remove all containers with the label but those `kept` by name; return how many. Raises ContainerError."""
    listed = await calls.output(engine.labelled(program, label), "the containers of the run could not be listed")
    names = [name for name in listed.split() if name not in kept]
    if names:
        await remove(program, names)
    return len(names)
