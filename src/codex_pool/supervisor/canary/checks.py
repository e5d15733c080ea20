"""Checks of a codex binary by a canary: each raises CheckError, with what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from codex_app_server import AppServerConfig, AppServerError, Codex
from codex_app_server._protocol import runtime_version

from .arguments import CanaryArguments
from .scratch_home import CopiedThread, make_home

VERSION_LIMIT_S = 20.0
# Of each request, and of the turn.
REQUEST_LIMIT_S = 60.0
TURN_LIMIT_S = 180.0
PROBE = "Answer with the word OK, and use no tool."

_VERSION = re.compile(r"\d+\.\d+\.\d+\S*")
OnStep = Callable[[str], None]


class CheckError(Exception):
    """A binary has failed a check; the message names it and says how."""


def run(arguments: CanaryArguments, on_step: OnStep) -> str:
    """Run all checks; return the version. `on_step` is called with the name of each. Raises CheckError."""
    path, home = arguments.argv[0], Path(arguments.directory)
    environ = {**arguments.environ, "CODEX_HOME": str(home), "CODEX_SQLITE_HOME": str(home / "sqlite")}
    try:
        copied = make_home(Path(arguments.home), Path(arguments.databases), home)
    except OSError as error:
        raise CheckError(f"a home to try {path} with cannot be made: {error.filename}: {error.strerror}") from error
    on_step("--version")
    version = ask_version(path, {**os.environ, **environ})
    refuse_old(path, version)
    on_step("start")
    config = AppServerConfig(launch_args_override=tuple(arguments.argv), cwd=arguments.cwd, env=environ)
    info = arguments.initialize["clientInfo"]
    config.client_name, config.client_title, config.client_version = info["name"], info["title"], info["version"]
    with _checked(path, "start and answer initialize"):
        codex = Codex(config)
    with codex:
        version = codex.client.runtime_version or version
        refuse_old(path, version)
        _try_requests(path, codex, arguments, copied, on_step)
    return version


def ask_version(path: str, environ: dict[str, str]) -> str:
    """Return the version that a codex binary says it is. Raises CheckError."""
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_LIMIT_S,
            check=False,
            env=environ,
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"{path} --version did not end within {VERSION_LIMIT_S:g} s") from None
    except OSError as error:
        raise CheckError(f"{path} cannot be run: {error.strerror or error}") from error
    found = _VERSION.search(done.stdout.decode("utf-8", "replace"))
    if done.returncode != 0 or found is None:
        reason = f"exit code {done.returncode}" if done.returncode else "it printed no version"
        raise CheckError(f"{path} is not codex, or cannot run here: {path} --version: {reason}")
    return found[0]


def refuse_old(path: str, version: str) -> None:
    """Raise CheckError for a version before the supported ones."""
    problem = runtime_version.too_old(version)
    if problem is not None:
        raise CheckError(f"{path}: {problem}")


def _try_requests(
    path: str, codex: Codex, arguments: CanaryArguments, copied: CopiedThread | None, on_step: OnStep
) -> None:
    from ...configuration import read_configuration

    on_step("config/read")
    with _checked(path, "read the configuration"):
        read_configuration(codex, arguments.cwd)
    on_step("thread/list")
    with _checked(path, "answer thread/list"):
        codex.client.request("thread/list", {"limit": 20}, timeout_s=REQUEST_LIMIT_S)
    if copied is not None:
        on_step("thread/resume")
        with _checked(path, "resume the copy of a stored thread"):
            found = codex.client.request("thread/resume", {"thread_id": copied.id}, timeout_s=REQUEST_LIMIT_S)
            if found.thread.id != copied.id or len(found.thread.turns) < copied.turns:
                raise CheckError(f"{path} has resumed the copy of a stored thread without its history")
    if arguments.probe_turn:
        on_step("turn")
        with _checked(path, "run a turn"):
            thread = codex.thread_start(ephemeral=True, sandbox="read-only", approval_policy="never")
            result = thread.run(PROBE, timeout=TURN_LIMIT_S)
            if result.status != "completed":
                raise CheckError(f"{path}: the turn that tries it out was {result.status}, not completed")


@contextmanager
def _checked(path: str, what: str) -> Iterator[None]:
    """Name the check in whatever error it ends with. An answer of another form is one too."""
    try:
        yield
    except (AppServerError, OSError, KeyError, TypeError, ValueError, TimeoutError) as error:
        raise CheckError(f"{path} could not {what}: {str(error) or type(error).__name__}") from error
