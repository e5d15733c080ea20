"""Transport: carries lines between a client and one app-server; StdioTransport does so to a child process.

A transport has one I/O thread, or works on the event loop of its client. It hands all to a `Receiver`, never runs
user code, and ends with exactly one call of `on_closed`, whatever the cause.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import threading
from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from . import _process
from ._paths import check_environment
from .config import AppServerConfig
from .envelope import RequestId
from .errors import TransportClosedError
from .home import ensure_home
from .lines import MAX_LINE_BYTES, LineSplitter, LongLine

if TYPE_CHECKING:
    import asyncio

DEFAULT_TIMEOUT_S = 60.0
READ_BYTES = 512 * 1024
STDERR_LINES = 40
QUIET_S = 1.0

Interest = Literal["full", "items", "final"]


class TurnLines(NamedTuple):
    """Notifications known to belong to one turn, in order. `ended` when the last of them ends it.

    `methods` runs parallel to `lines`, where any is known: "" is one that is not. `counts`: by their place in `lines`
    the stretches, many deltas of one method with the newlines between them, and how many; every other place has one.
    """

    thread_id: str
    turn_id: str
    lines: list[bytes]
    ended: bool
    methods: list[str] | None = None
    counts: dict[int, int] | None = None


class Receiver(Protocol):
    """What a transport calls, from its I/O thread or on the loop it was moved to; one after the other."""

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        """What came in one read: lines not yet looked at, and runs of lines known to belong to a turn."""

    def on_closed(self, error: TransportClosedError) -> None:
        """Nothing will come any more."""


class Transport(Protocol):
    """How a client reaches an app-server, or something that looks like one."""

    @property
    def shared(self) -> bool:
        """Whether other clients run turns there, which `pool/turn/follow` joins."""

    def start(self, receiver: Receiver) -> None:
        """Connect. Raises AppServerError; nothing is left behind then."""

    def send(self, line: bytes, *, interest: Interest = "full", timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        """Hand over one line without its newline; never blocks on the other side.

        `interest` says which notifications of the turn that this line starts are wanted, `timeout_s` how long an
        answer is waited for.
        Raises TransportClosedError.
        """

    def cancel(self, request_id: RequestId) -> None:
        """Nobody waits for the answer to this request any more: it need not be begun. Raises nothing."""

    def close(self) -> None:
        """End the connection and wait until the I/O thread is done. May be called twice."""


@runtime_checkable
class LoopTransport(Transport, Protocol):
    """A transport that can do its work on an event loop, so that nothing has to change threads."""

    def move_to(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Work on `loop` from now on; None: on its own thread again, which comes before the end of the loop.

        Called on that loop, after `start`.
        """


