"""The worker process: one poll loop over broker, app-server and death pipe, around `core`.

    stdin     the death pipe; it says in lines {"broker": "new"} when there is another broker, {"stop": "acknowledged"}
              when it is to end after its turns
    stdout    JSON lines for the supervisor - ready, load, memory, exit
    stderr    log

The loop drains the app-server's stdout whatever else is down, because a reader that stops stalls the whole
app-server. It turns at least once a second, so that a beat that says it did not is a sign of being wedged.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import select
import subprocess
import sys
import time
from collections import deque
from typing import Any, NoReturn

import msgspec
import zmq

from codex_app_server import _process
from codex_app_server._stderr import cause
from codex_app_server.lines import LineSplitter, LongLine
from codex_pool import log, processes, start, wire
from codex_pool.sockets import READABLE, WRITABLE
from codex_pool.worker.arguments import WorkerArguments
from codex_pool.worker.core import WorkerCore
from codex_pool.worker.effects import BulkToBroker, Effect, Fail, Note, Ready, ToAppServer, ToBroker
from codex_pool.worker.link import BrokerLink
from codex_pool.worker.sampler import Sampler

READ_BYTES = 256 * 1024
# Of a long line, and what the pipe may hold: where the machine is busy each read waits for the writer to have its turn.
LONG_READ_BYTES = 1024 * 1024
# While nobody reads along, what comes is gathered for so long after a read of little: app-servers write line by line.
REST_S = 0.02
LITTLE_BYTES = 64 * 1024
STDERR_LINES = 40
REAP_EVERY_S = 10.0
TICK_S = 1.0
QUICK_TICK_S = 0.1
MAX_LINE_BYTES = 64 * 1024 * 1024
# Beyond this much unsent towards the broker the worker stops reading commands, never reading its app-server.
MAX_UNSENT_BYTES = 256 * 1024 * 1024


APP_SERVER_ENDED = "the app-server has ended"
# How long a worker that is to stop waits, after its last turn, for clients that have not acknowledged all; one that is
# away has 20 s to come back.
LEAVE_LIMIT_S = 25.0

_log = logging.getLogger(__name__)


class Stop(Exception):
    """The worker's reason to end."""


