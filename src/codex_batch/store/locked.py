"""A database that another program has locked, such as a database browser or a backup: it is waited for."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger("codex_batch")

# SQLite itself waits for so long, each time.
BUSY_S = 1.0
SAY_AFTER_S = 2.0
# Who only reads, or changes a run that is not under way, gives up then.
LIMIT_S = 600.0
_PAUSE_S = 0.05
_BUSY, _PROTOCOL = 5, 15


def is_locked(error: BaseException) -> bool:
    """Return True if another program holds a lock, so that the same may be done later."""
    if not isinstance(error, sqlite3.OperationalError):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in (_BUSY, _PROTOCOL)
    # Python 3.10 has no codes.
    return str(error) in ("database is locked", "locking protocol")


def problem(path: Path) -> str:
    """Return the message of a program that waits for the lock, or has waited."""
    return f"{path} is locked by another program; close what has it open, such as a database browser or a backup"


def retry_while_locked(path: Path, work: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """The result of `work`, done again while the database `path` is locked, for `limit_s` seconds.

    Raises what `work` raises, then also sqlite3.OperationalError.
    """
    since: float | None = None
    is_said = False
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            now = time.monotonic()
            since = now if since is None else since
            if not is_locked(error) or now - since >= limit_s:
                raise
        if not is_said and time.monotonic() - since >= SAY_AFTER_S:
            is_said = True
            log.warning("%s; waiting for it", problem(path))
        time.sleep(_PAUSE_S)
