"""A child of the supervisor: a Python process of the pool, its death pipe and its reports."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from typing import Any

import msgspec

from codex_app_server import _process
from codex_app_server.lines import LineSplitter, LongLine


class Child:
    """A process that got its start arguments as one JSON line on stdin, which stays open as its death pipe.

    It reports JSON lines on stdout; the end of stdout is its sentinel: it comes within milliseconds of its death,
    however it died.
    """

    def __init__(self, argv: Sequence[str], arguments: msgspec.Struct, inherit: tuple[int, ...] = ()) -> None:
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=inherit
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._lines = LineSplitter()
        self.pid = self._process.pid
        self.last_report: dict[str, Any] = {}
        self._write(msgspec.json.encode(arguments))

    def fileno(self) -> int:
        return self._stdout.fileno()

    def tell(self, record: dict[str, Any]) -> None:
        """One JSON line on its stdin; a dead child is told nothing."""
        self._write(msgspec.json.encode(record))

    def reports(self) -> tuple[list[dict[str, Any]], bool]:
        """What it has reported since the last call, and whether that was all: it is dead."""
        records: list[dict[str, Any]] = []
        while True:
            try:
                chunk = os.read(self._stdout.fileno(), 65536)
            except BlockingIOError:
                return records, False
            for line in self._lines.feed(chunk):
                if isinstance(line, LongLine):
                    continue
                with contextlib.suppress(msgspec.DecodeError):
                    record = msgspec.json.decode(line)
                    self.last_report = record
                    records.append(record)
            if not chunk:
                return records, True

    def close_stdin(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(OSError):
            self._stdin.close()

    def kill(self) -> None:
        """SIGKILL: works on a stopped process too."""
        self._process.kill()

    def reap(self, timeout_s: float) -> str | None:
        """Wait for its end and close its pipes; how it ended, or None if it has not."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self.close_stdin()
        self._stdout.close()
        return _process.describe_exit(code)

    def _write(self, line: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stdin.write(line + b"\n")
