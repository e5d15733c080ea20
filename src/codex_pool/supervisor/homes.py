"""A SQLite home for each slot: app-servers may share a CODEX_HOME, but not its databases.

They live in `CODEX_HOME/codex-pool/sqlite/N`, are kept across recycles and pools, and a new one begins as a copy of a
warm one, because a cold home is filled from all stored threads at its first start.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sqlite3
from contextlib import closing
from pathlib import Path

LOCK_NAME = "codex-pool.lock"


class SqliteHomes:
    """Claims a directory per slot, so that two pools on one CODEX_HOME never share one. Holds them until `release`."""

    def __init__(self, root: Path, slots: int) -> None:
        self._locks: list[int] = []
        self.paths: list[Path] = []
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in itertools.count():
            if len(self.paths) == slots:
                break
            self._try_claim(root / str(number))

    def seed(self, slot: int) -> None:
        """Fill a cold home from a warm one, if there is any."""
        path = self.paths[slot]
        if any(path.glob("*.sqlite")):
            return
        for sibling in sorted(path.parent.iterdir()):
            databases = sorted(sibling.glob("*.sqlite"))
            if sibling != path and databases and _copy_databases(databases, path):
                return

    def release(self) -> None:
        for lock in self._locks:
            os.close(lock)
        self._locks = []

    def _try_claim(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return
        self._locks.append(lock)
        self.paths.append(path)


def _copy_databases(sources: list[Path], target: Path) -> bool:
    """Consistent copies of databases that may be in use; whether it worked. All or none: half of them would pass for
    a warm home."""
    copies = [(source, target / f"{source.stem}.partial") for source in sources]
    try:
        for source, partial in copies:
            with (
                closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=5)) as original,
                closing(sqlite3.connect(partial)) as copy,
            ):
                original.backup(copy)
    except sqlite3.Error:
        # A home that is not copied is only slower to start.
        for _, partial in copies:
            partial.unlink(missing_ok=True)
        return False
    for source, partial in copies:
        partial.replace(target / source.name)
    return True
