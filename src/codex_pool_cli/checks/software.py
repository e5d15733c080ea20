"""Probes of software: Python, extras, proxies, the codex binary and its sandbox."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from codex_app_server import AppServerConfig
from codex_app_server._protocol import runtime_version
from codex_app_server.errors import AppServerError
from codex_pool import __version__
from codex_pool.supervisor.canary.checks import CheckError, ask_version

from .facts import Binary, Sandbox, Software

ASK_LIMIT_S = 10.0
_EXTRAS = {"gateway": "aiohttp"}
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY")
_STARTED = "started"


def software() -> Software:
    """Versions, extras and proxies of this process."""
    return Software(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        pool=__version__,
        extras={name: importlib.util.find_spec(module) is not None for name, module in _EXTRAS.items()},
        proxies=tuple(sorted(name for name in os.environ if name.upper() in _PROXIES and os.environ[name])),
    )


def binary(codex_bin: str | None) -> Binary:
    """The codex binary that a pool would use, asked for its version."""
    config = AppServerConfig(codex_bin=codex_bin)
    try:
        path = config.argv()[0]
    except (AppServerError, OSError) as error:
        return Binary(None, problem=str(error))
    try:
        with tempfile.TemporaryDirectory(prefix="codex-pool-doctor-") as home:
            version = ask_version(path, {**config.environ(), "CODEX_HOME": home})
    except CheckError as error:
        return Binary(path, problem=str(error))
    return Binary(path, version=version, warning=runtime_version.warning(version))


def sandbox(codex_bin: str | None) -> Sandbox:
    """Run a command in the read-only sandbox of codex, as an app-server does, with a CODEX_HOME of its own.

    Measured with codex 0.163.0: `codex sandbox` runs the helpers of app-server; without a mode it is read-only.
    """
    namespaces = _namespaces()
    config = AppServerConfig(codex_bin=codex_bin)
    try:
        path = config.argv()[0]
    except (AppServerError, OSError) as error:
        return Sandbox(started=False, message=f"there is no codex to try it with: {error}", namespaces=namespaces)
    with tempfile.TemporaryDirectory(prefix="codex-pool-doctor-") as name:
        home, target = Path(name) / "codex", Path(name) / "written"
        home.mkdir()
        script = f'echo {_STARTED}; : > "$1"'
        try:
            done = subprocess.run(
                [path, "sandbox", "--", "/bin/sh", "-c", script, "sh", str(target)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ASK_LIMIT_S,
                check=False,
                cwd="/",
                env={**config.environ(), "CODEX_HOME": str(home)},
            )
        except subprocess.TimeoutExpired:
            return Sandbox(started=False, message=f"no end within {ASK_LIMIT_S:g} s", namespaces=namespaces)
        except OSError as error:
            return Sandbox(started=False, message=error.strerror or str(error), namespaces=namespaces)
        started = _STARTED in done.stdout.decode("utf-8", "replace").split()
        return Sandbox(started, wrote=target.exists(), message=_message(done.stderr), namespaces=namespaces)


def _message(stderr: bytes) -> str:
    """The last line that is no warning about the home, which is below the directory for temporary files here."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    said = [line for line in lines if line and not line.startswith("WARNING: proceeding")]
    return said[-1][:400] if said else ""


def _namespaces() -> int | None:
    try:
        return int(Path("/proc/sys/user/max_user_namespaces").read_text("ascii"))
    except (OSError, ValueError):
        return None
