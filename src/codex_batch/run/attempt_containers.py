"""Containers of attempts: reused after a kill, checked before a turn, and described in a record."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..configuration.started_thread import StartedThread
from ..container import ContainerError
from ..container.running import Containers, ended
from ..dataset import Sample
from ..workspace import Workspace, reopen


async def take_up(containers: Containers | None, sample: Sample, directory: Path) -> None:
    """Take up the container of a sample that was started before, if it still runs."""
    workspace = None if containers is None else reopen(sample, directory)
    if containers is not None and workspace is not None and workspace.place is not None:
        # Without it the attempt is lost, and no command scorer runs.
        with contextlib.suppress(ContainerError):
            await containers.take_up(workspace.place)


def check_inside(started: StartedThread, environment: str) -> None:
    """Raises ContainerError for a thread that has an environment beside its container: it would reach this machine."""
    named = [each.environment_id for each in started.environments or ()]
    if named != [environment]:
        raise ContainerError(
            f"codex has given the thread the environments {named}, expected the container alone, {environment!r}; use "
            "a version of codex that takes environments of a thread"
        )


async def note_of_container(workspace: Workspace | None) -> str:
    """Describe how the container of an attempt has ended; empty if it has none, or runs."""
    if workspace is None or workspace.session is None:
        return ""
    try:
        how = ended(await workspace.session.state())
    except ContainerError as error:
        return str(error)
    return f"the container {workspace.session.name} is gone: {how}" if how else ""


async def record_of(workspace: Workspace | None) -> dict[str, Any] | None:
    """Return what the record of an attempt says of its container; None without one."""
    return None if workspace is None or workspace.session is None else workspace.session.record()
