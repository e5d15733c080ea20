"""Secrets taken out of files of a run directory that other programs have written.

What the run writes itself is redacted before it is written. Logs of its pool, what scorers leave and what codex keeps
in the run's home are redacted where they lie: a log while others append to it, in place and without changing its
length; the home when its pool has ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from codex_app_server._runtime.files import read_file, replacing, write_atomic

from .redactor import Redactor, is_redacted

_CHUNK_BYTES = 1 << 20
_CONFIG, _LOGIN = "config.toml", "auth.json"
# Databases of app-servers in a pool's home, a directory for each slot: made again from what else is there.
_DATABASES = Path("codex-pool") / "sqlite"


class Log:
    """A log that others append to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] = (0, 0)

    def mask(self, redactor: Redactor) -> None:
        """Write asterisks over the secrets in what has been appended since the last time. Raises OSError."""
        if not redactor:
            return
        try:
            file = self._path.open("r+b", buffering=0)
        except FileNotFoundError:
            return
        with file:
            inode, offset = os.fstat(file.fileno()).st_ino, self._seen[1]
            if inode != self._seen[0] or os.fstat(file.fileno()).st_size < offset:
                offset = 0
            # A secret may have been cut by the end that there was.
            offset = max(0, offset - redactor.longest)
            while data := os.pread(file.fileno(), _CHUNK_BYTES, offset):
                for begin, end in redactor.places(data):
                    os.pwrite(file.fileno(), b"*" * (end - begin), offset + begin)
                if len(data) < _CHUNK_BYTES:
                    offset += len(data)
                    break
                offset += len(data) - redactor.longest
            self._seen = (inode, offset)


def redact_files(directory: Path, redactor: Redactor) -> None:
    """Redact all files below a directory; links are not followed. Raises OSError."""
    if redactor:
        for path in _files(directory):
            redact_file(path, redactor)


def redact_file(path: Path, redactor: Redactor) -> None:
    """Redact a file; one without secrets is left as it is. Raises OSError."""
    if not _has_any(path, redactor):
        return
    with path.open("rb") as source, replacing(path) as target:
        os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
        redactor.copy(source, target)


def redact_home(home: Path, redactor: Redactor) -> None:
    """Redact the home of a run whose pool has ended; `restore_home` undoes it for the next. Raises OSError."""
    if not redactor or not home.is_dir() or home.is_symlink():
        return
    databases = home / _DATABASES
    for slot in sorted(databases.iterdir()) if databases.is_dir() else ():
        if any(_has_any(path, redactor) for path in _files(slot)):
            shutil.rmtree(slot, ignore_errors=True)
    redact_files(home, redactor)


def restore_home(home: Path, user: Path) -> None:
    """Give the config.toml of a run's home the values back that were redacted, from that of the user's home.

    What is not there any more stays redacted. Raises OSError.
    """
    path = home / _CONFIG
    try:
        text = read_file(path).decode("utf-8", "replace")
        if not is_redacted(text):
            return
        config, given = tomli.loads(text), tomli.loads(read_file(user / _CONFIG).decode("utf-8-sig", "replace"))
    except (FileNotFoundError, tomli.TOMLDecodeError):
        return
    write_atomic(path, tomli_w.dumps(_restored(config, given)).encode(), mode=0o600)


def _restored(value: Any, given: Any) -> Any:
    if isinstance(value, dict):
        of = given if isinstance(given, dict) else {}
        return {key: _restored(below, of.get(key)) for key, below in value.items()}
    if isinstance(value, list):
        there = given if isinstance(given, list) and len(given) == len(value) else [None] * len(value)
        return [_restored(below, one) for below, one in zip(value, there, strict=True)]
    return given if isinstance(value, str) and is_redacted(value) and isinstance(given, str) else value


def _files(directory: Path) -> Iterator[Path]:
    for root, _, names in os.walk(directory):
        for name in names:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _has_any(path: Path, redactor: Redactor) -> bool:
    rest = b""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            data = rest + chunk
            if redactor.finds(data):
                return True
            rest = data[-redactor.longest :]
    return False
