"""The workspace hook: a command of the user that may put a workspace into a container, or anywhere.

It is run as a shell command twice for each attempt, in the workspace's directory: with CODEX_POOL_HOOK=start once the
workspace is set up, and with CODEX_POOL_HOOK=stop before it is removed, and before a start over what a killed run left.
CODEX_POOL_WORKSPACE is the workspace, CODEX_POOL_NAME a name of letters, digits and `-` that is its own,
CODEX_POOL_SAMPLE_ID, CODEX_POOL_EPOCH and CODEX_POOL_VARIANT the sample, CODEX_POOL_TASK the task's folder.

A start may print one JSON object: `exec_server`, the URL (ws://...) of a `codex exec-server` that runs the agent's
commands; `cwd`, where codex is to work, there or here; `thread`, further options for thread/start. Nothing printed
changes nothing. Another exit code than 0 fails the attempt. What the hook leaves running as its own child is ended.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from ..dataset import Sample
from ..scoring import process
from ..scoring.scorer import ScoringFailed
from .errors import WorkspaceError

LIMIT_S = 600.0
_SAYS = {"exec_server": str, "cwd": str, "thread": dict}


def variables(sample: Sample, workspace: Path) -> dict[str, str]:
    """Return the environment variables that describe the workspace to a command of the user."""
    digest = hashlib.sha256(str(workspace).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    plain = re.sub(r"[^A-Za-z0-9]+", "-", sample.id)[:32].strip("-")
    return {
        "CODEX_POOL_WORKSPACE": str(workspace),
        "CODEX_POOL_NAME": f"codex-pool-{plain}-{digest}".replace("--", "-"),
        "CODEX_POOL_SAMPLE_ID": sample.id.replace("\0", ""),
        "CODEX_POOL_EPOCH": str(sample.epoch),
        "CODEX_POOL_VARIANT": sample.variant,
        "CODEX_POOL_TASK": sample.directory or "",
    }


class HookResult(NamedTuple):
    """Answer of a hook's start, every member optional, and the names of the processes that it left running, which
    were ended with it."""

    said: dict[str, Any]
    ended: tuple[str, ...] = ()


async def run_command(
    what: str, command: str, sample: Sample, workspace: Path, directory: Path, **more: Any
) -> process.ProcessResult:
    """Run a shell command; return how it ended. Raises WorkspaceError with the end of its output."""
    limit_s = more.pop("timeout_s", LIMIT_S)
    env = process.environment({**variables(sample, workspace), **more})
    try:
        done = await process.run(["/bin/sh", "-c", command], directory=directory, stdin=b"", timeout_s=limit_s, env=env)
    except ScoringFailed as error:
        raise WorkspaceError(f"{what} {command!r} {error}") from None
    if done.timed_out or done.exit_code != 0:
        how = f"took longer than {limit_s:g} s" if done.timed_out else f"failed with {done.words}"
        said = (done.stderr.strip() or done.stdout.strip()).decode("utf-8", "replace")[-500:]
        raise WorkspaceError(f"{what} {command!r} {how}" + (f": {said}" if said else ""))
    return done


async def start(hook: str, sample: Sample, workspace: Path) -> HookResult:
    """Run the hook's start. Raises WorkspaceError."""
    done = await run_command("the workspace hook", hook, sample, workspace, workspace, CODEX_POOL_HOOK="start")
    said = done.stdout
    if not said.strip():
        return HookResult({}, done.ended)
    try:
        answer = json.loads(said)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or any(not isinstance(part, _SAYS.get(key, ())) for key, part in answer.items()):
        shown = said.decode("utf-8", "replace").strip()[:200]
        raise WorkspaceError(
            f"the workspace hook {hook!r} printed {shown!r}; expected a JSON object of exec_server and cwd, strings, "
            "and thread, an object"
        )
    return HookResult(answer, done.ended)


async def stop(hook: str, sample: Sample, workspace: Path) -> None:
    """Raises WorkspaceError."""
    directory = workspace if workspace.is_dir() else workspace.parent
    await run_command("the workspace hook", hook, sample, workspace, directory, CODEX_POOL_HOOK="stop")
