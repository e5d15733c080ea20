"""Running git so that neither a user's configuration nor what an agent wrote affects it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from .errors import WorkspaceError

LIMIT_S = 600.0
# The first that knows GIT_CONFIG_GLOBAL: an older one would read the user's configuration all the same.
OLDEST = (2, 32)
VERSION_LIMIT_S = 10.0
REMEDY = "install it, e.g. apt-get install git"
_ISOLATED = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
_SETTINGS = (
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.autocrlf=false"),
    *("-c", "core.quotePath=false"),
    *("-c", "gc.auto=0"),
    *("-c", "protocol.version=2"),
    *("-c", "user.name=codex-pool"),
    *("-c", "user.email=codex-pool@localhost"),
)


def command(*arguments: str) -> list[str]:
    return ["git", *_SETTINGS, *arguments]


def environment(git_dir: Path | None = None, work_tree: Path | None = None, *, isolated: bool = True) -> dict[str, str]:
    """Without any GIT_ variable of ours; `isolated` from configuration, which a fetch with credentials cannot be."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    if isolated:
        env |= _ISOLATED
    if git_dir is not None:
        env["GIT_DIR"] = str(git_dir)
    if work_tree is not None:
        env["GIT_WORK_TREE"] = str(work_tree)
    return env


def problem() -> str | None:
    """Return why git cannot be used here; None when it can."""
    path = shutil.which("git")
    if path is None:
        return "git is not installed (looked on PATH)"
    try:
        done = subprocess.run(
            ["git", "version"],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_LIMIT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"git does not start: {error}"
    said = re.match(r"git version (\d+)\.(\d+)\S*", done.stdout)
    if done.returncode != 0 or said is None:
        what = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")[-200:]
        return f"git ({path}) does not tell its version, but {what!r}"
    if (int(said[1]), int(said[2])) < OLDEST:
        return f"git ({path}) is too old: {said[0]}, expected {OLDEST[0]}.{OLDEST[1]} or newer"
    return None


async def run(
    *arguments: str,
    git_dir: Path | None = None,
    work_tree: Path | None = None,
    isolated: bool = True,
    limit_bytes: int | None = None,
    may_fail: bool = False,
    stdin: bytes = b"",
) -> bytes:
    """Run git; return its output, cut to `limit_bytes` + 1 bytes. Raises WorkspaceError with git's message."""
    try:
        child = await asyncio.create_subprocess_exec(
            *command(*arguments),
            cwd=work_tree or "/",
            env=environment(git_dir, work_tree, isolated=isolated),
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise WorkspaceError(f"git is not installed (looked on PATH); {REMEDY}") from None
    try:
        printed, said = await asyncio.wait_for(_read(child, stdin, limit_bytes), LIMIT_S)
    except asyncio.TimeoutError:
        raise WorkspaceError(f"git {arguments[0]}: took longer than {LIMIT_S:.0f} s") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await asyncio.shield(child.wait())
    if child.returncode != 0 and not may_fail and (limit_bytes is None or len(printed) <= limit_bytes):
        raise WorkspaceError(f"git {arguments[0]}: {said or f'exit code {child.returncode}'}")
    return printed


async def _read(child: asyncio.subprocess.Process, stdin: bytes, limit_bytes: int | None) -> tuple[bytes, str]:
    """Return what git wrote to stdout and to stderr, up to the limit or to its end."""
    assert child.stdout is not None and child.stderr is not None
    if child.stdin is not None:
        # git need not read it.
        with contextlib.suppress(ConnectionError):
            child.stdin.write(stdin)
            await child.stdin.drain()
        child.stdin.close()
    saying, printed = asyncio.ensure_future(child.stderr.read()), bytearray()
    try:
        while part := await child.stdout.read(1 << 16):
            printed += part
            if limit_bytes is not None and len(printed) > limit_bytes:
                return bytes(printed[: limit_bytes + 1]), ""
        said = await saying
        await child.wait()
    finally:
        saying.cancel()
    return bytes(printed), said.decode("utf-8", "replace").strip()
