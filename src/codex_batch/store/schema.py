"""The tables of run.sqlite. `PRAGMA user_version` is the number of MIGRATIONS applied to them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from codex_app_server._runtime.files import PARTIAL, resolved

from . import locked
from .layout import RunDirectoryError

# Each is run once, in order, in one transaction with its number. What has been released is never altered. An older
# database is read with what it lacks left empty, so columns that are added may be null or have a default.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE launches (
        number INTEGER PRIMARY KEY, pid INTEGER NOT NULL, started_at REAL NOT NULL, ended_at REAL,
        state TEXT NOT NULL, config TEXT NOT NULL, outcome TEXT
    );
    CREATE TABLE samples (
        n INTEGER PRIMARY KEY, id TEXT NOT NULL, epoch INTEGER NOT NULL, digest TEXT NOT NULL, spec TEXT NOT NULL,
        tags TEXT NOT NULL, position INTEGER NOT NULL, selected INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'scoring', 'done')),
        UNIQUE (id, epoch)
    );
    CREATE INDEX samples_in_order ON samples (position, n);
    CREATE INDEX samples_to_do ON samples (position, n) WHERE selected AND state <> 'done';
    CREATE TABLE records (
        n INTEGER PRIMARY KEY REFERENCES samples, status TEXT NOT NULL, "limit" TEXT, final_response TEXT, error TEXT,
        usage TEXT, cost REAL, thread_id TEXT, turn_id TEXT, worker TEXT, attempts INTEGER NOT NULL, turns INTEGER,
        tool_calls INTEGER, queued_ms INTEGER, duration_ms INTEGER, started_at REAL, ended_at REAL, responses TEXT,
        artifacts TEXT NOT NULL DEFAULT '[]'
    );
    CREATE TABLE attempts (
        n INTEGER NOT NULL REFERENCES samples, attempt INTEGER NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL,
        thread_id TEXT, status TEXT, error TEXT, usage TEXT, cost REAL, worker TEXT, turn_id TEXT, queued_ms INTEGER,
        duration_ms INTEGER, started_at REAL NOT NULL, ended_at REAL, safe_to_retry INTEGER, note TEXT,
        segment INTEGER, offset INTEGER, length INTEGER,
        PRIMARY KEY (n, attempt)
    ) WITHOUT ROWID;
    CREATE INDEX attempts_open ON attempts (n) WHERE status IS NULL;
    CREATE TABLE scores (
        n INTEGER NOT NULL REFERENCES samples, scorer TEXT NOT NULL, place INTEGER NOT NULL, value REAL,
        passed INTEGER, answer TEXT, explanation TEXT, metadata TEXT, error TEXT, duration_ms INTEGER,
        scored_at REAL NOT NULL,
        PRIMARY KEY (n, scorer)
    ) WITHOUT ROWID;
    """,
    "ALTER TABLE records ADD COLUMN agents_md TEXT",
    "ALTER TABLE scores ADD COLUMN basis TEXT",
    # Who answered, and which configuration that was of; null in what was recorded before.
    """
    ALTER TABLE samples ADD COLUMN fingerprint TEXT;
    ALTER TABLE attempts ADD COLUMN fingerprint TEXT;
    ALTER TABLE attempts ADD COLUMN launch INTEGER;
    ALTER TABLE records ADD COLUMN fingerprint TEXT;
    ALTER TABLE records ADD COLUMN launch INTEGER;
    ALTER TABLE records ADD COLUMN model TEXT;
    ALTER TABLE records ADD COLUMN effort TEXT;
    ALTER TABLE records ADD COLUMN provider TEXT;
    ALTER TABLE records ADD COLUMN codex_version TEXT;
    ALTER TABLE records ADD COLUMN rerouted_from TEXT;
    """,
    # Variants: samples are unique by id, epoch and variant. What is unique can be changed in a new table only.
    """
    CREATE TABLE samples_with_variants (
        n INTEGER PRIMARY KEY, id TEXT NOT NULL, epoch INTEGER NOT NULL, digest TEXT NOT NULL, spec TEXT NOT NULL,
        tags TEXT NOT NULL, position INTEGER NOT NULL, selected INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'scoring', 'done')),
        fingerprint TEXT, variant TEXT NOT NULL DEFAULT '',
        UNIQUE (id, epoch, variant)
    );
    INSERT INTO samples_with_variants (n, id, epoch, digest, spec, tags, position, selected, state, fingerprint)
        SELECT n, id, epoch, digest, spec, tags, position, selected, state, fingerprint FROM samples;
    DROP TABLE samples;
    ALTER TABLE samples_with_variants RENAME TO samples;
    CREATE INDEX samples_in_order ON samples (position, n);
    CREATE INDEX samples_to_do ON samples (position, n) WHERE selected AND state <> 'done';
    """,
    # Session files of codex, one a thread of an attempt; the host of an attempt; the container of a sample.
    """
    CREATE TABLE rollouts (
        n INTEGER NOT NULL REFERENCES samples, attempt INTEGER NOT NULL, place INTEGER NOT NULL,
        thread_id TEXT NOT NULL, relation TEXT NOT NULL, parent_id TEXT, bytes INTEGER NOT NULL DEFAULT 0,
        cut_bytes INTEGER NOT NULL DEFAULT 0, note TEXT, segment INTEGER, offset INTEGER, length INTEGER,
        PRIMARY KEY (n, attempt, place)
    ) WITHOUT ROWID;
    ALTER TABLE attempts ADD COLUMN host TEXT;
    ALTER TABLE records ADD COLUMN container TEXT;
    """,
)


