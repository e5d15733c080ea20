"""Preparation of the directory that a sample works in: copied, set up, its base recorded; and what comes after.

DIRECTORY/workspace        what the agent sees
DIRECTORY/base.git         the base that it is compared with
DIRECTORY/workspace.json   written last: with it the workspace can be resumed
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server._runtime import threads
from codex_app_server._runtime.files import resolved, write_atomic
from codex_pool.sandbox_modes import FULL_ACCESS

from ..container import ContainerError, leftovers
from ..container.running import Container, Containers, Place
from ..dataset import Sample
from ..dataset.trees import LEFT_OUT
from ..store import layout
from . import difference, project, repositories
from . import hook as hooks
from .errors import WorkspaceError
from .repositories import Repositories

SETUP_LIMIT_S = 600.0
REMOVE_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A workspace that is ready. `cwd` is where codex works, `path` the files on this machine, for scorers."""

    sample: Sample
    directory: Path
    cwd: Path
    base: str
    hook: str | None = None
    thread: dict[str, Any] = field(default_factory=dict)
    """Options for thread/start that the hook asks for."""
    environment: dict[str, Any] | None = None
    """Params of environment/add, to be sent before thread/start, if an exec-server runs the agent's commands."""
    ended: tuple[str, ...] = ()
    """Names of the processes that the hook's start left running, and that were ended with it."""
    place: Place | None = None
    """The container that it is mounted into."""
    session: Container | None = None
    """Commands and files in that container; None if it has ended, or is not known here."""

    @property
    def path(self) -> Path:
        return self.directory / layout.WORKSPACE

    async def diff(self) -> bytes:
        """Return the changes since it was set up, new files included, as a unified diff. Raises WorkspaceError."""
        try:
            return await difference.compare(self.directory / layout.BASE, self.path, self.base)
        except OSError as error:
            raise WorkspaceError(f"the workspace {self.directory} could not be compared: {error}") from None

    async def stop(self) -> None:
        """Remove the container, let the hook end what it began; the files stay. Raises WorkspaceError."""
        if self.session is not None:
            self.session.close()
        if self.place is not None:
            try:
                await leftovers.remove(self.place.engine, [self.place.name])
            except ContainerError as error:
                raise WorkspaceError(str(error)) from None
        if self.hook is not None:
            await hooks.stop(self.hook, self.sample, self.path)

    async def remove(self) -> None:
        """Stop, and remove everything, whatever the agent left. Raises WorkspaceError."""
        try:
            await self.stop()
        finally:
            await threads.in_thread(_remove, self.directory)


async def prepare(
    sample: Sample,
    directory: Path,
    *,
    hook: str | None = None,
    sources: Repositories | None = None,
    agents_md: str | None = None,
    containers: Containers | None = None,
) -> Workspace:
    """Make the sample's workspace in `directory`, in place of what may be there; if that fails, nothing is left.

    With `containers` it is mounted into one, which its sample asks for; its setup is run in there.

    `sources` is what its commit was checked with. `agents_md`: the text of its AGENTS.md, which belongs to the base, in
    place of the one that it brings. Raises WorkspaceError.
    """
    try:
        return await _prepare(sample, directory, hook, sources, agents_md, containers)
    except BaseException:
        await asyncio.shield(threads.in_thread(_remove, directory))
        raise


async def _prepare(
    sample: Sample,
    directory: Path,
    hook: str | None,
    sources: Repositories | None,
    agents_md: str | None,
    containers: Containers | None,
) -> Workspace:
    spec = sample.workspace or {}
    workspace, base_git = directory / layout.WORKSPACE, directory / layout.BASE
    if hook is not None and workspace.exists():
        await hooks.stop(hook, sample, workspace)
    before = reopen(sample, directory)
    if before is not None and before.place is not None:
        await before.stop()
    inside = sample.container if containers is not None else None
    container: Container | None = None
    try:
        await threads.in_thread(_clear, directory, workspace)
        await difference.create(base_git)
        if inside is not None:
            assert containers is not None
            await containers.fill(inside, workspace)
        if "template" in spec:
            await threads.in_thread(_copy, Path(spec["template"]), workspace)
        elif "git" in spec:
            source = (sources or Repositories(directory)).source(spec["git"])
            await repositories.copy_commit(source, spec["commit"], base_git, workspace)
        await threads.in_thread(_write, workspace, spec.get("files", {}))
        if agents_md is not None:
            await threads.in_thread(project.write_agents_md, workspace, agents_md)
        if "git" in spec:
            await repositories.begin_history(workspace)
        if inside is not None:
            assert containers is not None
            container = await containers.start(inside, workspace, sample.sandbox or FULL_ACCESS)
        for command in _commands(spec.get("setup")):
            limit_s = spec.get("setup_timeout_s", SETUP_LIMIT_S)
            if container is not None:
                await _set_up_inside(container, command, sample, limit_s)
            else:
                await hooks.run_command("setup", command, sample, workspace, workspace, timeout_s=limit_s)
        if agents_md is not None:
            # A setup may have brought another one.
            await threads.in_thread(project.write_agents_md, workspace, agents_md)
        base = await difference.remember(base_git, workspace)
        started = hooks.HookResult({}) if hook is None else await _start(hook, sample, workspace)
        # Of each attempt its own: app-servers keep what they have been told of the last one.
        state = {
            "base": base,
            "hook": hook,
            "said": started.said,
            "ended": started.ended,
            "environment": f"codex-pool-{uuid.uuid4().hex}",
            "container": None if container is None else msgspec.to_builtins(container.place),
        }
        await threads.in_thread(_save, directory / layout.WORKSPACE_STATE, state)
    except (OSError, shutil.Error) as error:
        await _give_up(container)
        raise WorkspaceError(f"the workspace {directory} could not be made: {error}") from None
    except ContainerError as error:
        await _give_up(container)
        raise WorkspaceError(f"the container of the sample: {error}") from None
    except BaseException:
        await _give_up(container)
        raise
    return _workspace(sample, directory, state, containers)


