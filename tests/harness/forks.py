"""Programs that fork, each a process of its own: a fork copies all of a test's process, its threads' locks too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LIMIT_S = 50

PRELUDE = '''
import asyncio, contextlib, ctypes, faulthandler, gc, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from codex_app_server import *
from codex_app_server.testing import *
from codex_pool.client.transport import PoolTransport
from codex_pool.pool import Pool

work = Path(sys.argv[1])

# A child that hangs is asked where it does so. No watchdog thread: a fork would copy its lock without the thread.
faulthandler.register(signal.SIGUSR2, all_threads=True)

def real(model):
    """The real app-server on a model of loopback."""
    write_loopback_home(work / "home", model.base_url)
    return AppServerConfig(env={"CODEX_HOME": str(work / "home"), "RUST_LOG": "error"}, cwd=str(work))

def fork_in_c():
    """A fork that runs no hooks of Python."""
    return ctypes.PyDLL(None).fork()

def ended(pid, limit_s=20):
    """The exit code of a child that ends in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGUSR2)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")

def in_child(function, fork=os.fork):
    """Run a function in a forked child; its exit code, 0 if it returned."""
    pid = fork()
    if pid:
        return ended(pid)
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(code)

def pipes():
    """The pipes and sockets that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith(("pipe:", "socket:")):
                found.add(target)
    return found

def refused(function):
    """That something is refused in this process, at once and with the remedy."""
    began = time.monotonic()
    try:
        function()
    except WrongProcessError as error:
        assert f"made in process {os.getppid()} and is used in process {os.getpid()}" in str(error), error
        assert "after the fork" in str(error) and "spawn" in str(error), error
        assert isinstance(error, RuntimeError) and isinstance(error, AppServerError)
    else:
        raise AssertionError(f"{function} was not refused")
    assert time.monotonic() - began < 5
'''


def run(program: str, work: Path, *arguments: str, warnings: str = "error") -> str:
    """Return what a program has written; it ends by itself, in time and well."""
    command = [sys.executable, "-W", warnings, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + program, str(work)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=LIMIT_S, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
