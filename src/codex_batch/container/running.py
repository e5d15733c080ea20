"""Containers of one run: started with an exec-server inside, reached, reused, and removed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import posixpath
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server._runtime import threads
from codex_app_server._runtime.text import one_line
from codex_pool.sandbox_modes import FULL_ACCESS, READ_ONLY

from . import calls, engine, leftovers
from .engine import State
from .errors import ContainerError
from .images import Images
from .session import Ran
from .spec import ContainerSpec
from .way import Way

WORKDIR = "/workspace"
"""Directory of the workspace inside, where neither sample nor image names one."""
CONTAINER, CODEX = "container", "codex"
"""Sandboxes of a record: the container alone, or that of codex inside it."""
_COPY_LIMIT_S = 600.0
# In the file system of the container; of cgroups version 2, and of version 1.
_KILLS = ("sys/fs/cgroup/memory.events", "sys/fs/cgroup/memory/memory.oom_control")
_KILL = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


class Place(msgspec.Struct, frozen=True):
    """A container that was started, with what is needed to find it again."""

    engine: str
    name: str
    workdir: str
    image: str | None
    digest: str
    token: str
    environment: str
    """Id of its environment, of each container its own."""
    image_user: str | None = None
    """User that the image names."""
    sandbox: str = CONTAINER


class Container:
    """A running container, and the way to its exec-server. Implements ContainerSession."""

    def __init__(self, place: Place, pid: int, live: dict[str, Container]) -> None:
        self.place = place
        self._pid = pid
        self._live = live
        self._way = Way(pid, engine.PORT)
        self.exec_server = ""
        """URL of the exec-server, once it is reached."""

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def workdir(self) -> str:
        return self.place.workdir

    @property
    def image_user(self) -> str | None:
        return self.place.image_user

    async def reach(self) -> None:
        """Open the way to the exec-server. Raises ContainerError."""
        self.exec_server = await self._way.open()
        self._live[self.name] = self

    def close(self) -> None:
        """Close the way; the container goes on."""
        self._way.close()
        self._live.pop(self.name, None)

    async def remove(self) -> None:
        """Close the way, and remove the container. Raises ContainerError."""
        self.close()
        await leftovers.remove(self.place.engine, [self.name])

    async def state(self) -> State | None:
        """Return how the container is; None if it is not there any more. Raises ContainerError."""
        return await _state(self.place.engine, self.name)

    def memory_kills(self) -> int:
        """Return how many processes inside were ended because the memory limit was reached; 0 if it has ended."""
        for path in _KILLS:
            try:
                with open(f"/proc/{self._pid}/root/{path}", "rb", 0) as file:
                    found = _KILL.search(file.read(4096))
            except OSError:
                continue
            if found is not None:
                return int(found[1])
        return 0

    def record(self) -> dict[str, Any]:
        """Return what a record says of the container."""
        place, kills = self.place, self.memory_kills()
        found = {"engine": place.engine, "image": place.image, "digest": place.digest, "sandbox": place.sandbox}
        return {**found, "memory_kills": kills} if kills else found

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float,
        stdin: bytes | None = None,
    ) -> Ran:
        """See ContainerSession. Of one that takes too long nothing goes on, nor does what was left running before."""
        started = engine.execute(
            self.place.engine,
            self.name,
            argv,
            cwd=cwd or self.workdir,
            user=user,
            env=env or {},
            stdin=stdin is not None,
        )
        ran = await calls.call(started, timeout_s=timeout_s, stdin=stdin)
        if ran.timed_out:
            # All but the first process, which is the exec-server.
            kill = ["/bin/sh", "-c", "kill -9 -1"]
            await calls.call(engine.execute(self.place.engine, self.name, kill, cwd="/", user="0", env={}, stdin=False))
        elif ran.exit_code != 0:
            state = await self.state()
            if state is None or not state.is_running:
                raise ContainerError(f"the container {self.name} is gone: {ended(state)}")
        return ran

    async def put(self, source: Path, target: str) -> None:
        """See ContainerSession."""
        above = target if source.is_dir() else posixpath.dirname(target)
        made = await self.run(["mkdir", "-p", above], cwd="/", user="0", timeout_s=calls.LIMIT_S)
        if made.exit_code != 0:
            raise ContainerError(f"{above} could not be made in the container {self.name}: {calls.words(made)}")
        await self._copy(f"{source}/." if source.is_dir() else str(source), f"{self.name}:{target}", target)

    async def get(self, source: str, target: Path) -> None:
        """See ContainerSession."""
        is_directory = await self.run(["test", "-d", source], cwd="/", user="0", timeout_s=calls.LIMIT_S)
        where = f"{self.name}:{source}"
        if is_directory.exit_code == 0:
            await threads.in_thread(lambda: target.mkdir(parents=True, exist_ok=True))
            where += "/."
        await self._copy(where, str(target), source)

    async def _copy(self, source: str, target: str, what: str) -> None:
        copying = engine.copy(self.place.engine, source, target)
        await calls.output(copying, f"{what} of the container {self.name}", timeout_s=_COPY_LIMIT_S)


class Containers:
    """The containers of one run directory. `codex` is the binary that runs as exec-server inside."""

    def __init__(self, program: str, run: Path, work: Path, codex: Path) -> None:
        self.program = program
        self._label = leftovers.label_of(run)
        self._codex = codex
        self._live: dict[str, Container] = {}
        # By image and user: why codex's sandbox cannot run in it, None if it can.
        self._sandboxes: dict[tuple[str, str | None], str | None] = {}
        self._images = Images(program, self._label, work / ".images")

    async def start(self, spec: ContainerSpec, workspace: Path, sandbox: str = FULL_ACCESS) -> Container:
        """Start a container on a workspace, for commands in a sandbox of codex if that can run in it.

        Raises ContainerError, also where a read-only sandbox cannot run. A start that fails leaves no container.
        """
        image = await self._images.of(spec)
        workdir = posixpath.normpath(spec.workdir or image.workdir or WORKDIR)
        name, token = f"codex-pool-{uuid.uuid4().hex[:16]}", secrets.token_hex(32)
        place = Place(
            self.program, name, workdir, spec.image, image.digest, token, f"codex-pool-{uuid.uuid4().hex}", image.user
        )
        argv = engine.run(
            self.program,
            spec,
            name=name,
            run=self._label,
            image=image.digest,
            workspace=workspace,
            workdir=workdir,
            codex=self._codex,
            bwrap=None if sandbox == FULL_ACCESS else self._bwrap(),
            token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        )
        try:
            await calls.output(argv, "the container could not be started")
            container = await self.take_up(place)
            if container is None:
                said = calls.words(await calls.call([self.program, "logs", name]))
                raise ContainerError(f"the container ended when it was started: {said}")
            await self.give(spec, container)
            if sandbox != FULL_ACCESS:
                await self._put_in_sandbox(container, spec, sandbox)
        except BaseException:
            # Why it could not be started is the news.
            with contextlib.suppress(ContainerError):
                await asyncio.shield(self._remove(place))
            raise
        return container

    def _bwrap(self) -> Path | None:
        """The program of codex's sandbox where codex has it beside its binary."""
        places = [above / "codex-resources" / "bwrap" for above in self._codex.parents[:2]]
        return next((path for path in places if path.is_file()), None)

    async def _put_in_sandbox(self, container: Container, spec: ContainerSpec, sandbox: str) -> None:
        """Let commands run in codex's sandbox, if it can run inside: tried once for an image and a user.

        Raises ContainerError for a read-only one that cannot: a container alone does not keep it.
        """
        key = container.place.digest, spec.user
        if key not in self._sandboxes:
            argv = [engine.CODEX, "sandbox", "--", "/bin/sh", "-c", ":"]
            ran = await container.run(argv, cwd="/", timeout_s=calls.LIMIT_S)
            self._sandboxes[key] = None if ran.exit_code == 0 else one_line(calls.words(ran), 300)
        problem = self._sandboxes[key]
        if problem is None:
            container.place = msgspec.structs.replace(container.place, sandbox=CODEX)
        elif sandbox == READ_ONLY:
            raise ContainerError(f"the sandbox {READ_ONLY} cannot run in the container: {problem}; ask for another one")

    async def fill(self, spec: ContainerSpec, workspace: Path) -> None:
        """Copy what the image of a spec has in its working directory into an empty workspace. Raises ContainerError."""
        image = await self._images.of(spec)
        path = spec.workdir or image.workdir
        contents = None if path is None else await self._images.contents(image, posixpath.normpath(path))
        if contents is not None:
            copying = ["cp", "-a", f"{contents}/.", str(workspace)]
            await calls.output(copying, f"{path} of the image could not be copied", timeout_s=_COPY_LIMIT_S)

    async def has(self, image: str) -> bool:
        """Return True if there is an image by a name or a digest. Raises ContainerError if the engine is not there."""
        return (await calls.call(engine.image(self.program, image))).exit_code == 0

    async def give(self, spec: ContainerSpec, container: Container) -> None:
        """Let the workspace belong to the user that a container of a spec has. Raises ContainerError."""
        user = spec.user or container.image_user
        if user in (None, "root", "0"):
            return
        argv = ["chown", "-R", str(user), container.workdir]
        ran = await container.run(argv, cwd="/", user="0", timeout_s=calls.LIMIT_S)
        if ran.exit_code != 0:
            raise ContainerError(f"the workspace could not be given to the user {user}: {calls.words(ran)}")

    async def take_up(self, place: Place) -> Container | None:
        """Return a container that runs, reached; None if it does not run. Raises ContainerError."""
        if place.name in self._live:
            return self._live[place.name]
        state = await _state(place.engine, place.name)
        if state is None or not state.is_running:
            return None
        container = Container(place, state.pid, self._live)
        await container.reach()
        return container

    def of(self, place: Place) -> Container | None:
        """Return a container that was started or found again here."""
        return self._live.get(place.name)

    async def _remove(self, place: Place) -> None:
        if place.name in self._live:
            self._live[place.name].close()
        await leftovers.remove(place.engine, [place.name])

    async def sweep(self, kept: frozenset[str]) -> int:
        """Remove all containers of the run but those `kept` by name; return how many. Raises ContainerError."""
        return await leftovers.sweep(self.program, self._label, kept)

    async def close(self) -> None:
        """Close the ways to all, which go on, and remove what was copied of images."""
        for container in list(self._live.values()):
            container.close()
        await self._images.close()


async def _state(program: str, name: str) -> State | None:
    ran = await calls.call(engine.state(program, name))
    if ran.exit_code != 0:
        said = calls.words(ran).lower()
        if "no such" in said or "no container" in said:
            return None
        raise ContainerError(f"the container {name} could not be looked at: {calls.words(ran)}")
    try:
        return State.parse(ran.stdout.decode("utf-8", "replace"))
    except ValueError:
        raise ContainerError(f"{program} describes the container {name} as {ran.stdout[:200]!r}") from None


def ended(state: State | None) -> str:
    """Return how a container has ended, in words; empty of one that runs."""
    if state is None:
        return "it was removed"
    if state.is_running:
        return ""
    return f"it ended with exit code {state.exit_code}" + (", out of memory" if state.ran_out_of_memory else "")


def problem_of_host() -> str | None:
    """Return why containers cannot be used by this process; None if they can be."""
    if not hasattr(os, "geteuid") or not os.path.exists("/proc/self/ns/net"):
        return "containers need Linux, whose network namespaces lead to the exec-server inside"
    if os.geteuid() != 0:
        return "containers need root, to reach the exec-server inside a container without a network; run as root"
    return None
