"""A CODEX_HOME for a canary: the pool's configuration and log-in, copies of its databases, and of one stored thread.

Nothing that the canary's app-server does to threads and databases reaches those of the pool. What it only reads is
linked, so that a log-in is not copied.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# What an app-server writes by itself, or is about threads. The rest is linked.
_OWN = re.compile(
    r"sessions|archived_sessions|codex-pool|skills|logs?|tmp|\.tmp|history\.jsonl|shell_snapshots|models_cache\.json|"
    r"version\.json|installation_id|app-server-control|.*\.sqlite.*|.*\.lock"
)
# A longer one takes long to be read. Of the newest threads so many are looked at for one that can be copied.
MAX_THREAD_BYTES = 32 * 1024 * 1024
MAX_LOOKED_AT = 20


class CopiedThread(NamedTuple):
    """A copy of a stored thread: its id, and the number of turns of the user that it has at least (0 or 1)."""

    id: str
    turns: int


def make_home(home: Path, databases: Path, target: Path) -> CopiedThread | None:
    """Make a home at `target`; return the thread that it has, None if none can be copied. Raises OSError."""
    from ..sqlite_homes import copy_databases

    target.mkdir(mode=0o700, parents=True)
    for entry in os.scandir(home):
        if not _OWN.fullmatch(entry.name):
            (target / entry.name).symlink_to(home.resolve() / entry.name)
    sqlite_home = target / "sqlite"
    sqlite_home.mkdir()
    # None if there is none yet.
    copy_databases(databases, sqlite_home)
    for number, path in enumerate(_newest(home / "sessions")):
        if number >= MAX_LOOKED_AT:
            break
        copied = _copy_thread(path, home, target)
        if copied is not None:
            return copied
    return None


def _newest(directory: Path) -> Iterator[Path]:
    """Yield the files of stored threads (YEAR/MONTH/DAY/rollout-TIME-ID.jsonl), the newest first."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name, reverse=True)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _newest(Path(entry.path))
        elif entry.name.startswith("rollout-") and entry.name.endswith(".jsonl"):
            yield Path(entry.path)


def _copy_thread(path: Path, home: Path, target: Path) -> CopiedThread | None:
    """Copy a thread under an id of its own; None for a file that is no thread of a user, or too long."""
    try:
        if path.stat().st_size > MAX_THREAD_BYTES:
            return None
        # The last line of a thread that is in use may be written right now.
        content = path.read_bytes().rpartition(b"\n")[0] + b"\n"
        meta = json.loads(content.partition(b"\n")[0])["payload"]
        old = meta["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(old, str) or old not in path.name or _is_sub_agent(meta):
        return None
    new = str(uuid.UUID(bytes=uuid.UUID(old).bytes[:8] + os.urandom(8)))
    copy = target / path.relative_to(home).with_name(path.name.replace(old, new))
    copy.parent.mkdir(parents=True)
    copy.write_bytes(content.replace(old.encode(), new.encode()))
    return CopiedThread(new, int(b'"user_message"' in content))


def _is_sub_agent(meta: dict[str, Any]) -> bool:
    return isinstance(meta.get("source"), dict)
