"""results.jsonl, made of the tables: one line a finished sample. What stands in it can be made again at any time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server._runtime.files import replacing

from . import layout
from .rows import SampleRow, exported


def line_of(row: SampleRow) -> bytes:
    value = exported(row)
    if not row.scores:
        # No scorer has had a word in it: all numbers are finite, and a faster encoder writes them as well.
        with contextlib.suppress(UnicodeEncodeError):
            return msgspec.json.encode(value) + b"\n"
    return encode(value)


def encode(value: dict[str, Any]) -> bytes:
    # What a lone surrogate becomes is an escape again, so the line stays valid JSON.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


class Results:
    """The file while a run goes on: finished samples are added to its end."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / layout.RESULTS
        self._file: int | None = None

    def rewrite(self, rows: Iterable[SampleRow]) -> None:
        """Write the file beside the old one, then rename it over that: a reader has either file whole."""
        self.close()
        with replacing(self._path) as file:
            for row in rows:
                file.write(line_of(row))

    def append(self, rows: Iterable[SampleRow]) -> None:
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        data = memoryview(b"".join(map(line_of, rows)))
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None
