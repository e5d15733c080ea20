"""Probes of the system: limits of this process, free space of disks, the clock."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

from .facts import Clock, Disk, Limits


def limits() -> Limits:
    """Limits of descriptors and of processes, and the threads of this user's processes that count against the last."""
    return Limits(
        descriptors=_limit(resource.RLIMIT_NOFILE),
        processes=_limit(resource.RLIMIT_NPROC) if hasattr(resource, "RLIMIT_NPROC") and os.getuid() else None,
        used_processes=_threads_of_user(),
    )


def _limit(which: int) -> int | None:
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _threads_of_user() -> int | None:
    """Count the threads of this user's processes; None where /proc does not show them."""
    count, uid = 0, os.getuid()
    try:
        entries = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return None
    for name in entries:
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            # It has ended.
            continue
    return count or None


def disks(places: Iterable[tuple[str, Path]]) -> tuple[Disk, ...]:
    """Free space for each named place; of one that does not exist, that of the directory above it."""
    found = []
    for what, path in places:
        there = path
        while not there.exists() and there != there.parent:
            there = there.parent
        status = os.statvfs(there)
        inodes = status.f_favail if status.f_files else None
        found.append(Disk(what, str(path), status.f_bavail * status.f_frsize, inodes))
    return tuple(found)


class ClockProbe:
    """Compares the wall clock with the monotonic one, from its making until `facts`."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def facts(self, home: Path) -> Clock:
        """The clock, also against the files of a CODEX_HOME."""
        now = time.time()
        newest = now
        for name in ("", "config.toml", "auth.json", "history.jsonl", "session_index.jsonl", "sessions", "log"):
            try:
                newest = max(newest, (home / name).stat().st_mtime)
            except OSError:
                continue
        return Clock(time.localtime(now).tm_year, now - time.monotonic() - self._offset_s, newest - now)