async def _give_up(container: Container | None) -> None:
    """Remove the container of a workspace that could not be made; why is the news."""
    if container is not None:
        with contextlib.suppress(ContainerError):
            await asyncio.shield(container.remove())


async def _set_up_inside(container: Container, command: str, sample: Sample, limit_s: float) -> None:
    """Run a command of a setup in the container. Raises WorkspaceError, ContainerError."""
    env = {**hooks.variables(sample, Path(container.workdir)), "CODEX_POOL_TASK": ""}
    ran = await container.run(["/bin/sh", "-c", command], env=env, timeout_s=limit_s)
    if ran.exit_code != 0:
        how = f"took longer than {limit_s:g} s" if ran.timed_out else f"failed with exit code {ran.exit_code}"
        said = (ran.stderr.strip() or ran.stdout.strip()).decode("utf-8", "replace")[-500:]
        raise WorkspaceError(f"setup {command!r} in the container {how}" + (f": {said}" if said else ""))


def reopen(sample: Sample, directory: Path, containers: Containers | None = None) -> Workspace | None:
    """The workspace that a run that died had made, None if it was not ready.

    Its container has a session if `containers` has taken it up.
    """
    try:
        state = json.loads((directory / layout.WORKSPACE_STATE).read_bytes())
    except (OSError, ValueError):
        return None
    return _workspace(sample, directory, state, containers) if (directory / layout.WORKSPACE).is_dir() else None


async def sweep(sample: Sample, directory: Path) -> None:
    """Remove what a run that died left of a workspace: all, or what it had begun to remove. Raises WorkspaceError."""
    workspace = reopen(sample, directory)
    if workspace is not None:
        await workspace.remove()
    else:
        await threads.in_thread(_remove, directory)


def _workspace(
    sample: Sample, directory: Path, state: dict[str, Any], containers: Containers | None = None
) -> Workspace:
    said, path, environment = state["said"], directory / layout.WORKSPACE, None
    cwd, thread = said.get("cwd", str(path)), said.get("thread", {})
    if "exec_server" in said:
        environment = {"environmentId": state["environment"], "execServerUrl": said["exec_server"]}
        thread = {"environments": [{"environmentId": state["environment"], "cwd": cwd}], **thread}
        cwd = str(path)
    place = None if state.get("container") is None else msgspec.convert(state["container"], Place)
    session = None if place is None or containers is None else containers.of(place)
    if place is not None:
        thread = {"environments": [{"environmentId": place.environment, "cwd": place.workdir}]}
        if session is not None:
            environment = {
                "environmentId": place.environment,
                "execServerUrl": session.exec_server,
                "authBearerToken": place.token,
            }
    return Workspace(
        sample=sample,
        directory=directory,
        cwd=Path(cwd),
        base=state["base"],
        hook=state["hook"],
        thread=thread,
        environment=environment,
        ended=tuple(state.get("ended", ())),
        place=place,
        session=session,
    )


async def _start(hook: str, sample: Sample, workspace: Path) -> hooks.HookResult:
    try:
        return await hooks.start(hook, sample, workspace)
    except BaseException:
        # What it had begun is its own to end; why it failed is the news.
        with contextlib.suppress(WorkspaceError):
            await asyncio.shield(hooks.stop(hook, sample, workspace))
        raise


def _commands(setup: Any) -> list[str]:
    if setup is None:
        return []
    return [setup] if isinstance(setup, str) else list(setup)


def _clear(directory: Path, workspace: Path) -> None:
    _remove(directory)
    workspace.mkdir(parents=True)


def _copy(template: Path, workspace: Path) -> None:
    if not template.is_dir():
        raise WorkspaceError(f"the template {template} is not there any more")
    shutil.copytree(template, workspace, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT))


def _write(workspace: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = workspace / name
        # A link in the template must not lead out of the workspace.
        if not resolved(path.parent).is_relative_to(resolved(workspace)) or path.is_symlink():
            raise WorkspaceError(f"files: {name} leads out of the workspace, through a link")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _save(path: Path, state: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(state).encode())


def _remove(directory: Path) -> None:
    if not directory.exists():
        return
    # Without this a killed removal would look like a workspace.
    (directory / layout.WORKSPACE_STATE).unlink(missing_ok=True)
    try:
        shutil.rmtree(directory)
    except (OSError, RecursionError):
        # An agent may have taken its own rights away, or have made directories deeper than Python's stack is.
        said = "; ".join(filter(None, (_run("chmod", "-R", "u+rwx", directory), _run("rm", "-rf", directory))))
        if directory.exists():
            raise WorkspaceError(f"the workspace {directory} could not be removed: {said}") from None


def _run(command: str, options: str, *arguments: str | Path) -> str:
    """Run a command; return its message if it fails."""
    words = [command, options, *arguments[:-1], "--", arguments[-1]]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=REMOVE_LIMIT_S)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stderr.decode("utf-8", "replace").strip()[:500]
