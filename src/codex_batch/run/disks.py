"""Disks of a run: one is known to be full by an error, or by looking at it."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

# With less than this nothing is started: the files of a sample, and of codex, are to have room to its end.
LEAST_BYTES = 16 * 2**20


class Disk:
    """The disk that a directory lies on, or will."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._there = directory.absolute()

    def _look(self) -> os.statvfs_result:
        there = self._there
        while True:
            try:
                return os.statvfs(there)
            except OSError as error:
                # Still to be made, or hidden: on the disk of what it will lie in. A loop is refused when it is made.
                known = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP)
                if error.errno not in known or there == there.parent:
                    raise
                there = there.parent

    def shortage(self, least_bytes: int = LEAST_BYTES) -> str | None:
        """Return what is wrong with it, None if there is room for so many bytes."""
        found = self._look()
        # Some file systems count no files: they report room for none.
        if found.f_files > 0 and found.f_favail == 0:
            return "there is no room for another file (inodes)"
        # What is kept for root is root's to write.
        free = found.f_frsize * (found.f_bfree if os.geteuid() == 0 else found.f_bavail)
        if free >= least_bytes:
            return None
        return f"{free / 2**20:.1f} MiB are free" + (
            f", and {least_bytes // 2**20} are needed" if least_bytes >= 2**20 else ""
        )

    def problem(self, reason: object) -> str:
        """Return the message of a program that cannot go on, with the remedy."""
        return (
            f"the disk is full ({reason}); make room on the disk of {self.directory}; what is recorded stays, "
            "and the same command goes on then"
        )


def disks_of(run: Path, home: str | None) -> tuple[Disk, ...]:
    """The disk of a run directory, and that of the CODEX_HOME if it is on this machine and on another one."""
    try:
        if home is None or os.stat(home).st_dev == os.stat(run).st_dev:
            return (Disk(run),)
    except OSError:
        # The home of a daemon may be where we cannot look.
        return (Disk(run),)
    return (Disk(run), Disk(Path(home)))


def is_full(error: Exception) -> bool:
    """Return True if something could not be written because the disk is full, or a quota is used up."""
    if isinstance(error, sqlite3.Error):
        return "full" in str(error)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
