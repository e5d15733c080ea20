"""Workspaces that a run which died left behind."""

from __future__ import annotations

import os

from ..dataset import Sample
from ..store import RunDirectory, layout
from ..workspace import sweep


async def sweep_finished(directory: RunDirectory) -> None:
    """Remove the workspaces of samples that are done, unless a launch of the run keeps them.

    Raises WorkspaceError.
    """
    work = directory.file(layout.WORK)
    found = {entry.name for entry in os.scandir(work)} if work.is_dir() else set()
    launches = directory.store.info()["launches"]
    if not found or any(launch["config"].get("arguments", {}).get("keep") for launch in launches):
        return
    for row in directory.store.samples(state="done"):
        if row.spec.get("workspace") is not None and row.directory_name in found:
            await sweep(Sample.from_json(row.spec), work / row.directory_name)
