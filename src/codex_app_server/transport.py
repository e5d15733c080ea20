"""Transport: carries lines between a client and one app-server; StdioTransport does so to a child process.

A transport has one I/O thread. It hands everything to a `Receiver`, never runs user code, and ends with exactly one
call of `on_closed`, whatever the cause.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import threading
from collections import deque
from typing import Literal, NamedTuple, Protocol

from . import _process
from .config import AppServerConfig
from .errors import TransportClosedError
from .lines import MAX_LINE_BYTES, LineSplitter, LongLine

READ_BYTES = 256 * 1024
STDERR_LINES = 40

Interest = Literal["full", "items", "final"]


class TurnLines(NamedTuple):
    """Notifications known to belong to one turn, in order. `ended` when the last of them ends it."""

    thread_id: str
    turn_id: str
    lines: list[bytes]
    ended: bool


class Receiver(Protocol):
    """What a transport calls, always from its I/O thread."""

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        """What came in one read: lines not yet looked at, and runs of lines known to belong to a turn."""

    def on_closed(self, error: TransportClosedError) -> None:
        """Nothing will come any more."""


class Transport(Protocol):
    """How a client reaches an app-server, or something that looks like one."""

    def start(self, receiver: Receiver) -> None:
        """Connect. Raises AppServerError; nothing is left behind then."""

    def send(self, line: bytes, *, interest: Interest = "full") -> None:
        """Hand over one line without its newline; never blocks on the other side.

        `interest` says which notifications of the turn that this line starts are wanted.
        Raises TransportClosedError.
        """

    def close(self) -> None:
        """End the connection and wait until the I/O thread is done. May be called twice."""


class StdioTransport:
    """One `codex app-server` child process, over its stdin and stdout.

    What cannot be written at once waits in memory: a stopped app-server must not block its callers.
    """

    def __init__(self, config: AppServerConfig | None = None, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._config = config or AppServerConfig()
        self._splitter = LineSplitter(max_line_bytes)
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: _PollPump | _ThreadPump | None = None
        self._stderr = LineSplitter(64 * 1024)
        self._stderr_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._closing = False
        self._close_lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self, receiver: Receiver) -> None:
        """Start the process. Raises BinaryNotFoundError."""
        if self._process is not None:
            raise TransportClosedError("this transport was started before; make a new one")
        self._receiver = receiver
        config = self._config
        self._process = _process.spawn(config.argv(), environ=config.environ(), cwd=config.cwd)
        pump_type = _ThreadPump if os.name == "nt" else _PollPump
        self._pump = pump_type(self._process, self._on_stdout, self._on_stderr, self._on_eof)
        self._pump.start()

    def send(self, line: bytes, *, interest: Interest = "full") -> None:
        if self._pump is None or self._closing:
            raise TransportClosedError("the app-server is not running: the client was closed or never started")
        self._pump.write(line + b"\n")

    def close(self) -> None:
        self._closing = True
        with self._close_lock:
            process, pump = self._process, self._pump
            if process is None or pump is None:
                return
            pump.stop()
            _process.stop(process)
            pump.join()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def _on_stdout(self, chunk: bytes) -> None:
        lines = self._splitter.feed(chunk)
        if lines:
            self._receiver.on_batch([*lines])

    def _on_stderr(self, chunk: bytes) -> None:
        for line in self._stderr.feed(chunk):
            raw = line.head if isinstance(line, LongLine) else line
            self._stderr_lines.append(raw.decode("utf-8", "replace"))

    def _on_eof(self, failure: BaseException | None) -> None:
        """stdout has ended, or reading it failed: the process is of no use any more, so it is ended too."""
        assert self._process is not None
        if self._closing:
            error = TransportClosedError("the client was closed")
        else:
            code = _process.stop(self._process, after_stdin_s=0.5)
            what = f"reading from it failed: {failure!r}" if failure is not None else _process.describe_exit(code)
            error = TransportClosedError(f"the app-server (pid {self._process.pid}) is gone: {what}", self.stderr_lines)
        self._receiver.on_closed(error)

    @property
    def stderr_lines(self) -> list[str]:
        rest = self._stderr.rest()
        return [*self._stderr_lines, *([rest.decode("utf-8", "replace")] if rest else [])]


class _PollPump:
    """One thread over stdin, stdout, stderr and a wake-up pipe (POSIX)."""

    def __init__(self, process, on_stdout, on_stderr, on_eof):  # type: ignore[no-untyped-def]
        self._process = process
        self._on_stdout, self._on_stderr, self._on_eof = on_stdout, on_stderr, on_eof
        self._outgoing: deque[bytes | memoryview] = deque()
        self._stopping = False
        self._wake_r, self._wake_w = os.pipe()
        for fd in (self._wake_r, self._wake_w, process.stdin.fileno()):
            os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._run, name="codex-app-server-io", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def write(self, data: bytes) -> None:
        self._outgoing.append(data)
        self._wake()

    def stop(self) -> None:
        self._stopping = True
        self._wake()

    def join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join()
            os.close(self._wake_w)
            os.close(self._wake_r)
            # A second close must not close descriptors that belong to somebody else by then.
            self._wake_r = self._wake_w = -1
            self.join = lambda: None  # type: ignore[method-assign]

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_w, b"\0")

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._pump()
        except BaseException as error:
            failure = error
        self._drain_stderr()
        self._on_eof(failure)

    def _drain_stderr(self) -> None:
        """The last words of a process that has just died are still in the pipe."""
        with contextlib.suppress(OSError, ValueError):
            os.set_blocking(self._process.stderr.fileno(), False)
            while chunk := os.read(self._process.stderr.fileno(), READ_BYTES):
                self._on_stderr(chunk)

    def _pump(self) -> None:
        stdin, stdout, stderr = (
            pipe.fileno() for pipe in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            selector.register(self._wake_r, selectors.EVENT_READ)
            writing = False
            while True:
                ready = [key.fd for key, _ in selector.select()]
                if self._wake_r in ready:
                    os.read(self._wake_r, 4096)
                if self._stopping:
                    return
                if stderr in ready:
                    chunk = os.read(stderr, READ_BYTES)
                    if chunk:
                        self._on_stderr(chunk)
                    else:
                        selector.unregister(stderr)
                if stdout in ready:
                    chunk = os.read(stdout, READ_BYTES)
                    if not chunk:
                        return
                    self._on_stdout(chunk)
                pending = self._flush(stdin)
                if pending != writing:
                    writing = pending
                    if pending:
                        selector.register(stdin, selectors.EVENT_WRITE)
                    else:
                        selector.unregister(stdin)

    def _flush(self, stdin: int) -> bool:
        """Write what fits; whether something is left. A closed pipe is left to stdout's end to report."""
        while self._outgoing:
            data = self._outgoing.popleft()
            try:
                written = os.write(stdin, data)
            except BlockingIOError:
                written = 0
            except OSError:
                self._outgoing.clear()
                return False
            if written < len(data):
                self._outgoing.appendleft(memoryview(data)[written:])
                return True
        return False


