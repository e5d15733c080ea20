"""The tracer process: reads what workers report of turns, and exports spans of it by OTLP over HTTP.

    python -m codex_pool.tracer       start arguments: one JSON line on stdin, which then stays open as death pipe;
                                      JSON lines of the supervisor on it (ping)
                                      stdout: JSON lines for the supervisor - pong, with counts of spans
                                      stderr: log

Nothing waits for it: what it does not read, workers leave out and count. It may be killed at any time; the supervisor
has the listening socket, and starts another one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any

import msgspec

from codex_app_server._protocol.framing import LineSplitter, LongLine
from codex_app_server._runtime import reads

from ..protocol import turn_spans
from ..protocol.turn_spans import Lost, TurnBegan, TurnEnded
from ..runtime import log, startup
from . import telemetry
from .arguments import TracerArguments
from .spans import TurnSpanBook

# Of the supervisor's second for it.
FLUSH_MS = 700

_log = logging.getLogger(__name__)


class _TracerLoop:
    """One loop over the supervisor's pipe, the listening socket and the connections of workers."""

    def __init__(self, listener: socket.socket, book: TurnSpanBook, counts: telemetry.Counts) -> None:
        self._listener = listener
        self._book = book
        self._counts = counts
        self._problem = ""
        self._commands = LineSplitter()
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, tuple[socket.socket, LineSplitter]] = {}
        self._number = 0

    def run(self) -> None:
        """Work until the supervisor is gone, and read what there is by then."""
        os.set_blocking(0, False)
        self._listener.setblocking(False)
        self._selector.register(0, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        is_over = False
        while not is_over:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    is_over = self._read_supervisor()
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
        for number in list(self._connections):
            while number in self._connections and self._read(number):
                pass

    def _read_supervisor(self) -> bool:
        """Answer pings; return True at the end of the pipe."""
        try:
            chunk = os.read(0, 4096)
        except BlockingIOError:
            return False
        for line in self._commands.feed(chunk):
            if not isinstance(line, LongLine) and b'"ping"' in line:
                self._report()
        return not chunk

    def _report(self) -> None:
        counts = self._counts.as_json()
        if counts["problem"] != self._problem:
            self._problem = counts["problem"]
            _log.warning(
                "spans are exported again"
                if not self._problem
                else f"spans cannot be exported, and are lost; turns are not affected: {self._problem}"
            )
        record = {"event": "pong", "lost_lines": log.lost(), "counts": counts}
        with contextlib.suppress(BrokenPipeError):
            os.write(1, msgspec.json.encode(record) + b"\n")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._number += 1
            self._connections[self._number] = connection, LineSplitter()
            self._selector.register(connection, selectors.EVENT_READ, self._number)

    def _read(self, number: int) -> bool:
        """Read what a worker has sent; return False if there is nothing for now."""
        connection, splitter = self._connections[number]
        try:
            chunk = connection.recv(reads.LITTLE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        for line in splitter.feed(chunk):
            self._take(number, line)
        if not chunk:
            self._selector.unregister(connection)
            connection.close()
            del self._connections[number]
            self._book.closed(number, time.monotonic())
        return True

    def _take(self, number: int, line: bytes | LongLine) -> None:
        try:
            decoded: Any = None if isinstance(line, LongLine) else turn_spans.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            decoded = None
        match decoded:
            case TurnBegan():
                self._book.began(number, decoded)
            case TurnEnded():
                self._book.ended(decoded)
            case Lost():
                self._counts.lose(decoded.lines)
            case _:
                self._counts.lose(1)


def main() -> None:
    """Entry of the tracer's process."""
    from .. import __version__

    log.begin("tracer", *sys.argv[1:2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    startup.survive_hang_up()
    arguments = startup.decode_arguments(startup.read_line(0), TracerArguments)
    counts = telemetry.Counts()
    try:
        tracer, provider = telemetry.begin(counts, __version__)
    except ValueError as error:
        sys.exit(f"the tracer cannot start: {error}; correct the OTEL_ variable that it is about")
    startup.collect_rarely()
    book = TurnSpanBook(tracer, time.time() - time.monotonic())
    _TracerLoop(socket.socket(fileno=arguments.listen_fd), book, counts).run()
    provider.force_flush(FLUSH_MS)
    # An export that is under way is not waited for.
    os._exit(0)
