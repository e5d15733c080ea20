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
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ._protocol.envelope import RequestId
from ._protocol.framing import MAX_LINE_BYTES, LineSplitter, LongLine
from ._protocol.turn_lines import DEFAULT_TIMEOUT_S as DEFAULT_TIMEOUT_S
from ._protocol.turn_lines import Interest as Interest
from ._protocol.turn_lines import TurnLines as TurnLines
from ._runtime import child_process, fork, threads
from ._runtime.paths import check_environment
from ._runtime.pumps import PollPump, ThreadPump
from ._runtime.wakeup import Latch
from .config import AppServerConfig
from .errors import CLOSED, TransportClosedError
from .home import ensure_home

if TYPE_CHECKING:
    import asyncio

STDERR_LINES = 40
# To end a process takes 9 s at most; bounded, since a handler of the program's logging may block the I/O thread.
CLOSE_LIMIT_S = 30.0

log: logging.Logger = logging.getLogger("codex_app_server")


class Receiver(Protocol):
    """The callbacks of a transport, called from its I/O thread or on the loop it was moved to; one after the other."""

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        """Take what came in one read: lines not yet looked at, and runs of lines known to belong to a turn."""

    def on_closed(self, error: TransportClosedError) -> None:
        """Note that the connection is closed: nothing more will come."""


class Transport(Protocol):
    """The connection of a client to an app-server, or something that looks like one."""

    @property
    def shared(self) -> bool:
        """True if other clients run turns there, which `pool/turn/follow` joins."""

    def start(self, receiver: Receiver) -> None:
        """Connect. Raises AppServerError; nothing is left behind then."""

    def send(self, line: bytes, *, interest: Interest = "full", timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        """Hand over one line without its newline; never blocks on the other side.

        `interest` selects the notifications of the turn that this line starts, `timeout_s` is how long an
        answer is waited for.
        Raises TransportClosedError.
        """

    def cancel(self, request_id: RequestId) -> None:
        """Note that the caller no longer waits for the answer to this request: it need not be begun. Raises nothing."""

    def close(self) -> None:
        """End the connection and wait until the I/O thread is done. May be called twice."""


@runtime_checkable
class PromptTransport(Transport, Protocol):
    """A transport that can be closed without waiting."""

    def close_soon(self) -> None:
        """Begin to end the connection, without waiting for anything. May be called at any point of any thread."""


@runtime_checkable
class LoopTransport(Transport, Protocol):
    """A transport that can do its work on an event loop, so that nothing has to change threads."""

    def move_to(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Work on `loop` from now on; None: on its own thread again, which comes before the end of the loop.

        Called on that loop, after `start`.
        """


class StdioTransport(fork.ProcessBound):
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
        # Taken once: by the caller that starts it, and by the thread that ends it.
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
        threads.check_patches(blocks=False)
        process = pump = None
        try:
            with fork.opening():
                process = child_process.spawn(argv, environ=environ, cwd=config.cwd)
                self._process = process
                make = ThreadPump if os.name == "nt" else PollPump
                pump = self._pump = make(process, self._on_stdout, self._on_stderr, self._on_end, self._stop_process)
            pump.start()
        except BaseException as error:
            if process is None:
                raise
            # No descriptors or threads left, or interrupted: nothing would ever look after the process.
            self._end_claim.acquire(blocking=False)
            self._pump = None
            if pump is not None:
                pump.stop()
                pump.close()
            self._stop_process()
            child_process.close_pipes(process)
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
        """Do nothing: what was sent has begun."""

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
            fork.let_go(*map(fork.descriptor_of, (process.stdin, process.stdout, process.stderr)))
            # It is no child of this process: there is nothing to wait for or report.
            process.returncode = 0
        if pump is not None:
            fork.let_go(*pump.descriptors)

    def _stop_process(self, after_stdin_s: float = child_process.EXIT_AFTER_STDIN_S) -> int | None:
        """End the process, once: later its pid may be another process's."""
        with self._stop_lock:
            if not self._stopped:
                assert self._process is not None
                self._exit_code = child_process.stop(self._process, after_stdin_s=after_stdin_s)
                self._stopped = True
            return self._exit_code

    def _on_stdout(self, chunk: bytes) -> None:
        lines = self._splitter.feed(chunk)
        if lines:
            self._receiver.on_batch(lines)  # type: ignore[arg-type]

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
                what = (
                    f"reading from it failed: {failure!r}" if failure is not None else child_process.describe_exit(code)
                )
                self._receiver.on_closed(
                    TransportClosedError(f"the app-server (pid {process.pid}) is gone: {what}", self.stderr_lines)
                )
        except Exception:
            log.exception("the end of the app-server (pid %s) could not be reported", process.pid)
            self._stop_process()
        finally:
            child_process.close_pipes(process)
            pump.close()
            self._ended.open()

    @property
    def stderr_lines(self) -> list[str]:
        rest = self._stderr.rest()
        return [*self._stderr_lines, *([rest.decode("utf-8", "replace")] if rest else [])]
