"""Transport: carries lines between a client and one app-server; StdioTransport does so to a child process.

A transport has one I/O thread, or works on the event loop of its client. It hands all to a `Receiver`, never runs
user code, and ends with exactly one call of `on_closed`, whatever the cause. `send`, `close_soon` and what they call
take no lock: a signal handler or a finalizer may call them whatever it has interrupted.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from . import _fork, _process, _threads
from ._paths import check_environment
from ._pumps import PollPump, ThreadPump
from ._waking import Latch
from .config import AppServerConfig
from .envelope import RequestId
from .errors import CLOSED, TransportClosedError
from .home import ensure_home
from .lines import MAX_LINE_BYTES, LineSplitter, LongLine

if TYPE_CHECKING:
    import asyncio

DEFAULT_TIMEOUT_S = 60.0
STDERR_LINES = 40
# To end a process takes 9 s at most; bounded, since a handler of the program's logging may block the I/O thread.
CLOSE_LIMIT_S = 30.0

log = logging.getLogger("codex_app_server")

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
class PromptTransport(Transport, Protocol):
    """A transport that can be closed without waiting."""

    def close_soon(self) -> None:
        """Begin to end the connection, and wait for nothing and nobody. May be called at any point of any thread."""


@runtime_checkable
class LoopTransport(Transport, Protocol):
    """A transport that can do its work on an event loop, so that nothing has to change threads."""

    def move_to(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Work on `loop` from now on; None: on its own thread again, which comes before the end of the loop.

        Called on that loop, after `start`.
        """


class StdioTransport(_fork.ProcessBound):
    """One `codex app-server` child process, over its stdin and stdout.

    What cannot be written at once waits in memory: a stopped app-server must not block its callers. The I/O thread
    alone ends the process; `close` asks it to and waits.
    """

    shared = False
    _called = "client"

    def __init__(self, config: AppServerConfig | None = None, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._config = config or AppServerConfig()
        self._splitter = LineSplitter(max_line_bytes)
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: PollPump | ThreadPump | None = None
        self._stderr = LineSplitter(64 * 1024)
        self._stderr_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._closing = False
        # Taken once, by whoever starts; by whoever ends.
        self._start_claim = threading.Lock()
        self._end_claim = threading.Lock()
        self._starting_in = 0
        self._ended = Latch()
        # Of the I/O threads among themselves.
        self._stop_lock = threading.Lock()
        self._stopped = False
        self._exit_code: int | None = None
        self._bind_to_process()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self, receiver: Receiver) -> None:
        """Start the process. Raises StartError, InvalidInputError, TransportClosedError, WrongProcessError."""
        self._check_process()
        if not self._start_claim.acquire(blocking=False) or self._closing:
            raise TransportClosedError("this transport was started or closed before; make a new one")
        self._starting_in = threading.get_ident()
        try:
            self._receiver = receiver
            self._start()
        except BaseException:
            self._ended.open()
            raise
        finally:
            self._starting_in = 0

    def _start(self) -> None:
        config = self._config
        argv, environ = config.argv(), config.environ()
        check_environment(environ, config.cwd)
        if config.launch_args_override is None:
            ensure_home(environ)
        _threads.check_patches(blocks=False)
        process = pump = None
        try:
            with _fork.opening():
                process = _process.spawn(argv, environ=environ, cwd=config.cwd)
                self._process = process
                make = ThreadPump if os.name == "nt" else PollPump
                pump = self._pump = make(process, self._on_stdout, self._on_stderr, self._on_end, self._stop_process)
            pump.start()
        except BaseException as error:
            if process is None:
                raise
            # No descriptors or threads left, or interrupted: nobody would ever look after the process.
            self._end_claim.acquire(blocking=False)
            self._pump = None
            if pump is not None:
                pump.stop()
                pump.close()
            self._stop_process()
            _process.close_pipes(process)
            self._process = None
            if not isinstance(error, (OSError, RuntimeError)):
                raise
            raise TransportClosedError(f"cannot look after the app-server, so it was ended: {error}") from None
        if self._closing:
            # It was closed meanwhile, and saw no pump.
            pump.stop()

    def send(self, line: bytes, *, interest: Interest = "full", timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        self._check_process()
        pump = self._pump
        if pump is None or self._closing:
            raise TransportClosedError(f"the app-server is not running, or was never started: {CLOSED}")
        pump.write(line + b"\n")

    def cancel(self, request_id: RequestId) -> None:
        """Nothing to do: what was sent has begun."""

    def close_soon(self) -> None:
        if self._is_inherited:
            return
        self._closing = True
        pump = self._pump
        if pump is not None:
            pump.stop()

    def close(self) -> None:
        if self._is_inherited:
            return
        self.close_soon()
        pump = self._pump
        own_threads = (self._starting_in, *(pump.thread_ids if pump is not None else ()))
        if not self._start_claim.locked() or threading.get_ident() in own_threads:
            return
        if not self._ended.wait(CLOSE_LIMIT_S):
            log.error("the app-server (pid %s) was not ended within %g s", self.pid, CLOSE_LIMIT_S)

    def _let_go(self) -> None:
        process, pump = self._process, self._pump
        if process is not None:
            _fork.let_go(*map(_fork.descriptor_of, (process.stdin, process.stdout, process.stderr)))
            # It is no child of this process: nothing is to be waited for or said of it.
            process.returncode = 0
        if pump is not None:
            _fork.let_go(*pump.descriptors)

    def _stop_process(self, after_stdin_s: float = _process.EXIT_AFTER_STDIN_S) -> int | None:
        """End the process, once: later its pid may be somebody else's."""
        with self._stop_lock:
            if not self._stopped:
                assert self._process is not None
                self._exit_code = _process.stop(self._process, after_stdin_s=after_stdin_s)
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

    def _on_end(self, failure: BaseException | None) -> None:
        """stdout has ended, reading it failed, or the client closes: the process is of no use any more and is ended."""
        if not self._end_claim.acquire(blocking=False):
            return
        process, pump = self._process, self._pump
        assert process is not None and pump is not None
        try:
            if self._closing:
                self._receiver.on_closed(TransportClosedError(CLOSED))
                self._stop_process()
            else:
                code = self._stop_process(after_stdin_s=0.5)
                pump.drain_stderr()
                what = f"reading from it failed: {failure!r}" if failure is not None else _process.describe_exit(code)
                self._receiver.on_closed(
                    TransportClosedError(f"the app-server (pid {process.pid}) is gone: {what}", self.stderr_lines)
                )
        except Exception:
            log.exception("the end of the app-server (pid %s) could not be told", process.pid)
            self._stop_process()
        finally:
            _process.close_pipes(process)
            pump.close()
            self._ended.open()

    @property
    def stderr_lines(self) -> list[str]:
        rest = self._stderr.rest()
        return [*self._stderr_lines, *([rest.decode("utf-8", "replace")] if rest else [])]
