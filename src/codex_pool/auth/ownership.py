"""The durable record of thread ownership: one SQLite database in a home, and a mark of it beside the keys.

    CODEX_HOME/codex-pool/ownership.sqlite     the threads of clients with a key; a thread that is not in it is the
                                               pool's owner's
    KEYS/homes/DIGEST.json                     the mark: which store a home has, and how many changes it has seen

Several pools on one home share the store. The mark distinguishes a store that was deleted, exchanged or put back from a
backup from a home that never had one: the owner of a thread that such a store does not name is not known, so keys are
refused until the pool's owner accepts the loss (`codex-pool keys reset-ownership`). It is with the keys because without
the keys there is no client left whose threads could be confused.

Every transaction counts `changes` up and is on the disk (`synchronous=FULL`) before the mark follows, so that the store
is never behind its mark by a crash or a power failure.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from codex_app_server._runtime.files import write_atomic

VERSION = 1
NAME = "ownership.sqlite"
# How long a writer waits for another pool's; readers never wait.
BUSY_S = 5.0
# Rows of threads that are gone inform the other pools. These, and those of threads that were never on disk, are
# removed by a pool that begins so much later.
KEEP_GONE_S = 7 * 24 * 3600

_TABLES = """
CREATE TABLE meta (version INTEGER NOT NULL, store TEXT NOT NULL, home TEXT NOT NULL, changes INTEGER NOT NULL);
CREATE TABLE threads (
  thread_id TEXT PRIMARY KEY, owner TEXT NOT NULL, parent TEXT NOT NULL, name TEXT NOT NULL, cwd TEXT NOT NULL,
  model_provider TEXT NOT NULL, source TEXT NOT NULL, created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
  archived INTEGER NOT NULL, ephemeral INTEGER NOT NULL, stored INTEGER NOT NULL, gone INTEGER NOT NULL,
  change INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX threads_by_change ON threads (change);
"""


class OwnershipError(Exception):
    """The store cannot be relied upon; the message gives the reason."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A thread of a client with a key. Times are Unix milliseconds.

    `parent` is the thread that it is a sub-agent of, `stored` means that it is on disk (it had a turn), `gone` that it
    was deleted. `source` is the source kind as `thread/list` filters by it.
    """

    thread_id: str
    owner: str
    parent: str = ""
    name: str = ""
    cwd: str = ""
    model_provider: str = ""
    source: str = ""
    created_ms: int = 0
    updated_ms: int = 0
    archived: bool = False
    ephemeral: bool = False
    stored: bool = False
    gone: bool = False


_FIELDS = Row.__struct_fields__
_FLAGS = frozenset({"archived", "ephemeral", "stored", "gone"})
_COLUMNS = ", ".join(_FIELDS)


class _Mark(msgspec.Struct):
    home: str
    store: str
    changes: int


class Mark:
    """The mark of one home's store, in a folder of the keys. `read` raises OwnershipError for one that is no mark."""

    def __init__(self, keys: Path, home: Path, folder: str = "homes") -> None:
        self.home = _named(home)
        digest = hashlib.sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:32]
        self.path = keys / folder / f"{digest}.json"

    def read(self) -> _Mark | None:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Mark)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise OwnershipError(f"the mark {self.path} cannot be read: {error}") from None

    def write(self, store: str, changes: int) -> None:
        """Whole or not at all. Raises OSError."""
        for directory in (self.path.parent.parent, self.path.parent):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark = msgspec.json.encode(_Mark(self.home, store, changes))
        write_atomic(self.path, mark, mode=0o600, is_shared=True)


def path_in(home: Path) -> Path:
    """Path of the store of a home."""
    return home / "codex-pool" / NAME


