"""Event logs on disk: each attempt's notifications, one a line, as one gzip member in a file with many.

`events/NNNNNN.gz` is appended to; which bytes are whose stands in the database. Each file can be read with `zcat`.
"""

from __future__ import annotations

import os
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from codex_app_server._protocol import framing

from ..redaction.redactor import NOTHING, Redactor

SEGMENT_BYTES = 64 * 2**20
_GZIP = 16 + zlib.MAX_WBITS
# Of a log that fits in here, a window as large: what is made ready for a long one costs more than compressing it.
_SMALL_BYTES = 4 * 2**10
_SMALL_WINDOW, _SMALL_MEMORY = 16 + 12, 4
# A few lines are compressed in one go at the end; what is longer is as it comes, so that no attempt grows in memory.
_BUFFER_BYTES = 64 * 2**10
# More than that is compressed on a thread: one line may be that long.
_MUCH_BYTES = 2**20
_CHUNK_BYTES = 256 * 2**10
_DELTA = re.compile(rb'"method":\s*"[^"]*(?:/delta|Delta)"')
_METHOD_WITHIN_BYTES = 200
# The longest line that a worker takes from an app-server, and what it writes around it.
MAX_LINE_BYTES = framing.MAX_LINE_BYTES + 2**20
LEFT_OUT = b'{"method":"error","params":{"error":{"message":"an event too long to be read was left out"}}}'


class EventLog:
    """The notifications of one attempt, in the order in which they came. Keeps them compressed, without secrets.

    Deltas are left out where there is something to be redacted: a secret may be divided among several, and the item
    that they are parts of comes as a whole.
    """

    def __init__(self, redactor: Redactor = NOTHING) -> None:
        self._redactor = redactor
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._compressor: zlib._Compress | None = None
        self._compressed: list[bytes] = []
        self._lock = threading.Lock()

    def add(self, line: bytes) -> bool:
        """`line` is JSON without a newline in it. True: much is to be compressed, for which there is `compress`."""
        if self._redactor and _DELTA.search(line, 0, _METHOD_WITHIN_BYTES):
            return False
        self._lines.append(line)
        self._waiting_bytes += len(line)
        if self._waiting_bytes > _MUCH_BYTES:
            return True
        if self._waiting_bytes > _BUFFER_BYTES:
            self.compress()
        return False

    def member(self) -> bytes | None:
        """Return all lines as one gzip member; None if there were none. Call it once, at the end."""
        if self._compressor is None and not self._lines:
            return None
        self.compress()
        assert self._compressor is not None
        return b"".join((*self._compressed, self._compressor.flush()))

    def snapshot(self) -> bytes | None:
        """Return the lines so far as one gzip member; None if there are none, or `compress` runs just now."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._compressor is None and not self._lines:
                return None
            self._compress()
            assert self._compressor is not None
            return b"".join((*self._compressed, self._compressor.copy().flush()))
        finally:
            self._lock.release()

    def compress(self) -> None:
        """Compress what waits. May be called from any thread, with nothing added meanwhile."""
        with self._lock:
            self._compress()

    def _compress(self) -> None:
        if self._compressor is None:
            small = self._waiting_bytes <= _SMALL_BYTES
            self._compressor = zlib.compressobj(
                1, zlib.DEFLATED, _SMALL_WINDOW if small else _GZIP, _SMALL_MEMORY if small else zlib.DEF_MEM_LEVEL
            )
        if self._lines:
            text = self._redactor.data(b"\n".join((*self._lines, b"")))
            self._compressed.append(self._compressor.compress(text))
        self._lines.clear()
        self._waiting_bytes = 0


class Segments:
    """The files of one run, appended to by one thread. `place` is where the last whole member ends."""

    def __init__(self, directory: Path, place: tuple[int, int], limit_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._number, self._end = place
        self._limit_bytes = limit_bytes
        self._file: int | None = None
        self._is_dirty = False
        # What a killed process or a full disk left behind the last member is of no use.
        last = path_of(directory, self._number)
        if last.exists() and last.stat().st_size > self._end:
            os.truncate(last, self._end)

    def append(self, member: bytes) -> tuple[int, int, int]:
        """(segment, offset, length) of the member, on the disk after `sync`."""
        if self._end and self._end + len(member) > self._limit_bytes:
            self.sync()
            self.close()
            self._number, self._end = self._number + 1, 0
        if self._file is None:
            self._directory.mkdir(exist_ok=True)
            self._file = os.open(path_of(self._directory, self._number), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._file, self._end)
        offset, data = self._end, memoryview(member)
        while data:
            data = data[os.pwrite(self._file, data, offset + len(member) - len(data)) :]
        self._end += len(member)
        self._is_dirty = True
        return self._number, offset, len(member)

    def sync(self) -> None:
        if self._is_dirty and self._file is not None:
            os.fsync(self._file)
        self._is_dirty = False

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def path_of(directory: Path, number: int) -> Path:
    return directory / f"{number:06}.gz"


def read_lines(path: Path, offset: int, length: int) -> Iterator[bytes]:
    """The lines of a member, without holding all of them; in place of one beyond MAX_LINE_BYTES stands LEFT_OUT."""
    parts: list[bytes] = []
    size = 0
    for data in _decompressed(path, offset, length):
        first, *others = data.split(b"\n")
        for line in others:
            parts.append(first)
            yield b"".join(parts) if size + len(first) <= MAX_LINE_BYTES else LEFT_OUT
            parts, size, first = [], 0, line
        size += len(first)
        if size > MAX_LINE_BYTES:
            parts.clear()
        else:
            parts.append(first)
    if size:
        yield b"".join(parts) if size <= MAX_LINE_BYTES else LEFT_OUT


def read_member(path: Path, offset: int, length: int) -> bytes:
    """A member as it is kept, compressed."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _decompressed(path: Path, offset: int, length: int) -> Iterator[bytes]:
    """A member in pieces of at most _CHUNK_BYTES, whatever it comes to. Raises OSError, zlib.error."""
    decompressor = zlib.decompressobj(_GZIP)
    with path.open("rb") as file:
        file.seek(offset)
        while length > 0:
            data = file.read(min(length, _CHUNK_BYTES))
            if not data:
                break
            length -= len(data)
            while data:
                yield decompressor.decompress(data, _CHUNK_BYTES)
                data = decompressor.unconsumed_tail
    yield decompressor.flush(_CHUNK_BYTES)
