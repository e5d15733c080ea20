"""TracerConnection: lines to the tracer over a Unix socket, which are left out rather than waited for."""

from __future__ import annotations

import socket

from ..protocol import turn_spans
from ..protocol.turn_spans import Lost

# Some thousand lines, for a tracer that is being replaced, or is behind.
MAX_UNSENT_BYTES = 1024 * 1024


class TracerConnection:
    """See the module's docstring. No call blocks or raises. `path`: the socket of the tracer, "" for none."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._unsent = bytearray()
        self._lost = 0
        # How many lines the count says that is among what is unsent.
        self._reported = 0

    def send(self, line: bytes) -> None:
        """Send a line now, or when the tracer reads again."""
        if not self._path:
            return
        if len(self._unsent) + len(line) > MAX_UNSENT_BYTES:
            self._lost += 1
            return
        self._unsent += line
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the tracer takes it. Call it each second."""
        if not (self._unsent or self._lost):
            return
        try:
            if self._socket is None:
                self._socket = _connected(self._path)
            while self._unsent or self._lost:
                if not self._unsent:
                    self._unsent += turn_spans.encode(Lost(self._lost))
                    self._reported, self._lost = self._lost, 0
                del self._unsent[: self._socket.send(self._unsent)]
                if not self._unsent:
                    self._reported = 0
        except BlockingIOError:
            return
        except OSError:
            # The tracer is being replaced. What it had a part of is of no use to the next one.
            lines = self._unsent.count(b"\n")
            self._lost += lines - 1 + self._reported if self._reported else lines
            self._unsent.clear()
            self._reported = 0
            self.close()

    def close(self) -> None:
        """Close the connection: turns that have not ended are lost."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connected(path: str) -> socket.socket:
    """A connection that does not block. Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.connect(path)
    except BaseException:
        made.close()
        raise
    return made
