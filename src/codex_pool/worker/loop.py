"""The worker process: one poll loop over broker, app-server and death pipe, around `core`.

    python -m codex_pool.worker       start arguments: one JSON line on stdin, which then stays open as death pipe
                                      stdout: JSON lines for the supervisor - ready, exit
                                      stderr: log

The loop drains the app-server's stdout whatever else is down, because a reader that stops stalls the whole
app-server. A second thread with a socket of its own only beats.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from typing import Any, NoReturn

import msgspec
import zmq

from codex_app_server import _process
from codex_app_server.errors import AppServerError
from codex_app_server.lines import LineSplitter, LongLine
from codex_pool import processes, sockets, start, wire
from codex_pool.worker.arguments import WorkerArguments
from codex_pool.worker.core import Effect, Note, Ready, ToAppServer, ToBroker, WorkerCore

READ_BYTES = 256 * 1024
READS_PER_TURN = 8
STDERR_LINES = 40
REAP_EVERY_S = 10.0
MAX_LINE_BYTES = 64 * 1024 * 1024
# Beyond this much unsent towards the broker the worker stops reading commands, never reading its app-server.
MAX_UNSENT_BYTES = 256 * 1024 * 1024


class Stop(Exception):
    """The worker's reason to end."""


class Worker:
    """See the module's docstring."""

    def __init__(self, arguments: WorkerArguments) -> None:
        self._arguments = arguments
        self._context = zmq.Context()
        self._splitter = LineSplitter(MAX_LINE_BYTES)
        self._stderr = LineSplitter(64 * 1024)
        self._stderr_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._to_app_server: deque[memoryview] = deque()
        self._to_broker: deque[list[bytes]] = deque()
        self._unsent_bytes = 0
        self._loops = 0
        self._beating = threading.Event()
        self._signals = start.signal_descriptor(signal.SIGTERM)

    def run(self) -> str:
        """Work until there is a reason to stop; returns it. Nothing of the app-server is left then."""
        arguments = self._arguments
        environ = {**os.environ, **arguments.environ}
        self._process = _process.spawn(arguments.argv, environ=environ, cwd=arguments.cwd)
        self._core = WorkerCore(
            worker=arguments.worker,
            slot=arguments.slot,
            pid=os.getpid(),
            app_server_pid=self._process.pid,
            initialize=arguments.initialize,
        )
        self._broker = sockets.dealer(self._context, arguments.endpoint, arguments.worker)
        beat = threading.Thread(target=self._beat, name="beat", daemon=True)
        beat.start()
        try:
            self._loop()
        except Stop as stop:
            return str(stop)
        finally:
            code = _process.stop(self._process)
            self._drain_stderr()
            processes.sweep(os.getpid())
            self._beating.set()
            beat.join()
            self._broker.close(linger=200)
            self._context.term()
            self._exit_code = code
        raise AssertionError("unreachable")

    def exit_report(self, reason: str) -> dict[str, Any]:
        what = f"{reason} ({_process.describe_exit(self._exit_code)})"
        return {"event": "exit", "reason": what, "stderr": list(self._stderr_lines)}

    def _loop(self) -> NoReturn:
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._stdin = process.stdin.fileno()
        stdout, stderr = process.stdout.fileno(), process.stderr.fileno()
        for fd in (self._stdin, stdout, stderr):
            os.set_blocking(fd, False)
        poller = zmq.Poller()
        poller.register(self._broker, zmq.POLLIN)
        for fd in (0, stdout, stderr, self._signals):
            poller.register(fd, zmq.POLLIN)
        self._apply(self._core.start())
        reaped_at = time.monotonic()
        while True:
            wants = zmq.POLLIN if self._unsent_bytes < MAX_UNSENT_BYTES else 0
            poller.register(self._broker, wants | (zmq.POLLOUT if self._to_broker else 0))
            if self._to_app_server:
                poller.register(self._stdin, zmq.POLLOUT)
            elif self._stdin in poller:
                poller.unregister(self._stdin)
            timeout_ms = 100 if self._core.wants_tick else None
            ready = dict(poller.poll(timeout_ms))
            self._loops += 1
            if 0 in ready and not os.read(0, 4096):
                raise Stop("the supervisor is gone or wants this worker to stop")
            if self._signals in ready:
                raise Stop("the supervisor asked this worker to stop by SIGTERM")
            if stderr in ready and not self._read_stderr(stderr):
                poller.unregister(stderr)
            if stdout in ready:
                self._read_stdout(stdout)
            if ready.get(self._broker, 0) & zmq.POLLIN:
                self._read_broker()
            if self._core.wants_tick:
                self._apply(self._core.tick(time.monotonic()))
            self._flush_app_server()
            self._flush_broker()
            if time.monotonic() - reaped_at > REAP_EVERY_S:
                # Background commands of tools end as orphans, and so as children of this process.
                reaped_at = time.monotonic()
                processes.reap_orphans(frozenset({process.pid}))

    # Reading.

    def _read_stdout(self, stdout: int) -> None:
        lines: list[bytes | LongLine] = []
        ended = False
        for _ in range(READS_PER_TURN):
            try:
                chunk = os.read(stdout, READ_BYTES)
            except BlockingIOError:
                break
            if not chunk:
                ended = True
                break
            lines += self._splitter.feed(chunk)
            if len(chunk) < READ_BYTES:
                break
        if lines:
            self._apply(self._core.lines(lines, time.monotonic()))
        if ended:
            self._flush_broker()
            raise Stop("the app-server has ended")

    def _read_stderr(self, stderr: int) -> bool:
        try:
            chunk = os.read(stderr, READ_BYTES)
        except BlockingIOError:
            return True
        for line in self._stderr.feed(chunk):
            raw = line.head if isinstance(line, LongLine) else line
            self._stderr_lines.append(raw.decode("utf-8", "replace"))
        return bool(chunk)

    def _drain_stderr(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            stderr = self._process.stderr.fileno()
            os.set_blocking(stderr, False)
            while self._read_stderr(stderr):
                if not os.get_blocking(stderr) and not _readable(stderr):
                    break
        rest = self._stderr.rest()
        if rest:
            self._stderr_lines.append(rest.decode("utf-8", "replace"))

    def _read_broker(self) -> None:
        for _ in range(1000):
            try:
                frames = self._broker.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._apply(self._on_broker(frames))
            except (wire.WireError, msgspec.MsgspecError) as error:
                log(f"ignored a message of the broker: {error}")

    def _on_broker(self, frames: list[bytes]) -> list[Effect]:
        head = wire.decode_to_worker(frames[0])
        match head:
            case wire.Dispatch():
                return self._core.dispatch(head, frames[1])
            case wire.Tell():
                return self._core.tell(head, frames[1])
            case wire.Follow():
                return self._core.follow(head)
            case wire.Acked():
                return self._core.acked(head, time.monotonic())
            case wire.Back():
                return self._core.back(head, time.monotonic())
            case wire.Release():
                return self._core.release(head)
            case wire.Gone():
                return self._core.gone(head)
            case wire.Holder():
                return []
            case wire.WhoAreYou():
                return self._core.who_are_you()
        raise AssertionError(head)

    # Writing.

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ToBroker():
                    self._to_broker.append(effect.frames)
                    self._unsent_bytes += sum(map(len, effect.frames))
                case ToAppServer():
                    self._to_app_server.append(memoryview(effect.line + b"\n"))
                case Ready():
                    report({"event": "ready", "app_server_pid": self._process.pid})
                case Note():
                    log(effect.message)

    def _flush_app_server(self) -> None:
        while self._to_app_server:
            data = self._to_app_server[0]
            try:
                written = os.write(self._stdin, data)
            except BlockingIOError:
                return
            except OSError:
                # The app-server has closed its stdin; the end of its stdout says the rest.
                self._to_app_server.clear()
                return
            if written < len(data):
                self._to_app_server[0] = data[written:]
                return
            self._to_app_server.popleft()

    def _flush_broker(self) -> None:
        while self._to_broker:
            try:
                self._broker.send_multipart(self._to_broker[0], zmq.NOBLOCK)
            except zmq.Again:
                return
            self._unsent_bytes -= sum(map(len, self._to_broker.popleft()))

    def _beat(self) -> None:
        socket = sockets.dealer(self._context, self._arguments.endpoint, f"beat-{self._arguments.worker}")
        try:
            while not self._beating.wait(wire.BEAT_S):
                core = self._core
                beat = wire.Progress(self._arguments.worker, self._loops, core.lines_read, core.in_flight)
                with contextlib.suppress(zmq.Again):
                    socket.send(wire.encode(beat), zmq.NOBLOCK)
        finally:
            socket.close(linger=0)


def _readable(fd: int) -> bool:
    poller = zmq.Poller()
    poller.register(fd, zmq.POLLIN)
    return bool(poller.poll(0))


def report(record: dict[str, Any]) -> None:
    """One JSON line for the supervisor."""
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode(record) + b"\n")


def log(message: str) -> None:
    print(f"worker: {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Entry of the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.become_subreaper()
    arguments = msgspec.json.decode(start.read_line(0), type=WorkerArguments)
    worker = Worker(arguments)
    try:
        reason = worker.run()
    except AppServerError as error:
        report({"event": "exit", "reason": str(error), "stderr": []})
        sys.exit(1)
    report(worker.exit_report(reason))
    sys.exit(0 if reason.startswith("the supervisor") else 1)
