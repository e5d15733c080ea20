"""A SQLite home for each app-server: they may share a CODEX_HOME, but not its databases.

They live in `CODEX_HOME/codex-pool/sqlite/N`, are kept across recycles and pools, and a new one begins as a copy of a
warm one, because a cold home is filled from all stored threads at its first start. The first one of all has what the
CODEX_HOME's own databases know of threads, their names and their histories: without it the history of a thread is made
of its file once more when it is resumed, which takes several times as long as to read it.

While a slot is recycled its two workers run at the same time: the new one gets a spare home, a fresh copy of the
slot's own, which is the slot's from then on; the old one's is the next spare.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

LOCK_NAME = "codex-pool.lock"
# Of the databases of a CODEX_HOME, those that are about threads. Queues and goals are for one app-server to act upon.
_OF_THREADS = ("state_*.sqlite", "thread_history_*.sqlite")
# Beyond it histories are left to be made again: who starts a pool waits for the copy.
MAX_HISTORY_BYTES = 1024 * 1024 * 1024


def root_of(home: Path) -> Path:
    """The directory of the SQLite homes of all pools on a CODEX_HOME."""
    return home / "codex-pool" / "sqlite"


def home_of(root: Path) -> Path:
    """The CODEX_HOME that `root_of` was made of."""
    return root.parent.parent


def sqlite_override(path: Path) -> str:
    """The `--config` value that makes an app-server use this SQLite home.

    `sqlite_home` in a config.toml wins over the variable CODEX_SQLITE_HOME (measured on codex 0.163.0), and would have
    all app-servers share one.
    """
    return f"sqlite_home={json.dumps(str(path), ensure_ascii=False)}"


def with_sqlite_home(argv: list[str], path: Path) -> list[str]:
    """A codex command with this SQLite home, as the last option before `app-server`: an option behind the name of the
    subcommand has codex forget those before it."""
    at = len(argv) - 1 - argv[::-1].index("app-server")
    return [*argv[:at], "--config", sqlite_override(path), *argv[at:]]


class SqliteHomes:
    """Claims a directory per slot, also for slots that are added later, and holds them until `close`: two pools on one
    CODEX_HOME never share one.

    `paths` are the homes of the slots; those that were used last are claimed first.
    """

    def __init__(self, root: Path, slots: int) -> None:
        self._root = root
        self._locks: dict[Path, int] = {}
        # Home -> the slot whose worker uses it.
        self._in_use: dict[Path, int] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.paths = [self._claim() for _ in range(slots)]

    @classmethod
    def taken_over(cls, root: Path, paths: list[Path], locks: dict[Path, int], in_use: dict[Path, int]) -> SqliteHomes:
        """The homes of a supervisor before, which are locked by these descriptors."""
        homes = cls(root, 0)
        homes.paths, homes._locks, homes._in_use = paths, locks, in_use
        return homes

    @property
    def locks(self) -> dict[Path, int]:
        """The descriptors that keep the homes claimed."""
        return self._locks

    @property
    def in_use(self) -> dict[Path, int]:
        """The homes that workers use, each with its slot."""
        return self._in_use

    def take(self, slot: int) -> Path:
        """The home of a worker of this slot that is about to start: the slot's own, or a copy of it while in use.

        Raises OSError.
        """
        while slot >= len(self.paths):
            # A slot that was added; one that was removed has left its home here.
            self.paths.append(self._claim())
        path = self.paths[slot]
        if not (path / LOCK_NAME).exists():
            # It was removed; no other process has it if it can be locked again.
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            before = self._locks[path]
            if self._try_claim(path):
                os.close(before)
        if path not in self._in_use:
            self._seed_if_cold(path)
        else:
            source = path
            spares = [path for path in self._locks if path not in self.paths and path not in self._in_use]
            path = self.paths[slot] = spares[0] if spares else self._claim()
            copy_databases(source, path)
        self._in_use[path] = slot
        return path

    def give_back(self, path: Path) -> None:
        """The worker that has used this home, and all below it, is gone."""
        slot = self._in_use.pop(path)
        # The slot goes on with the home that is in use, else with the one that was used last.
        self.paths[slot] = next((other for other, its in self._in_use.items() if its == slot), path)

    def lock_of(self, path: Path) -> int:
        """The descriptor that keeps the home claimed; a process that uses the home may hold it too."""
        return self._locks[path]

    def close(self) -> None:
        """Let other pools have the homes."""
        for lock in self._locks.values():
            os.close(lock)
        self._locks = {}

    def _claim(self) -> Path:
        """Return the home that was used last of those that no process holds, or a new one."""
        existing = [path for path in self._root.iterdir() if path.name.isdigit() and path.is_dir()]
        existing.sort(key=lambda path: (-_used_at(path), int(path.name)))
        for path in itertools.chain(existing, (self._root / str(number) for number in itertools.count())):
            if path not in self._locks and self._try_claim(path):
                return path
        raise AssertionError("unreachable")

    def _try_claim(self, path: Path) -> bool:
        path.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._locks[path] = lock
        return True

    def _seed_if_cold(self, path: Path) -> None:
        if any(path.glob("*.sqlite")):
            return
        for sibling in sorted(self._root.iterdir()):
            if sibling != path and copy_databases(sibling, path):
                return
        copy_databases(home_of(self._root), path, _of_threads(home_of(self._root)))


def _used_at(path: Path) -> int:
    """Return when a home's databases were written last; 0 for a cold one."""
    found = 0
    for database in path.glob("*.sqlite*"):
        try:
            found = max(found, database.stat().st_mtime_ns)
        except OSError:
            # An app-server removes its logs when it ends.
            continue
    return found


def _of_threads(home: Path) -> list[Path]:
    """The databases of a CODEX_HOME that list its threads; those of histories unless they are too large."""
    states, histories = (sorted(home.glob(pattern)) for pattern in _OF_THREADS)
    try:
        size = sum(database.stat().st_size for database in histories)
    except OSError:
        return []
    return states + (histories if states and size <= MAX_HISTORY_BYTES else [])


def copy_databases(source: Path, target: Path, databases: list[Path] | None = None) -> bool:
    """Consistent copies of databases that may be in use, in place of what is there; whether there are any. All or none:
    half of them would pass for a warm home. All of `source` unless `databases` selects some."""
    chosen = sorted(source.glob("*.sqlite")) if databases is None else databases
    copies = [(database, target / f"{database.stem}.partial") for database in chosen]
    try:
        for database, partial in copies:
            partial.unlink(missing_ok=True)
            with (
                closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as original,
                closing(sqlite3.connect(partial)) as copy,
            ):
                original.backup(copy)
    except (sqlite3.Error, OSError):
        # A home that is not copied is only slower to start.
        for _, partial in copies:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        return False
    for database, partial in copies:
        # A log that belongs to another database would be played into this one.
        for log in ("-wal", "-shm"):
            (target / (database.name + log)).unlink(missing_ok=True)
        partial.replace(target / database.name)
    return bool(copies)
