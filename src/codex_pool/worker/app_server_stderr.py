"""AppServerStderr: what the app-server writes to its stderr: the last lines are kept, and known problems logged."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from typing import IO

import zmq

from codex_app_server._protocol.framing import LineSplitter, LongLine
from codex_app_server._runtime import reads

from ..protocol.sockets import READABLE
from .stderr_log import StderrLog

LINES = 40

_log = logging.getLogger(__name__)


class AppServerStderr:
    """See the module's docstring. `pipe` does not block; `lines` are the last ones, the oldest first."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._splitter = LineSplitter(64 * 1024)
        self._problems = StderrLog()
        self.lines: deque[str] = deque(maxlen=LINES)

    def fileno(self) -> int:
        return self._pipe.fileno()

    def read(self) -> bool:
        """Read what is there; return False at its end."""
        try:
            chunk = os.read(self._pipe.fileno(), reads.LITTLE_BYTES)
        except BlockingIOError:
            return True
        for line in self._splitter.feed(chunk):
            raw = line.head if isinstance(line, LongLine) else line
            text = raw.decode("utf-8", "replace")
            self.lines.append(text)
            for problem in self._problems.take(text, time.monotonic()):
                _log.warning("%s", problem)
        return bool(chunk)

    def drain(self) -> None:
        """Read the rest of an app-server that has ended."""
        with contextlib.suppress(OSError, ValueError):
            os.set_blocking(self._pipe.fileno(), False)
            while self.read() and _readable(self._pipe.fileno()):
                pass
        if rest := self._splitter.rest():
            self.lines.append(rest.decode("utf-8", "replace"))


def _readable(fd: int) -> bool:
    poller = zmq.Poller()
    poller.register(fd, READABLE)
    return bool(poller.poll(0))
