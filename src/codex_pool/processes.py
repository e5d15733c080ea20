"""Processes by (pid, start time): who descends from whom, and ending what was left behind (Linux; elsewhere a no-op).

A pid alone is not an identity, it is reused. A child subreaper gets the orphans of its descendants, so that what an
app-server's tools leave behind can be found below the process that answers for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36


class ProcessId(NamedTuple):
    """A process that cannot be mistaken for a later one. `start_ticks` as in /proc/PID/stat, field 22."""

    pid: int
    start_ticks: int


def become_subreaper() -> bool:
    """Orphaned descendants become children of this process; whether the platform can do that."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent pid, start ticks) of a process that is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else (int(fields[1]), int(fields[19]))


def identify(pid: int) -> ProcessId | None:
    """The identity of a running process, None if there is none."""
    stat = _stat(pid)
    return ProcessId(pid, stat[1]) if stat is not None else None


def descendants(root: int) -> list[ProcessId]:
    """Everything below `root`, parents before children."""
    if not sys.platform.startswith("linux"):
        return []
    children: dict[int, list[ProcessId]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            children.setdefault(stat[0], []).append(ProcessId(int(name), stat[1]))
    found: list[ProcessId] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += [process.pid for process in below]
    return found


def kill(process: ProcessId) -> None:
    """SIGKILL, unless the pid belongs to another process by now."""
    if identify(process.pid) == process:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)


def sweep(root: int, *, spare: frozenset[int] = frozenset(), timeout_s: float = 5.0) -> list[ProcessId]:
    """Kill everything below `root` but the pids in `spare` and what is below them; returns what was found.

    Looks again until nothing is left, because a process can fork while it is being looked for.
    """
    swept: list[ProcessId] = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        kept = set(spare)
        for pid in spare:
            kept.update(process.pid for process in descendants(pid))
        left = [process for process in descendants(root) if process.pid not in kept]
        if not left:
            break
        for process in left:
            if process not in swept:
                swept.append(process)
            kill(process)
        _reap({process.pid for process in left})
        time.sleep(0.01)
    return swept


def _reap(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
