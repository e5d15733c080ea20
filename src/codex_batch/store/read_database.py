"""ReadDatabase: queries of a run's database, from any thread, also while another program writes to it."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codex_app_server._runtime import fork

from . import locked
from .layout import RunDirectoryError


class ReadDatabase:
    """See the module's docstring. `path` is the file that `connection` has open, read-only."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        # Threads would get each other's cached statements.
        self._lock = threading.Lock()
        self._made_in = os.getpid()
        connection.row_factory = sqlite3.Row

    def close(self) -> None:
        if fork.is_inherited(self._made_in):
            # To SQLite a forked process is not the one that opened it.
            fork.keep(self._connection)
            return
        self._connection.close()

    def fetch(self, query: str, values: Sequence[Any]) -> list[Any]:
        """Return all rows of a query. Raises RunDirectoryError if the database stays locked."""
        fork.check_process(self._made_in, "run")
        try:
            return locked.retry_while_locked(self._path, lambda: self._fetch_now(query, values))
        except sqlite3.OperationalError as error:
            if locked.is_locked(error):
                raise RunDirectoryError(f"{locked.problem(self._path)}, and do the same again") from None
            raise

    def _fetch_now(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()