class Worker:
    """See the module's docstring. `process` is the app-server, which was started at `started_at` (CLOCK_MONOTONIC) and
    has not been spoken to; `signals` is the `start.signal_descriptor` of this process."""

    def __init__(
        self, arguments: WorkerArguments, process: subprocess.Popen[bytes], signals: int, started_at: float
    ) -> None:
        self._arguments = arguments
        self._started_at = started_at
        self._process = process
        self._context = zmq.Context()
        self._splitter = LineSplitter(MAX_LINE_BYTES)
        self._stderr = LineSplitter(64 * 1024)
        self._stderr_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._to_app_server: deque[memoryview] = deque()
        self._from_supervisor = LineSplitter(64 * 1024)
        self._load = (0, 0, 0, 0)
        self._load_at = 0.0
        self._memory_mib = 0
        self._counts = processes.tells_trees()
        self._has_looked = False
        # For which numbers of threads the sampler was asked to look last.
        self._looked_at = 0, 0
        self._rest_until = 0.0
        self._loops = 0
        self._leaving = False
        self._leaves_by = 0.0
        self._signals = signals

    def run(self) -> str:
        """Work until there is a reason to stop; returns it. Nothing of the app-server is left then."""
        arguments = self._arguments
        self._core = WorkerCore(
            worker=arguments.worker,
            slot=arguments.slot,
            pid=os.getpid(),
            app_server_pid=self._process.pid,
            initialize=arguments.initialize,
            turn_idle_limit_s=arguments.turn_idle_limit_s,
            turn_wall_limit_s=arguments.turn_wall_limit_s,
            started_at=self._started_at,
            counts=self._counts,
        )
        self._broker = BrokerLink(self._context, arguments.endpoint, arguments.worker, self._progress)
        self._sampler = Sampler(os.getpid())
        try:
            self._loop()
        except Stop as stop:
            return str(stop)
        finally:
            code = _process.stop(self._process)
            self._drain_stderr()
            processes.sweep(os.getpid())
            self._sampler.close()
            self._broker.close()
            self._context.term()
            self._exit_code = code
        raise AssertionError("unreachable")

    def exit_report(self, reason: str) -> dict[str, Any]:
        what = f"{reason} ({_process.describe_exit(self._exit_code)})"
        if reason == APP_SERVER_ENDED and (why := cause(self._stderr_lines)):
            what = f"{what}: {why}"
        return {"event": "exit", "reason": what, "stderr": list(self._stderr_lines), "lost_lines": log.lost()}

    def _loop(self) -> NoReturn:
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._stdin = process.stdin.fileno()
        stdout, stderr = process.stdout.fileno(), process.stderr.fileno()
        for fd in (self._stdin, stdout, stderr):
            os.set_blocking(fd, False)
        _process.widen(stdout, LONG_READ_BYTES)
        self._poller = poller = zmq.Poller()
        for fd in (0, stdout, stderr, self._signals, self._sampler.fileno()):
            poller.register(fd, READABLE)
        self._apply(self._core.start(time.monotonic()))
        reaped_at = ticked_at = time.monotonic()
        while True:
            if self._to_app_server:
                poller.register(self._stdin, WRITABLE)
            elif self._stdin in poller:
                poller.unregister(self._stdin)
            tick_s = wait_s = QUICK_TICK_S if self._core.wants_tick else TICK_S
            rest_s = self._rest_until - time.monotonic() if self._rest_until else 0.0
            if rest_s > 0 and self._core.unhurried:
                wait_s = min(wait_s, rest_s)
                if stdout in poller:
                    poller.unregister(stdout)
            else:
                rest_s = 0.0
                if stdout not in poller:
                    poller.register(stdout, READABLE)
            broker = self._broker.socket
            listens = not rest_s and self._broker.unsent_bytes < MAX_UNSENT_BYTES
            poller.register(broker, (READABLE if listens else 0) | (WRITABLE if self._broker.has_unsent else 0))
            ready = dict(poller.poll(math.ceil(wait_s * 1000)))
            self._loops += 1
            if self._signals in ready and start.asks_to_end(self._signals):
                raise Stop("the supervisor asked this worker to stop by SIGTERM")
            if stderr in ready and not self._read_stderr(stderr):
                poller.unregister(stderr)
            if stdout in ready:
                self._read_stdout(stdout)
            if ready.get(broker, 0) & READABLE:
                self._read_broker()
            if 0 in ready:
                self._read_supervisor()
            if self._sampler.fileno() in ready and (look := self._sampler.take()) is not None:
                self._apply(self._core.look(look, time.monotonic()))
            if self._core.thread_counts != self._looked_at:
                self._looked_at = self._core.thread_counts
                self._sampler.ask(*self._looked_at)
            now = time.monotonic()
            if self._leaving:
                self._leave(now)
            if now - ticked_at >= tick_s:
                ticked_at = now
                self._apply(self._core.tick(now))
                self._report_load()
                if self._has_looked and not self._sampler.is_running:
                    self._look_now()
                self._report_memory()
            self._flush_app_server()
            self._broker.flush()
            if now - reaped_at > REAP_EVERY_S:
                # Background commands of tools end as orphans, and so as children of this process.
                reaped_at = now
                processes.reap_orphans(frozenset({process.pid}))

    def _leave(self, now: float) -> None:
        """Raise Stop once no turn runs, whatever the broker believed, and clients have got all, or had time for it."""
        if self._core.running_turns:
            self._leaves_by = now + LEAVE_LIMIT_S
        elif self._core.may_leave or now > self._leaves_by:
            self._broker.flush()
            raise Stop("the supervisor wants this worker to stop")

    # Reading.

    def _read_stdout(self, stdout: int) -> None:
        within = self._splitter.held_bytes >= READ_BYTES
        try:
            chunk = os.read(stdout, LONG_READ_BYTES if within else READ_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self._broker.flush()
            raise Stop(APP_SERVER_ENDED)
        now = time.monotonic()
        lines = self._splitter.blocks(chunk)
        # The rest of a long line is there at once.
        is_little = len(chunk) <= LITTLE_BYTES and self._splitter.held_bytes <= LITTLE_BYTES
        self._rest_until = now + REST_S if is_little else 0.0
        if lines:
            self._apply(self._core.lines(lines, now, random.random()))

    def _read_supervisor(self) -> None:
        chunk = os.read(0, 4096)
        if not chunk:
            raise Stop("the supervisor is gone or wants this worker to stop")
        for line in self._from_supervisor.feed(chunk):
            if isinstance(line, bytes) and b'"stop"' in line:
                self._leaving, self._leaves_by = True, time.monotonic() + LEAVE_LIMIT_S
            elif isinstance(line, bytes) and _told(line) == "new":
                # While it rests it does not listen, and a socket that is not there cannot be taken out.
                self._poller.register(self._broker.socket, 0)
                self._broker.renew()
                self._apply(self._core.new_broker())
            else:
                _log.warning(f'ignored a line of the supervisor: {line!r}; expected {{"broker": "new"}} or a stop')

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
            frames = self._broker.receive()
            if frames is None:
                return
            try:
                self._apply(self._on_broker(frames))
            except (wire.WireError, msgspec.MsgspecError) as error:
                _log.warning(f"ignored a message of the broker: {error}")

    def _on_broker(self, frames: list[bytes]) -> list[Effect]:
        head = wire.decode_to_worker(frames[0])
        match head:
            case wire.Dispatch():
                return self._core.dispatch(head, frames[1], time.monotonic())
            case wire.Tell():
                return self._core.tell(head, frames[1])
            case wire.Apply():
                return self._core.apply(head, frames[1], time.monotonic())
            case wire.Current():
                return self._core.current(head, frames[1:])
            case wire.Follow():
                return self._core.follow(head)
            case wire.Acked():
                return self._core.acked(head, time.monotonic())
            case wire.Back():
                return self._core.back(head, time.monotonic())
            case wire.Release():
                return self._core.release(head, time.monotonic())
            case wire.Interrupt():
                return self._core.interrupt(head, time.monotonic())
            case wire.Gone():
                return self._core.gone(head, time.monotonic())
            case wire.Holder():
                return self._core.holder(head)
            case wire.WhoAreYou():
                return self._core.who_are_you()
        raise AssertionError(head)

    # Writing.

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ToBroker():
                    self._broker.send(effect.frames)
                case BulkToBroker():
                    self._broker.send_bulk(effect.frames)
                case ToAppServer():
                    self._to_app_server.append(memoryview(effect.line + b"\n"))
                case Ready():
                    self._begin_sampling()
                    report({"event": "ready", "app_server_pid": self._process.pid})
                case Note():
                    _log.warning(effect.message)
                case Fail():
                    raise Stop(effect.reason)

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

    def _report_load(self) -> None:
        load = self._core.finished_turns, self._core.loaded_threads, self._core.running_turns, log.lost()
        # A supervisor that does not read must not stop this loop.
        if load != self._load and time.monotonic() - self._load_at >= TICK_S and _writable(1):
            self._load, self._load_at = load, time.monotonic()
            report({"event": "load", **dict(zip(("turns", "threads", "running", "lost_lines"), load, strict=True))})

    def _begin_sampling(self) -> None:
        if not self._counts:
            return
        self._look_now()
        self._has_looked = True
        try:
            self._sampler.start()
        except RuntimeError as error:
            _log.warning(f"the memory of this worker is not read: no thread for it could be started: {error}")

    def _look_now(self) -> None:
        self._apply(self._core.look(self._sampler.look_now(*self._core.thread_counts), time.monotonic()))

    def _report_memory(self) -> None:
        memory_mib = self._core.memory_bytes >> 20
        if memory_mib != self._memory_mib and _writable(1):
            self._memory_mib = memory_mib
            report({"event": "memory", "memory_bytes": self._core.memory_bytes})

    def _progress(self) -> wire.Progress:
        return wire.Progress(self._arguments.worker, self._loops, self._core.lines_read, self._core.in_flight)


def _told(line: bytes) -> str | None:
    """What a line of the supervisor says of the broker."""
    try:
        told: str | None = msgspec.json.decode(line, type=dict[str, str]).get("broker")
    except msgspec.MsgspecError:
        return None
    return told


def _readable(fd: int) -> bool:
    poller = zmq.Poller()
    poller.register(fd, READABLE)
    return bool(poller.poll(0))


def _writable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))


def report(record: dict[str, Any]) -> None:
    """One JSON line for the supervisor."""
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode(record) + b"\n")


def work(arguments: bytes, process: subprocess.Popen[bytes], signals: int, started_at: float) -> int:
    """Be the worker with these start arguments, as JSON, around this app-server; the exit code."""
    log.begin("worker", *sys.argv[1:2])
    start.collect_rarely()
    worker = Worker(start.decode_arguments(arguments, WorkerArguments), process, signals, started_at)
    reason = worker.run()
    report(worker.exit_report(reason))
    return 0 if reason.startswith("the supervisor") else 1
