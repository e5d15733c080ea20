"""A raw trace of what goes over a transport, with secrets left out."""

from __future__ import annotations

import _thread
import contextlib
import errno
import logging
import os
import re
import time
from typing import IO, TYPE_CHECKING

from ._protocol.envelope import RequestId
from ._protocol.framing import LongLine
from ._runtime.fork import check_process
from .errors import TransportClosedError
from .transport import DEFAULT_TIMEOUT_S, Interest, LoopTransport, PromptTransport, Receiver, Transport, TurnLines

if TYPE_CHECKING:
    import asyncio

log: logging.Logger = logging.getLogger("codex_app_server")

_SECRET = re.compile(
    rb'("(?:apiKey|api_key|accessToken|access_token|refreshToken|refresh_token|idToken|id_token|authToken|token|'
    rb'secretAccessKey|sessionToken|password|authUrl|userCode)"\s*:\s*)"(?:[^"\\]|\\.)*"'
)


class TracingTransport:
    """Writes every line that another transport carries to a file, as `SECONDS > LINE` (sent) or `SECONDS < LINE`.

        config = AppServerConfig()
        Codex(config, transport=TracingTransport(StdioTransport(config), "trace.txt"))

    Values of members that are named like secrets are replaced by `"***"`; what prompts and answers say is not looked
    at, so the file is made readable by its owner only. Lines that cannot be written are left out, which is logged once:
    a full disk ends no turn. Raises OSError if the file cannot be made.
    """

    def __init__(self, inner: Transport, path: str | os.PathLike[str]) -> None:
        self._inner = inner
        self._path = path
        # Not to be waited for, should it be a pipe.
        extra = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | extra, 0o600)
        self._file: IO[bytes] = os.fdopen(descriptor, "ab", buffering=0)
        self._made_in = os.getpid()
        self._closing = False
        self._has_failed = False

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        try:
            self._inner.start(self)
        except BaseException:
            self._file.close()
            raise

    def send(self, line: bytes, *, interest: Interest = "full", timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        check_process(self._made_in, "client")
        self._write(b">", line)
        self._inner.send(line, interest=interest, timeout_s=timeout_s)

    @property
    def shared(self) -> bool:
        return self._inner.shared

    def move_to(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if isinstance(self._inner, LoopTransport):
            self._inner.move_to(loop)

    def cancel(self, request_id: RequestId) -> None:
        self._inner.cancel(request_id)

    def close(self) -> None:
        self._closing = True
        self._inner.close()
        self._file.close()

    def close_soon(self) -> None:
        self._closing = True
        if isinstance(self._inner, PromptTransport):
            self._inner.close_soon()
        else:
            with contextlib.suppress(RuntimeError):
                _thread.start_new_thread(self.close, ())

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        for entry in batch:
            if isinstance(entry, TurnLines):
                for line in entry.lines:
                    self._write(b"<", line)
            else:
                self._write(b"<", entry.head + b" ... " + entry.tail if isinstance(entry, LongLine) else entry)
        self._receiver.on_batch(batch)

    def on_closed(self, error: TransportClosedError) -> None:
        self._write(b"<", b"closed: " + str(error).encode("utf-8", "replace").replace(b"\n", b" "))
        if self._closing:
            self._file.close()
        self._receiver.on_closed(error)

    def _write(self, direction: bytes, line: bytes) -> None:
        text = b"%.6f %s %s\n" % (time.monotonic(), direction, _SECRET.sub(rb'\1"***"', line))
        try:
            written = self._file.write(text)
            if written != len(text):
                raise BlockingIOError(errno.EAGAIN, "nobody reads it")
        except (OSError, ValueError) as error:
            if self._file.closed or self._has_failed:
                return
            self._has_failed = True
            log.warning("lines are missing in the trace %s: %s", self._path, error)