class StdioTransport:
    """One `codex app-server` child process, over its stdin and stdout.

    What cannot be written at once waits in memory: a stopped app-server must not block its callers.
    """

    shared = False

    def __init__(self, config: AppServerConfig | None = None, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._config = config or AppServerConfig()
        self._splitter = LineSplitter(max_line_bytes)
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: _PollPump | _ThreadPump | None = None
        self._stderr = LineSplitter(64 * 1024)
        self._stderr_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._closing = False
        self._lock = threading.Lock()
        self._stop_lock = threading.Lock()
        self._stopped = False
        self._exit_code: int | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self, receiver: Receiver) -> None:
        """Start the process. Raises StartError, InvalidInputError, TransportClosedError."""
        with self._lock:
            if self._process is not None or self._closing:
                raise TransportClosedError("this transport was started or closed before; make a new one")
            self._receiver = receiver
            config = self._config
            argv, environ = config.argv(), config.environ()
            check_environment(environ, config.cwd)
            if config.launch_args_override is None:
                ensure_home(environ)
            process = _process.spawn(argv, environ=environ, cwd=config.cwd)
            pump_type = _ThreadPump if os.name == "nt" else _PollPump
            try:
                pump = pump_type(process, self._on_stdout, self._on_stderr, self._on_eof)
                self._process, self._pump = process, pump
                pump.start()
            except (OSError, RuntimeError) as error:
                # No descriptors or threads left: nobody would ever look after the process.
                self._process = self._pump = None
                _process.stop(process)
                _process.close_pipes(process)
                raise TransportClosedError(f"cannot look after the app-server, so it was ended: {error}") from None

    def send(self, line: bytes, *, interest: Interest = "full", timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        if self._pump is None or self._closing:
            raise TransportClosedError("the app-server is not running: the client was closed or never started")
        self._pump.write(line + b"\n")

    def cancel(self, request_id: RequestId) -> None:
        """Nothing to do: what was sent has begun."""

    def close(self) -> None:
        self._closing = True
        with self._lock:
            process, pump = self._process, self._pump
            if process is None or pump is None:
                return
            pump.stop()
            self._stop_process(process)
            pump.join()
            _process.close_pipes(process)

    def _stop_process(
        self, process: subprocess.Popen[bytes], after_stdin_s: float = _process.EXIT_AFTER_STDIN_S
    ) -> int | None:
        """End the process, once: later its pid may be somebody else's."""
        with self._stop_lock:
            if not self._stopped:
                self._exit_code = _process.stop(process, after_stdin_s=after_stdin_s)
                self._stopped = True
            return self._exit_code

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
        assert self._process is not None and self._pump is not None
        if self._closing:
            error = TransportClosedError("the client was closed")
        else:
            code = self._stop_process(self._process, after_stdin_s=0.5)
            self._pump.drain_stderr()
            what = f"reading from it failed: {failure!r}" if failure is not None else _process.describe_exit(code)
            error = TransportClosedError(f"the app-server (pid {self._process.pid}) is gone: {what}", self.stderr_lines)
        self._receiver.on_closed(error)

    @property
    def stderr_lines(self) -> list[str]:
        rest = self._stderr.rest()
        return [*self._stderr_lines, *([rest.decode("utf-8", "replace")] if rest else [])]


class _PollPump:
    """One thread over stdin, stdout, stderr and a wake-up pipe (POSIX).

    A child of the app-server may hold its stdout open after its death, so that is looked for too, when all is quiet.
    """

    def __init__(self, process, on_stdout, on_stderr, on_eof):  # type: ignore[no-untyped-def]
        self._process = process
        self._on_stdout, self._on_stderr, self._on_eof = on_stdout, on_stderr, on_eof
        self._outgoing: deque[bytes | memoryview] = deque()
        self._stopping = False
        self._wake_lock = threading.Lock()
        self._wake_r, self._wake_w = os.pipe()
        for fd in (self._wake_r, self._wake_w, process.stdin.fileno()):
            os.set_blocking(fd, False)
        _process.widen(process.stdout.fileno(), READ_BYTES)
        self._thread = threading.Thread(target=self._run, name="codex-app-server-io", daemon=True)

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:
            self._close_wake_pipe()
            raise

    def write(self, data: bytes) -> None:
        self._outgoing.append(data)
        self._wake()

    def stop(self) -> None:
        """On return the thread uses stdin no more."""
        self._stopping = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._close_wake_pipe()

    def _wake(self) -> None:
        with self._wake_lock, contextlib.suppress(OSError):
            os.write(self._wake_w, b"\0")

    def _close_wake_pipe(self) -> None:
        with self._wake_lock:
            if self._wake_w >= 0:
                os.close(self._wake_w)
                os.close(self._wake_r)
            # A late wake-up must not write to descriptors that belong to somebody else by then.
            self._wake_r = self._wake_w = -1

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._pump()
        except BaseException as error:
            failure = error
        self._on_eof(failure)

    def drain_stderr(self) -> None:
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
                ready = [key.fd for key, _ in selector.select(QUIET_S)]
                if not ready and self._process.poll() is not None:
                    return
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
            # The reader of stdout last: it may see the end at once, and then needs the others.
            for name, target in (("stderr", self._read_stderr), ("stdin", self._write), ("io", self._read))
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
        # Bounded: a child of the app-server that outlived it may hold the pipes open, and nothing wakes a read.
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_process.EXIT_AFTER_KILL_S)

    def drain_stderr(self) -> None:
        self._threads[0].join(QUIET_S)

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