class _ThreadPump:
    """The same with a thread per pipe, for platforms whose pipes cannot be polled (Windows)."""

    def __init__(self, process, on_stdout, on_stderr, on_eof):  # type: ignore[no-untyped-def]
        self._process = process
        self._on_stdout, self._on_stderr, self._on_eof = on_stdout, on_stderr, on_eof
        self._outgoing: deque[bytes] = deque()
        self._wake = threading.Semaphore(0)
        self._stopping = False
        self._threads = [
            threading.Thread(target=target, name=f"codex-app-server-{name}", daemon=True)
            for name, target in (("io", self._read), ("stderr", self._read_stderr), ("stdin", self._write))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def write(self, data: bytes) -> None:
        self._outgoing.append(data)
        self._wake.release()

    def stop(self) -> None:
        self._stopping = True
        self._wake.release()

    def join(self) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _read(self) -> None:
        failure: BaseException | None = None
        try:
            while chunk := os.read(self._process.stdout.fileno(), READ_BYTES):
                self._on_stdout(chunk)
        except BaseException as error:
            failure = error
        self.stop()
        self._on_eof(failure)

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._process.stderr.fileno(), READ_BYTES):
                self._on_stderr(chunk)

    def _write(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                self._wake.acquire()
                if self._stopping:
                    return
                data = memoryview(self._outgoing.popleft())
                while data:
                    data = data[os.write(self._process.stdin.fileno(), data) :]
