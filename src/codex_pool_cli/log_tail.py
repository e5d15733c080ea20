"""LogTail: the end of a log file, and what is written to it afterwards, also after it was rotated or truncated."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

# Lines are looked for in so much of the end of a file.
MAX_BYTES = 8 << 20
# As `codex_pool.runtime.log` writes it: time, level, process and pid.
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ (?P<process>\S+)\[\d+\] ")


class LogTail:
    """Reads a log file. Raises OSError where it cannot be opened at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _open(path)
        self._rest = b""

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def last(self) -> list[str]:
        """The whole lines in the last MAX_BYTES of the file."""
        size_bytes = os.fstat(self._fd).st_size
        begin = max(0, size_bytes - MAX_BYTES)
        os.lseek(self._fd, begin, os.SEEK_SET)
        lines = self._read()
        # Of the first one only a part may be there.
        return lines[1:] if begin else lines

    def more(self) -> list[str]:
        """The lines that were written since the last call; of a file in its place, from its begin on."""
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
                os.lseek(self._fd, 0, os.SEEK_SET)
                self._rest = b""
        lines = self._read()
        try:
            is_same = os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except OSError:
            # Removed, and not made again yet.
            return lines
        if not is_same:
            with contextlib.suppress(OSError):
                other = _open(self._path)
                # What came between the read and the rotation.
                lines += self._read()
                os.close(self._fd)
                self._fd, self._rest = other, b""
                lines += self._read()
        return lines

    def _read(self) -> list[str]:
        read = bytearray(self._rest)
        while chunk := os.read(self._fd, 1 << 20):
            read += chunk
        *lines, rest = bytes(read).split(b"\n")
        self._rest = rest
        return [line.decode("utf-8", "replace") for line in lines]


class OfWorker:
    """Chooses the lines of one worker's process, with those of others that name the worker; all where it is None."""

    def __init__(self, worker: str | None, pid: int | None = None) -> None:
        self._is_all = worker is None
        self._name = re.compile(rf"(?<![\w.-]){re.escape(worker or '')}(?![\w-])")
        self._process = f"[{pid}] " if pid else None
        self._is_in = False

    def takes(self, line: str) -> bool:
        """True for a line to be shown. Lines of a traceback go with the record before them."""
        if self._is_all:
            return True
        record = _RECORD.match(line)
        if record is not None:
            is_own = self._process is not None and record[0].endswith(self._process)
            self._is_in = is_own or self._name.search(line) is not None
        return self._is_in


def _open(path: Path) -> int:
    # A FIFO would block.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
