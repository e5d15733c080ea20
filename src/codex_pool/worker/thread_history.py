"""Histories of threads that another app-server has written: copied into the database of this worker's app-server.

An app-server (codex 0.163, measured) answers thread/turns/list and its like from `thread_history_N.sqlite` in its
SQLite home, and only thread/resume brings that up to date with the thread's file. Each slot has a SQLite home of its
own, and so has codex outside of the pool: CODEX_HOME. So of a thread that was last written elsewhere it would answer
nothing, or the turns up to when this slot had it. Resuming a thread to read it would load it, with its MCP servers.

`thread_history_projection_state` has how far into its file each thread is known. The rows of the database where that is
most are copied, in one transaction; a resume later goes on from there, as in a SQLite home that was copied as a whole
(`supervisor/sqlite_homes`). Databases with other tables, of another version of codex, are left alone.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

# How long the worker's loop may be held up by one thread: for a lock, and for all.
LOCK_S = 0.5
LIMIT_S = 2.0
_DATABASES = "thread_history_*.sqlite"
_STATE = "thread_history_projection_state"
_POSITION = f"SELECT next_rollout_byte_offset FROM {_STATE} WHERE thread_id = ?"
_MIGRATIONS = "_sqlx_migrations"
_STEPS = 1000


def fill(home: Path, thread_id: str) -> int:
    """Copy the history of a thread into the SQLite home `home` of an app-server that has not loaded it, if another one
    beside it, or the CODEX_HOME above it, has more; return how many bytes of the thread's file were added.

    Raises sqlite3.Error when a database is busy or damaged, or it takes longer than LIMIT_S; nothing is changed then.
    """
    added = 0
    for name, databases in _by_name(home).items():
        database = home / name
        # An app-server makes it when it needs it first.
        here = _position(database, thread_id) if database.exists() else 0
        found = [(position, other) for other in databases if (position := _position(other, thread_id))]
        position, source = max(found, default=(0, database))
        if here is not None and position > here:
            if not database.exists():
                _make(source, database)
            added += _copy(source, database, thread_id)
    return added


def try_fill(home: str, thread_id: str) -> str:
    """Fill a history as `fill` does; return what went wrong, "" if nothing did."""
    try:
        fill(Path(home), thread_id)
    except (sqlite3.Error, OSError) as error:
        return f"it could not be copied into {home}: {error}"
    return ""


def _by_name(home: Path) -> dict[str, list[Path]]:
    """The databases in the SQLite homes beside this one, and in the CODEX_HOME of all, by their names."""
    homes = [path for path in sorted(home.parent.iterdir()) if path != home and path.name.isdigit()]
    found: dict[str, list[Path]] = {}
    for other in (*homes, home.parent.parent.parent):
        for database in other.glob(_DATABASES):
            found.setdefault(database.name, []).append(database)
    return found


def _position(database: Path, thread_id: str) -> int | None:
    """Count the bytes of the thread's file that a database knows; None if it cannot be read."""
    if not database.is_file():
        return None
    try:
        with closing(_open(database, "ro")) as connection:
            row = connection.execute(_POSITION, (thread_id,)).fetchone()
    except sqlite3.Error:
        return None
    return int(row[0]) if row is not None else 0


def _copy(source: Path, target: Path, thread_id: str) -> int:
    until = time.monotonic() + LIMIT_S
    with closing(_open(target, "rw")) as connection:
        connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
        connection.execute("ATTACH ? AS other", (_uri(source, "ro"),))
        tables = _tables(connection, "main")
        if tables != _tables(connection, "other"):
            return 0
        names = [name for name, sql in tables.items() if "thread_id" in sql]
        connection.execute("BEGIN IMMEDIATE")
        try:
            before = connection.execute(_POSITION, (thread_id,)).fetchone()
            # A trigger on the one of positions deletes rows of others.
            for name in sorted(names, key=lambda name: name != _STATE):
                connection.execute(f"DELETE FROM main.{name} WHERE thread_id = ?", (thread_id,))
            for name in names:
                rows = f"SELECT * FROM other.{name} WHERE thread_id = ?"
                connection.execute(f"INSERT INTO main.{name} {rows}", (thread_id,))
            after = connection.execute(_POSITION, (thread_id,)).fetchone()
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    return int(after[0]) - (int(before[0]) if before is not None else 0) if after is not None else 0


def _make(source: Path, target: Path) -> None:
    """Make an empty database like `source`, unless the app-server makes it at the same time."""
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        with closing(_open(source, "ro")) as like, closing(_open(partial, "rwc")) as made:
            for (sql,) in like.execute(
                "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
            ):
                made.execute(sql)
            for row in like.execute(f"SELECT * FROM {_MIGRATIONS}"):
                made.execute(f"INSERT INTO {_MIGRATIONS} VALUES ({', '.join('?' * len(row))})", row)
        with contextlib.suppress(FileExistsError):
            os.link(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _tables(connection: sqlite3.Connection, schema: str) -> dict[str, str]:
    """The tables of a database with the statements that made them; migrations are equal only if these are."""
    found = connection.execute(f"SELECT name, sql FROM {schema}.sqlite_master WHERE type = 'table' AND sql IS NOT NULL")
    return {name: sql for name, sql in found if name.replace("_", "").isalnum()}


def _uri(database: Path, mode: str) -> str:
    return f"{database.absolute().as_uri()}?mode={mode}"


def _open(database: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(_uri(database, mode), uri=True, timeout=LOCK_S, isolation_level=None)