def open_for_writing(path: Path, migrations: Sequence[str] = MIGRATIONS) -> sqlite3.Connection:
    """The database, made or brought up to date. Raises RunDirectoryError for one that cannot be."""
    if not path.exists():
        try:
            _make(path, migrations)
        except sqlite3.DatabaseError as error:
            raise RunDirectoryError(
                f"{path} cannot be made: {error}; make room on its disk, raise the limit of the size of files "
                "(ulimit -f), or use another directory"
            ) from None
    try:
        return locked.retry_while_locked(path, lambda: _open_for_writing(path, migrations))
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from None


def _open_for_writing(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=locked.BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        # Before anything is changed: a stranger's file must stay as it is.
        version = _version(connection, path, migrations)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 2000")
        _migrate(connection, version, migrations)
    except BaseException:
        connection.close()
        raise
    return connection


def _make(path: Path, migrations: Sequence[str]) -> None:
    """Create a database as a whole or not at all: another process may open it already."""
    made = path.with_name(path.name + PARTIAL)
    made.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as connection:
        _migrate(connection, 0, migrations)
    os.replace(made, path)


def _migrate(connection: sqlite3.Connection, version: int, migrations: Sequence[str]) -> None:
    for number, statements in enumerate(migrations[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {statements}; PRAGMA user_version = {number}; COMMIT;")


def open_for_reading(
    path: Path, migrations: Sequence[str] = MIGRATIONS, *, limit_s: float = locked.LIMIT_S, at_rest: bool = False
) -> sqlite3.Connection:
    """The database, also while a run writes. One that is locked is waited for, `limit_s` seconds at most.

    `at_rest`: nothing writes to it until it is closed, so no file is made beside it, unless it has a log to be read.
    Raises RunDirectoryError for one that cannot be read.
    """
    try:
        connection, version = locked.retry_while_locked(
            path, lambda: _open_for_reading(path, migrations, at_rest), limit_s
        )
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from None
    if version < len(migrations):
        try:
            _show_as_new(connection, migrations)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise _unreadable(path, error) from None
    return connection


def _open_for_reading(path: Path, migrations: Sequence[str], at_rest: bool) -> tuple[sqlite3.Connection, int]:
    """The connection, and the version of its schema."""
    wal = path.with_name(f"{path.name}-wal")
    if at_rest and not (wal.exists() and wal.stat().st_size):
        return _connected(path, migrations, "immutable=1")
    try:
        return _connected(path, migrations, "mode=ro")
    except sqlite3.OperationalError as error:
        if locked.is_locked(error):
            raise
    # In a read-only directory there is no place for the files of WAL, and no writer either.
    return _connected(path, migrations, "immutable=1")


def _connected(path: Path, migrations: Sequence[str], mode: str) -> tuple[sqlite3.Connection, int]:
    connection = sqlite3.connect(
        f"{resolved(path).as_uri()}?{mode}",
        uri=True,
        timeout=locked.BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        return connection, _version(connection, path, migrations)
    except BaseException:
        connection.close()
        raise


def _show_as_new(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Let an older database be read as one of now: what it lacks is empty. Nothing in the file is changed.

    Temporary views with the missing columns are in front of its tables. The next run brings it up to date.
    """
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as new:
        _migrate(new, 0, migrations)
        tables = new.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        for table, sql in tables:
            there = {row[1] for row in connection.execute(f"PRAGMA main.table_info({table})")}
            if not there:
                connection.execute(sql.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))
                continue
            columns = new.execute(f"PRAGMA table_info({table})").fetchall()
            missing = [f"{default or 'NULL'} AS {name}" for _, name, _, _, default, _ in columns if name not in there]
            if missing:
                connection.execute(
                    f"CREATE TEMP VIEW {table} AS SELECT t.*, {', '.join(missing)} FROM main.{table} AS t"
                )


def _version(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise RunDirectoryError(
            f"{path} is of schema version {version}; this codex-pool knows versions up to {len(migrations)}: "
            "use the newer codex-pool that made it, or another directory"
        )
    if version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise RunDirectoryError(f"{path} is a database of something else; name another directory")
    return version


def _unreadable(path: Path, error: Exception) -> RunDirectoryError:
    if locked.is_locked(error):
        return RunDirectoryError(f"{locked.problem(path)}, and do the same again")
    return RunDirectoryError(
        f"{path} cannot be used: {error}; restore it from a copy, or use another directory, or --fresh"
    )
