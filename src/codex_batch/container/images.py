"""Images: looked up by name, or built of a directory; named by its contents, so that each is built once."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from pathlib import Path

from codex_app_server._runtime import threads

from . import calls, engine
from .engine import Image
from .errors import ContainerError
from .spec import ContainerSpec

BUILD_LIMIT_S = 3600.0
_COPY_LIMIT_S = 600.0
# The words of podman and docker about a path that an image does not have.
_NO_SUCH_PATH = ("no such file", "could not find", "could not be found")


class Images:
    """The images of one run. `directory` holds the contents of their working directories, each copied out once."""

    def __init__(self, program: str, run: str, directory: Path) -> None:
        self._program = program
        self._run = run
        self._directory = directory
        self._found: dict[str, Image] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def of(self, spec: ContainerSpec) -> Image:
        """Return the image of a spec, built first if that is asked for. Raises ContainerError."""
        name = name_of(spec)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name not in self._found:
                self._found[name] = await self._find(spec, name)
            return self._found[name]

    async def _find(self, spec: ContainerSpec, name: str) -> Image:
        ran = await calls.call(engine.image(self._program, name))
        if ran.exit_code != 0 and spec.build is not None:
            what = f"the image of {spec.build} could not be built"
            limit_s = spec.build_timeout_s or BUILD_LIMIT_S
            await calls.output(engine.build(self._program, spec.build, name), what, timeout_s=limit_s)
            ran = await calls.call(engine.image(self._program, name))
        if ran.exit_code != 0:
            raise ContainerError(missing(self._program, name, calls.words(ran)))
        return engine.image_of(ran.stdout.decode("utf-8", "replace"))

    async def contents(self, image: Image, path: str) -> Path | None:
        """Return a directory with what an image has at a path; None if it has nothing there. Raises ContainerError."""
        there = self._directory / f"{image.digest[:16]}-{path.strip('/').replace('/', '-')}"
        async with self._locks.setdefault(str(there), asyncio.Lock()):
            if not there.is_dir():
                await self._copy_out(image, path, there)
        return there if await threads.in_thread(os.listdir, there) else None

    async def close(self) -> None:
        """Remove what was copied."""
        await threads.in_thread(shutil.rmtree, self._directory, True)

    async def _copy_out(self, image: Image, path: str, there: Path) -> None:
        name = f"codex-pool-image-{uuid.uuid4().hex[:12]}"
        partial = there.with_name(f"{there.name}.{name}")
        await threads.in_thread(lambda: partial.mkdir(parents=True))
        what = f"{path} of the image {image.digest[:12]} could not be read"
        await calls.output(engine.create(self._program, image.digest, name, self._run), what)
        try:
            copying = engine.copy(self._program, f"{name}:{path}/.", str(partial))
            ran = await calls.call(copying, timeout_s=_COPY_LIMIT_S)
        finally:
            await asyncio.shield(calls.call(engine.remove(self._program, [name])))
        said = calls.words(ran)
        if ran.exit_code != 0 and not any(words in said.lower() for words in _NO_SUCH_PATH):
            raise ContainerError(f"{what}: {said}")
        partial.rename(there)


def name_of(spec: ContainerSpec) -> str:
    """Return the name of the image that a spec asks for: its own, or one made of the contents of its directory."""
    if spec.build is not None:
        return f"localhost/codex-pool-build:{spec.tree}"
    assert spec.image is not None
    return spec.image


def missing(program: str, name: str, said: str) -> str:
    """Return the problem of an image that is not there."""
    return f"{program} has no image {name!r}: {said}; get it with `{program} pull {name}`, or name another one"
