"""Workspaces and containers that a run which died left behind."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..container import ContainerError
from ..container.running import Containers
from ..dataset import Sample
from ..store import RunDirectory, layout
from ..workspace import WorkspaceError, sweep
from .run_containers import sweep_containers


class Leftovers:
    """Removes what finished samples of a run have left; a problem is shown by `say`, and ends nothing.

    `containers`: None for a run without them. `keep`: workspaces stay.
    """

    def __init__(
        self, directory: RunDirectory, containers: Containers | None, *, keep: bool, say: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._containers = containers
        self._keep = keep
        self._say = say

    async def sweep(self) -> None:
        """Remove the workspaces and containers that a run which died had no time to remove."""
        await self.sweep_containers(at_end=False)
        if self._keep:
            return
        try:
            await sweep_finished(self._directory)
        except WorkspaceError as error:
            self._say(str(error))

    async def sweep_containers(self, *, at_end: bool) -> None:
        """Remove containers, as `run_containers.sweep_containers` does."""
        if self._containers is None:
            return
        try:
            await sweep_containers(self._containers, self._directory, at_end=at_end)
        except ContainerError as error:
            self._say(str(error))


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
