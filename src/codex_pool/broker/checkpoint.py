"""CheckpointFile: a record of every thread for the next broker, in a file beside the socket.

Workers and clients report what they know to the next broker; but a worker may die with the broker, and no other process
knows the sandbox of its threads. The file is read only by a broker of the same supervisor; its existence means that
there was a broker before.

JSON lines, appended to as threads change, so that a change costs one short write. First `[pid, start time]` of the
supervisor, then `[thread id, record]`; the last line of a thread counts, a record of null is a thread forgotten.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from ..protocol import endpoints
from ..protocol.wire import ThreadRecord
from ..runtime import processes

# The file is rewritten when it has this many lines more than twice the threads.
SPARE_LINES = 1000

Changes = Mapping[str, ThreadRecord | None]


class _Line(msgspec.Struct, array_like=True):
    thread_id: str
    record: ThreadRecord | None


class CheckpointFile:
    """See the module's docstring. `endpoint` is that of the clients."""

    def __init__(self, endpoint: str) -> None:
        self.path = Path(f"{endpoints.ipc_path(endpoint)}.threads")
        self._supervisor = list(processes.identify(os.getppid()) or (os.getppid(), 0))
        self._file: int | None = None
        self._lines = 0

    def read(self) -> list[ThreadRecord] | None:
        """The threads that the broker before this one knew; None if there was none. A cut line is passed over."""
        try:
            first, *lines = self.path.read_bytes().split(b"\n")
            if msgspec.json.decode(first) != self._supervisor:
                return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        decoder = msgspec.json.Decoder(_Line)
        found: dict[str, ThreadRecord] = {}
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                entry = decoder.decode(line)
                found.pop(entry.thread_id, None)
                if entry.record is not None:
                    found[entry.thread_id] = entry.record
        return list(found.values())

    def write(self, records: Iterable[ThreadRecord]) -> None:
        """Replace the file by these threads, atomically. It need not reach the disk: only processes die."""
        self._close()
        lines = [msgspec.json.encode(self._supervisor)]
        lines += [msgspec.json.encode(_Line(record.thread_id, record)) for record in records]
        partial = self.path.with_name(self.path.name + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        file = os.open(partial, flags, 0o600)
        try:
            _write(file, b"\n".join(lines) + b"\n")
            os.replace(partial, self.path)
        except OSError:
            os.close(file)
            # An incomplete file occupies space that others may need.
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        self._file, self._lines = file, len(lines)

    def keep(self, changes: Changes, threads: int) -> bool:
        """Append these; `threads` is how many there are in all. False when it is time to `write` all of them.

        Raises OSError; then, too, all are to be written.
        """
        if self._file is None or self._lines + len(changes) > 2 * threads + SPARE_LINES:
            return False
        lines = [msgspec.json.encode(_Line(thread_id, record)) + b"\n" for thread_id, record in changes.items()]
        try:
            _write(self._file, b"".join(lines))
        except OSError:
            self._close()
            raise
        self._lines += len(lines)
        return True

    @property
    def is_kept(self) -> bool:
        """True while the file that changes are appended to is at its path."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file), self.path.lstat())
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the file, unless it is another broker's by now."""
        if self.is_kept:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