class Store:
    """An open store, checked. Not for use from two threads; each opens its own.

    `mark` is None for a pool without keys, which opens only what is there. Opening, and every method, raises
    OwnershipError when the store cannot be relied upon; `write` raises sqlite3.OperationalError too, when the database
    is busy or the disk full, and has written nothing then.
    """

    def __init__(self, home: Path, mark: Mark | None) -> None:
        self.path = path_in(home)
        self._home = _named(home)
        self._mark = mark
        marked = mark.read() if mark is not None else None
        try:
            if not self.path.exists():
                if marked is not None or mark is None:
                    raise OwnershipError(f"{self.path} is missing" + (f", and {mark.path} names it" if mark else ""))
                _create(self.path, self._home)
            self._connection = self._connect()
        except sqlite3.Error as error:
            raise OwnershipError(f"{self.path} cannot be read: {error}") from None
        except OSError as error:
            raise OwnershipError(f"{self.path} cannot be made: {error}") from None
        try:
            self._inode = self._identify()
            self.id, self._changes = self._check(marked)
            if mark is not None and (marked is None or marked.changes < self._changes):
                mark.write(self.id, self._changes)
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise OwnershipError(f"{self.path} cannot be read: {error}") from None
            raise
        self._purged = False
        # The files as they were when they were last read to be verified.
        self._looked: list[tuple[int, ...] | None] = []
        self._seen_version = -1
        self._seen_change = -1

    def close(self) -> None:
        self._connection.close()

    def verify(self) -> None:
        """Check that the file is still the one that was opened, and holds all that this process has read from it."""
        try:
            identity = self._identify()
            if identity[0] != self._inode[0]:
                raise OwnershipError(f"{self.path} was exchanged for another file")
            if identity[1] < self._inode[1]:
                raise OwnershipError(f"{self.path} was cut from {self._inode[1]} to {identity[1]} bytes")
            self._inode = identity
            looked = self._look()
            if looked == self._looked:
                return
            marked = self._mark.read() if self._mark is not None else None
            # A connection that is open answers from memory what it has read before.
            with contextlib.closing(self._connect()) as fresh:
                store, changes = self._meta(fresh)
            if store != self.id or (marked is not None and marked.store != store):
                raise OwnershipError(f"{self.path} was exchanged for the store of another home")
            if changes < self._changes:
                raise OwnershipError(f"{self.path} was exchanged for an older one")
            if self._mark is not None and marked is None:
                self._mark.write(store, changes)
            # What was changed since is looked at the next time.
            self._changes, self._looked = changes, looked
        except FileNotFoundError:
            raise OwnershipError(f"{self.path} was deleted") from None
        except (sqlite3.Error, OSError) as error:
            raise OwnershipError(f"{self.path} cannot be read: {error}") from None

    def news(self) -> list[Row]:
        """The rows that have changed since the last call, by any pool; all rows on the first call."""
        try:
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version == self._seen_version:
                return []
            query = f"SELECT {_COLUMNS}, change FROM threads WHERE change > ? ORDER BY change"
            found = self._connection.execute(query, (self._seen_change,)).fetchall()
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                return []
            raise OwnershipError(f"{self.path} cannot be read: {error}") from None
        except sqlite3.Error as error:
            raise OwnershipError(f"{self.path} cannot be read: {error}") from None
        self._seen_version = version
        if found:
            self._seen_change = found[-1][-1]
        return [_row(values) for values in found]

    def write(self, rows: Iterable[Row]) -> None:
        """Write these rows in one transaction; they are on the disk when this returns.

        A thread that has an owner keeps it: a row of another one is passed over.
        """
        values = [[getattr(row, name) for name in _FIELDS] for row in rows]
        changes = "?, " * len(_FIELDS)
        kept = ", ".join(f"{name} = excluded.{name}" for name in _FIELDS if name not in ("thread_id", "owner"))
        statement = (
            f"INSERT INTO threads ({_COLUMNS}, change) VALUES ({changes}(SELECT changes FROM meta)) "
            f"ON CONFLICT (thread_id) DO UPDATE SET {kept}, change = excluded.change WHERE owner = excluded.owner"
        )
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.execute("UPDATE meta SET changes = changes + 1")
                if not self._purged:
                    before = round((time.time() - KEEP_GONE_S) * 1000)
                    self._connection.execute(
                        "DELETE FROM threads WHERE (gone OR NOT stored) AND updated_ms < ?", (before,)
                    )
                    self._purged = True
                self._connection.executemany(statement, values)
                store, self._changes = self._meta()
                if store != self.id:
                    raise OwnershipError(f"{self.path} was exchanged for the store of another home")
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError:
            raise
        except sqlite3.Error as error:
            raise OwnershipError(f"{self.path} cannot be written: {error}") from None
        if self._mark is not None:
            # A mark that lags behind is brought up by the next change.
            with contextlib.suppress(OSError):
                self._mark.write(self.id, self._changes)

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a file that was deleted meanwhile is not made again, empty.
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _identify(self) -> tuple[tuple[int, int], int]:
        status = self.path.stat()
        return (status.st_dev, status.st_ino), status.st_size

    def _look(self) -> list[tuple[int, ...] | None]:
        """Return what changes with the content of database, log and mark; None for a file that is not there."""
        paths = [self.path, self.path.with_name(f"{NAME}-wal"), *([self._mark.path] if self._mark is not None else ())]
        found: list[tuple[int, ...] | None] = []
        for path in paths:
            try:
                status = path.stat()
            except FileNotFoundError:
                found.append(None)
            else:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        return found

    def _meta(self, connection: sqlite3.Connection | None = None) -> tuple[str, int]:
        rows = (connection or self._connection).execute("SELECT version, store, home, changes FROM meta").fetchall()
        if len(rows) != 1 or rows[0][0] != VERSION:
            raise OwnershipError(f"{self.path} is of version {rows[0][0] if rows else None}; expected {VERSION}")
        return str(rows[0][1]), int(rows[0][3])

    def _check(self, marked: _Mark | None) -> tuple[str, int]:
        (answer,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise OwnershipError(f"{self.path} is damaged: {answer}")
        store, changes = self._meta()
        (home,) = self._connection.execute("SELECT home FROM meta").fetchone()
        if marked is not None and marked.store != store:
            raise OwnershipError(f"{self.path} is not the store that {self._mark and self._mark.path} names")
        if home != self._home:
            raise OwnershipError(f"{self.path} is the store of another home, {home}")
        if marked is not None and changes < marked.changes:
            raise OwnershipError(
                f"{self.path} is older than it was: {changes} changes, and there were {marked.changes}"
            )
        return store, changes


def _named(home: Path) -> str:
    """The real path of a home as text, which a path need not be."""
    return os.fsencode(os.path.realpath(home)).decode("utf-8", "backslashreplace")


def reset(home: Path, keys: Path) -> tuple[int, Path | None]:
    """Accept the loss of a store: a new one, with what can still be read of the old one.

    Answers how many threads keep their owner, and where the old file was put aside. All other threads of the home are
    the pool's owner's from now on. Raises OSError and sqlite3.Error for a path that cannot be written.
    """
    path = path_in(home)
    mark = Mark(keys, home)
    rows = _salvage(path)
    aside = None
    if path.exists():
        aside = path.with_name(f"{NAME}.{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
        path.rename(aside)
    for log in ("-wal", "-shm"):
        path.with_name(NAME + log).unlink(missing_ok=True)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark.path.unlink(missing_ok=True)
    store = Store(home, mark)
    try:
        store.write(rows)
    finally:
        store.close()
    return len(rows), aside


def _salvage(path: Path) -> list[Row]:
    """The rows of a store whose tables can be read as a whole; else none."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return []
            if connection.execute("SELECT version FROM meta").fetchall() != [(VERSION,)]:
                return []
            return [_row(values) for values in connection.execute(f"SELECT {_COLUMNS} FROM threads WHERE NOT gone")]
    except sqlite3.Error:
        return []


def _row(values: Iterable[object]) -> Row:
    fields = {name: bool(value) if name in _FLAGS else value for name, value in zip(_FIELDS, values, strict=False)}
    return Row(**fields)  # type: ignore[arg-type]


def _create(path: Path, home: str) -> None:
    """A store without threads, whole or not at all; another pool's that comes first is left alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{NAME}.{secrets.token_hex(4)}.new")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_TABLES)
            connection.execute("INSERT INTO meta VALUES (?, ?, ?, 0)", (VERSION, secrets.token_hex(16), home))
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)
