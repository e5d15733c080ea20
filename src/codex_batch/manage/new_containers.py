"""Containers made once more for the command scorers of samples whose own are gone: from the image that they ran in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec

from codex_app_server import AppServerError
from codex_app_server.config import find_codex

from ..container import ContainerError
from ..container.running import Containers, problem_of_host
from ..dataset import Sample
from ..run import harbor_attempt
from ..run.run_containers import sweep_containers
from ..store import RecordRow, RunDirectory, layout


class NewContainers:
    """The containers of one rescoring of a run; `codex_bin` is the binary that runs as exec-server inside, if named."""

    def __init__(self, directory: RunDirectory, codex_bin: str | None = None) -> None:
        self._directory = directory
        self._codex_bin = codex_bin
        self._of_engine: dict[str, Containers] = {}
        self._lock = asyncio.Lock()

    async def of(self, sample: Sample, record: RecordRow) -> tuple[Sample, Containers]:
        """Return a sample that asks for the very image it ran in, and the containers to start it in.

        Raises ContainerError, also if that image is not there; WorkspaceError for a variable that is not set.
        """
        ran = record.container
        if ran is None or sample.container is None:
            raise ContainerError("the record does not say which image the sample ran in: run the sample again")
        async with self._lock:
            containers = self._of_engine.get(ran["engine"]) or await self._begin(ran["engine"])
        if not await containers.has(ran["digest"]):
            raise ContainerError(
                f"{ran['engine']} does not have the image that the sample ran in, {ran['image'] or 'a built one'} "
                f"({ran['digest'][:12]}): run the sample again"
            )
        # By its digest: the name may stand for another image today, and a directory would be built again.
        spec = replace(sample.container, image=ran["digest"], build=None, tree=None)
        # Commands of scorers run in no sandbox of codex.
        asked = msgspec.structs.replace(sample, container=spec, sandbox=None)
        return harbor_attempt.with_variables(asked), containers

    async def close(self) -> None:
        """Remove what was copied of images."""
        for containers in self._of_engine.values():
            await containers.close()

    async def _begin(self, engine: str) -> Containers:
        problem = problem_of_host()
        if problem is not None:
            raise ContainerError(problem)
        try:
            codex = Path(find_codex(self._codex_bin)).resolve()
        except AppServerError as error:
            raise ContainerError(str(error)) from None
        made = Containers(engine, self._directory.path, self._directory.file(layout.RESCORING), codex)
        # What a rescoring has left that was killed.
        await sweep_containers(made, self._directory, at_end=False)
        self._of_engine[engine] = made
        return made
