"""Facts of an attempt that its notifications do not show: hidden calls, a full disk, processes that were ended."""

from __future__ import annotations

import tempfile
from pathlib import Path

from codex_app_server._runtime import threads

from ..rules.validity import Facts
from ..workspace import Workspace
from .disks import LEAST_BYTES, Disk
from .rollout import hidden_calls


async def find_hidden_calls(facts: Facts, path: str | None) -> None:
    """Add the calls of the thread stored in `path` that no notification has reported."""
    if path is not None:
        facts.tools.hidden(await threads.in_thread(hidden_calls, path, facts.tools.seen))


def find_full_disk(facts: Facts, cwd: str, workspace: Workspace | None) -> None:
    """Note a disk that an attempt could write to and that is full.

    A command reported a full disk: so is one that it could write to, or the words mean something else. Where there
    is no room at all no report is needed.
    """
    said = facts.tools.said_full
    if said is None and not facts.tools.has_run:
        return
    directories = [Path(cwd), *(() if workspace is None else (workspace.path,)), Path(tempfile.gettempdir())]
    for path in directories:
        shortage = Disk(path).shortage(LEAST_BYTES if said is not None else 1) if path.is_dir() else None
        if shortage is not None:
            facts.full = f"the disk of {path} was full: {said or shortage}"
            return


def note_of_ended(workspace: Workspace | None) -> str:
    """Name the processes that were ended with a workspace hook, the environment perhaps among them; empty if none."""
    if workspace is None or not workspace.ended:
        return ""
    return (
        f"what the workspace hook had left running was ended with it: {', '.join(workspace.ended)}; let a service "
        "start it (docker, the API service of podman, systemd-run)"
    )
