"""Processes by (pid, start time): who descends from whom, and ending what was left behind (Linux; elsewhere a no-op).

`descendants` reads all of /proc and is exact, to end processes. `tree` asks each process for its children
and costs a tenth of that, to count them.

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
from collections.abc import Iterable
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36


class ProcessId(NamedTuple):
    """A process that cannot be mistaken for a later one. `start_ticks` as in /proc/PID/stat, field 22."""

    pid: int
    start_ticks: int


class TreeProcess(NamedTuple):
    """A process of a tree: its parent's pid, and the session that it is in (the pid of who called setsid)."""

    id: ProcessId
    parent: int
    session: int


class Memory(NamedTuple):
    """Memory of a process. `is_pss`: pages that it shares count in proportion (PSS), not in full (RSS)."""

    size_bytes: int
    is_pss: bool


def become_subreaper() -> bool:
    """Orphaned descendants become children of this process; whether the platform can do that."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def _stat_fields(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the third on: what stands before them may have spaces in it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].split()
    except OSError:
        return None


def _state(fields: list[bytes]) -> bytes:
    """State of a process; a zombie whose other threads still live is none yet."""
    return b"S" if fields[0] == b"Z" and int(fields[17]) > 1 else fields[0]


def _read_stat(pid: int) -> tuple[bytes, int, int] | None:
    """(state, parent pid, start ticks) of a process."""
    fields = _stat_fields(pid)
    return None if fields is None else (_state(fields), int(fields[1]), int(fields[19]))


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent pid, start ticks) of a process that is not a zombie."""
    stat = _read_stat(pid)
    return None if stat is None or stat[0] in (b"Z", b"X") else stat[1:]


def identify(pid: int) -> ProcessId | None:
    """The identity of a running process, None if there is none."""
    stat = _stat(pid)
    return ProcessId(pid, stat[1]) if stat is not None else None


def descendants(root: int, *, spare: frozenset[int] = frozenset()) -> list[ProcessId]:
    """Return all processes below `root`, parents before children, without the pids in `spare` and those below them."""
    if not sys.platform.startswith("linux"):
        return []
    children: dict[int, list[ProcessId]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            children.setdefault(stat[0], []).append(ProcessId(int(name), stat[1]))
    found: list[ProcessId] = []
    todo = [root]
    while todo:
        below = [process for process in children.get(todo.pop(), []) if process.pid not in spare]
        found += below
        todo += [process.pid for process in below]
    return found


def tells_trees() -> bool:
    """Return True if `tree` finds what is below a process on this platform."""
    return sys.platform.startswith("linux") and identify(os.getpid()) is not None


def tree(root: int) -> list[TreeProcess]:
    """The processes below `root`, parents before children; [] without /proc (not Linux).

    A child that ends at the same moment may hide another one (see `children` in proc(5)), so it is no base for ending
    processes.
    """
    if not sys.platform.startswith("linux"):
        return []
    if not os.path.exists(f"/proc/{root}/task/{root}/children"):
        # A kernel without CONFIG_PROC_CHILDREN.
        return [process for each in descendants(root) if (process := _tree_process(each.pid)) is not None]
    found: list[TreeProcess] = []
    todo = [root]
    while todo:
        for pid in _children(todo.pop()):
            process = _tree_process(pid)
            if process is not None:
                found.append(process)
                todo.append(pid)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            # A child is listed with the thread that has started it, which may end meanwhile.
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                children += map(int, file.read().split())
    return children


def _tree_process(pid: int) -> TreeProcess | None:
    fields = _stat_fields(pid)
    if fields is None or _state(fields) in (b"Z", b"X"):
        return None
    return TreeProcess(ProcessId(pid, int(fields[19])), int(fields[1]), int(fields[3]))


def kill(process: ProcessId) -> None:
    """SIGKILL, unless the pid belongs to another process by now."""
    _signal(process, signal.SIGKILL)


def _signal(process: ProcessId, number: int) -> None:
    if identify(process.pid) == process:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def sweep(root: int, *, spare: frozenset[int] = frozenset(), timeout_s: float = 5.0) -> list[ProcessId]:
    """Kill everything below `root` but the pids in `spare` and what is below them; returns what was found.

    Looks again until nothing is left, because a process can fork while it is being looked for.
    """
    swept: list[ProcessId] = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        # One look decides both what is to go and what is spared: of two, the later would find more below the spared.
        left = descendants(root, spare=spare)
        # Who was killed in the round before has become a zombie since, and a child of this process. It is not gone
        # before it can be reaped: until then its other threads may still exit, and hold its files and their locks.
        _reap(process.pid for process in swept)
        if not left and not any(_lingers(process) for process in swept):
            break
        for process in left:
            if process not in swept:
                swept.append(process)
            kill(process)
        time.sleep(0.01)
    return swept


def end_tree(root: ProcessId, timeout_s: float) -> bool:
    """End a process that may be no child of this one, and all below it; whether it was running.

    It is stopped first and killed last: it can then start nothing more, and if it is a subreaper, what loses its parent
    meanwhile comes to it and is found below it.
    """
    if identify(root.pid) != root:
        return False
    deadline = time.monotonic() + timeout_s
    _signal(root, signal.SIGSTOP)
    while time.monotonic() < deadline and (below := descendants(root.pid)):
        for process in below:
            kill(process)
        time.sleep(0.01)
    kill(root)
    while time.monotonic() < deadline and identify(root.pid) == root:
        time.sleep(0.01)
    return True


def resident_bytes(process: ProcessId) -> int | None:
    """Return the memory of a process, None if it is gone or the platform does not report it."""
    try:
        with open(f"/proc/{process.pid}/statm", "rb") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") if identify(process.pid) == process else None


def memory(process: ProcessId) -> Memory | None:
    """Return the memory of a process, None if it is gone or the platform does not report it.

    PSS, so that the sum over processes counts a shared page once. Where the kernel refuses it - of a process of another
    user, or without smaps_rollup (before Linux 4.14) - RSS, which is more.
    """
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:
            _, _, rest = file.read().partition(b"\nPss:")
        found = Memory(int(rest.split(None, 1)[0]) * 1024, is_pss=True)
    except (OSError, IndexError, ValueError):
        size_bytes = resident_bytes(process)
        return None if size_bytes is None else Memory(size_bytes, is_pss=False)
    return found if identify(process.pid) == process else None


def cpu_s(root: int) -> float:
    """Return the CPU seconds that a process has used so far, with its children that have ended and all below it.

    In steps of 10 ms on most systems; 0.0 for what is gone, and without /proc.
    """
    stats = [fields for pid in (root, *(each.id.pid for each in tree(root))) if (fields := _stat_fields(pid))]
    return sum(int(ticks) for fields in stats for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _lingers(process: ProcessId) -> bool:
    """Return whether anything is left of a process, be it a zombie."""
    stat = _read_stat(process.pid)
    return stat is not None and stat[2] == process.start_ticks


def reap_orphans(known: frozenset[int]) -> None:
    """Reap the ended children of this process that it did not start itself; `known` are those that it did."""
    if not sys.platform.startswith("linux") or not _has_ended_child():
        return
    stats = {int(name): _read_stat(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    _reap(pid for pid, stat in stats.items() if stat and stat[:2] == (b"Z", os.getpid()) and pid not in known)


def _has_ended_child() -> bool:
    """Return whether a child of this process has ended and is not reaped, without looking at all processes."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
