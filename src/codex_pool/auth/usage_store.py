"""The durable record of usage: one SQLite database in a home, and a mark of it beside the keys.

    CODEX_HOME/codex-pool/usage.sqlite     what the turns of each principal have used, by day and model
    KEYS/usage/DIGEST.json                 the mark: which store a home has

Several pools on one home share the store. The mark distinguishes a store that was deleted or exchanged from a home that
never had one: what a key has used is not known then, so keys with a limit of tokens or spend are refused until the
pool's owner accepts the loss (`codex-pool keys reset-usage`).

`workers` has, for each worker, the tally that its rows are complete up to. Both change in one transaction, so a broker
that is killed leaves nothing counted twice, and the next one counts what a living worker has counted beyond it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..protocol.wire_types import Tokens, TurnTokens
from .ownership import Mark, OwnershipError
from .usage import UsageKey, UsageSums

VERSION = 1
NAME = "usage.sqlite"
BUSY_S = 5.0
# Rows of workers that are gone without a word, such as those of a daemon that was killed.
KEEP_WORKERS_S = 30 * 24 * 3600
FOLDER = "usage"

_TABLES = """
CREATE TABLE meta (version INTEGER NOT NULL, store TEXT NOT NULL);
CREATE TABLE usage (
  day INTEGER NOT NULL, principal TEXT NOT NULL, model TEXT NOT NULL, currency TEXT NOT NULL,
  turns INTEGER NOT NULL, input INTEGER NOT NULL, cached INTEGER NOT NULL, output INTEGER NOT NULL,
  reasoning INTEGER NOT NULL, cost REAL NOT NULL, most REAL NOT NULL, unpriced INTEGER NOT NULL,
  PRIMARY KEY (day, principal, model, currency)
) WITHOUT ROWID;
CREATE TABLE names (principal TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE workers (worker TEXT PRIMARY KEY, counted BLOB NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
"""
_SUMS = ("turns", "input", "cached", "output", "reasoning", "cost", "most", "unpriced")
_ADD = (
    f"INSERT INTO usage (day, principal, model, currency, {', '.join(_SUMS)}) VALUES ({', '.join('?' * 12)}) "
    f"ON CONFLICT (day, principal, model, currency) DO UPDATE SET "
    f"{', '.join(f'{name} = {name} + excluded.{name}' for name in _SUMS)}"
)

Rows = dict[UsageKey, UsageSums]
Counted = dict[str, TurnTokens]


class UsageError(Exception):
    """The store cannot be relied upon; the message gives the reason."""


class Change(NamedTuple):
    """Rows to add, names of principals, the tallies of workers that they are complete up to; workers that are gone."""

    rows: Rows
    names: Mapping[str, str]
    workers: Mapping[str, Counted]
    gone: Iterable[str]


def path_in(home: Path) -> Path:
    """Path of the store of a home."""
    return home / "codex-pool" / NAME


class UsageStore:
    """An open store, checked. Opening, and every method, raises UsageError when the store cannot be relied upon;
    `add` raises sqlite3.OperationalError too, when the database is busy or the disk full, and has added nothing then.

    `keys`: the directory of the keys, None for a pool without any, whose store may begin at zero.
    """

    def __init__(self, home: Path, keys: Path | None) -> None:
        self.path = path_in(home)
        mark = Mark(keys, home, FOLDER) if keys is not None else None
        try:
            marked = mark.read() if mark is not None else None
            if not self.path.exists():
                if mark is not None and marked is not None:
                    raise UsageError(f"{self.path} is missing, and {mark.path} names it")
                _create(self.path)
            self._inode = self._identify()
            self._connection = self._connect()
        except sqlite3.Error as error:
            raise UsageError(f"{self.path} cannot be read: {error}") from None
        except OSError as error:
            raise UsageError(f"{self.path} cannot be made: {error}") from None
        except OwnershipError as error:
            raise UsageError(str(error)) from None
        try:
            store = self._check()
            if mark is not None and marked is not None and marked.store != store:
                raise UsageError(f"{self.path} is not the store that {mark.path} names")
            if mark is not None and marked is None:
                mark.write(store, 0)
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise UsageError(f"{self.path} cannot be read: {error}") from None
            raise

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def verify(self) -> None:
        """Check that the file is still the one that was opened."""
        try:
            if self._identify() != self._inode:
                raise UsageError(f"{self.path} was exchanged for another file")
        except FileNotFoundError:
            raise UsageError(f"{self.path} was deleted") from None
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error}") from None

    def add(self, change: Change) -> None:
        """Add these rows in one transaction; they are on the disk when this returns."""
        rows = [(*key, *_values(sums)) for key, sums in change.rows.items()]
        now = int(time.time())
        workers = [(name, msgspec.msgpack.encode(counted), now) for name, counted in change.workers.items()]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(_ADD, rows)
                self._connection.executemany("INSERT OR REPLACE INTO names VALUES (?, ?)", [*change.names.items()])
                self._connection.executemany("INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", workers)
                self._connection.executemany("DELETE FROM workers WHERE worker = ?", [(each,) for each in change.gone])
                self._connection.execute("DELETE FROM workers WHERE at < ?", (now - KEEP_WORKERS_S,))
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError:
            raise
        except sqlite3.Error as error:
            raise UsageError(f"{self.path} cannot be written: {error}") from None

    def rows(self, since: int = 0, principal: str | None = None) -> Rows:
        """The rows from a day on, of one principal or of all."""
        query = f"SELECT day, principal, model, currency, {', '.join(_SUMS)} FROM usage WHERE day >= ?"
        values: list[object] = [since]
        if principal is not None:
            query, values = f"{query} AND principal = ?", [since, principal]
        return {UsageKey(*row[:4]): _sums(row[4:]) for row in self._read(query, values)}

    def totals(self) -> Rows:
        """Sums over all days, each under day 0."""
        sums = ", ".join(f"SUM({name})" for name in _SUMS)
        query = f"SELECT 0, principal, model, currency, {sums} FROM usage GROUP BY principal, model, currency"
        return {UsageKey(*row[:4]): _sums(row[4:]) for row in self._read(query, [])}

    def names(self) -> dict[str, str]:
        """The names of principals by their ids, as they were called last."""
        return {str(principal): str(name) for principal, name in self._read("SELECT * FROM names", [])}

    def workers(self) -> dict[str, Counted]:
        """The tallies of workers that the rows are complete up to."""
        found = self._read("SELECT worker, counted FROM workers", [])
        try:
            return {str(name): msgspec.msgpack.decode(body, type=Counted) for name, body in found}
        except msgspec.MsgspecError as error:
            raise UsageError(f"{self.path} is damaged: {error}") from None

    def _read(self, query: str, values: list[object]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise UsageError(f"{self.path} cannot be read: {error}") from None

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a file that was deleted meanwhile is not made again, empty.
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)

    def _identify(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def _check(self) -> str:
        self._connection.execute("PRAGMA synchronous = FULL")
        (answer,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise UsageError(f"{self.path} is damaged: {answer}")
        rows = self._connection.execute("SELECT version, store FROM meta").fetchall()
        if len(rows) != 1 or rows[0][0] != VERSION:
            raise UsageError(f"{self.path} is of version {rows[0][0] if rows else None}; expected {VERSION}")
        return str(rows[0][1])


def reset(home: Path, keys: Path) -> Path | None:
    """Accept the loss of a store: the next pool on the home begins at zero, or goes on with the store that is there,
    if that can be read. Return where one that cannot was put aside. Raises OSError."""
    mark = Mark(keys, home, FOLDER)
    mark.path.unlink(missing_ok=True)
    path = path_in(home)
    if not path.exists():
        return None
    try:
        UsageStore(home, None).close()
    except UsageError:
        aside = path.with_name(f"{NAME}.{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
        path.rename(aside)
        for log in ("-wal", "-shm"):
            path.with_name(NAME + log).unlink(missing_ok=True)
        return aside
    return None


def _values(sums: UsageSums) -> tuple[object, ...]:
    tokens = sums.tokens
    return (
        sums.turns,
        tokens.input,
        tokens.cached,
        tokens.output,
        tokens.reasoning,
        sums.cost,
        sums.most,
        sums.unpriced,
    )


def _sums(values: tuple[Any, ...]) -> UsageSums:
    turns, given, cached, output, reasoning, cost, most, unpriced = values
    return UsageSums(turns, Tokens(given, cached, output, reasoning), cost, most, unpriced)


def _create(path: Path) -> None:
    """A store without rows, whole or not at all; another pool's that comes first is left alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{NAME}.{secrets.token_hex(4)}.new")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_TABLES)
            connection.execute("INSERT INTO meta VALUES (?, ?)", (VERSION, secrets.token_hex(16)))
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)
