"""The worker process: one poll loop over broker, app-server and death pipe, around `core`.

    stdin     the death pipe; it carries lines {"broker": "new"} when there is another broker, {"stop": "acknowledged"}
              when it is to end after its turns, {"limits": {...}} for other limits of turns
    stdout    JSON lines for the supervisor - ready, load, memory, exit
    stderr    log

The loop drains the app-server's stdout whatever else is down, because a reader that stops stalls the whole
app-server. It turns at least once a second, so that a beat that reports no turn is a sign of being wedged.
"""

from __future__ import annotations

import logging
import math
import os
import random
import subprocess
import sys
import time
from collections import deque
from typing import Any, Literal, NoReturn

import msgspec
import zmq

from codex_app_server._protocol.framing import LineSplitter
from codex_app_server._runtime import child_process, reads
from codex_app_server._runtime.stderr import cause

from ..protocol import wire
from ..protocol.sockets import READABLE, WRITABLE
from ..runtime import log, processes, startup
from .app_server_stderr import AppServerStderr
from .arguments import TurnLimits, WorkerArguments
from .broker_connection import BrokerConnection
from .core import WorkerCore
from .effects import BulkToBroker, Effect, Fail, FillHistory, Note, Ready, ToAppServer, ToBroker, ToTracer
from .reports import Reports, report
from .sampler import Sampler
from .tracer_connection import TracerConnection

READ_BYTES = 256 * 1024
# Of a long line, and what the pipe may hold: where the machine is busy each read waits for the writer to have its turn.
LONG_READ_BYTES = 1024 * 1024
# Idle batching: while no session reads a turn in full, the next read waits so long after a short one: app-servers write
# line by line.
IDLE_BATCH_S = 0.02
# While so many turns run, and the read before was so short a time ago, a read waits before it begins: it then has lines
# of several turns, which go out as one message (see `packs`). A worker with little to do never waits.
GATHER_TURNS = 8
DENSE_S = 0.003
GATHER_S = 0.001
REAP_EVERY_S = 10.0
QUICK_TICK_S = 0.1
# The sampler looks rarely once nothing has happened for so long.
REST_AFTER_S = 10.0
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
        assert process.stderr is not None
        self._stderr = AppServerStderr(process.stderr)
        self._context = zmq.Context()
        self._splitter = LineSplitter(MAX_LINE_BYTES)
        self._to_app_server: deque[memoryview] = deque()
        self._from_supervisor = LineSplitter(64 * 1024)
        self._reports = Reports()
        self._counts = processes.tells_trees()
        self._has_snapshot = False
        # For which numbers of threads the sampler was asked to look last.
        self._sampled_counts = 0, 0
        # When it last did something, and how many turns had ended then.
        self._busy_at, self._rested_turns = 0.0, 0
        self._batch_until = 0.0
        self._read_at = 0.0
        self._read_bytes = reads.LITTLE_BYTES
        self._loops = 0
        self._leaving = False
        self._leaves_by = 0.0
        self._recent_events: list[str] = []
        self._signals = signals

    def run(self) -> str:
        """Work until there is a reason to stop, and return it. Nothing of the app-server is left then."""
        arguments = self._arguments
        self._core = WorkerCore(
            worker=arguments.worker,
            slot=arguments.slot,
            pid=os.getpid(),
            app_server_pid=self._process.pid,
            initialize=arguments.initialize,
            turn_idle_limit_s=arguments.turn_idle_limit_s,
            turn_wall_limit_s=arguments.turn_wall_limit_s,
            approval_timeout_s=arguments.approval_timeout_s,
            started_at=self._started_at,
            counts=self._counts,
            traces=bool(arguments.tracer),
        )
        self._tracer = TracerConnection(arguments.tracer)
        self._broker = BrokerConnection(self._context, arguments.endpoint, arguments.worker, self._progress)
        self._sampler = Sampler(os.getpid())
        try:
            self._loop()
        except Stop as stop:
            return str(stop)
        except Exception as error:
            # Reported by the exit report, with what led to it: the supervisor replaces this worker.
            _log.exception("the worker has failed")
            self._recent_events = self._core.recent_events
            return f"the worker has failed: {type(error).__name__}: {error}"
        finally:
            code = child_process.stop(self._process)
            self._stderr.drain()
            processes.sweep(os.getpid())
            self._sampler.close()
            self._broker.close()
            self._tracer.close()
            self._context.term()
            self._exit_code = code
        raise AssertionError("unreachable")

    def exit_report(self, reason: str) -> dict[str, Any]:
        """The last line for the supervisor. After an error `events` has the last events of the core."""
        what = f"{reason} ({child_process.describe_exit(self._exit_code)})"
        if reason == APP_SERVER_ENDED and (why := cause(self._stderr.lines)):
            what = f"{what}: {why}"
        said = {"reason": what, "stderr": list(self._stderr.lines), "lost_lines": log.lost()}
        events = {"events": self._recent_events} if self._recent_events else {}
        return {"event": "exit", **said, "tally": self._core.tally, **events}

    def _loop(self) -> NoReturn:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        self._stdin = process.stdin.fileno()
        stdout, stderr = process.stdout.fileno(), self._stderr.fileno()
        for fd in (self._stdin, stdout, stderr):
            os.set_blocking(fd, False)
        child_process.widen(stdout, LONG_READ_BYTES)
        self._poller = poller = zmq.Poller()
        for fd in (0, stdout, stderr, self._signals, self._sampler.fileno()):
            poller.register(fd, READABLE)
        self._apply(self._core.start(time.monotonic()))
        reaped_at = time.monotonic()
        # With the beat, for one wake-up of the process.
        tick_at = wire.next_beat(reaped_at)
        while True:
            if self._to_app_server:
                poller.register(self._stdin, WRITABLE)
            elif self._stdin in poller:
                poller.unregister(self._stdin)
            now = time.monotonic()
            if self._core.wants_tick:
                tick_at = min(tick_at, now + QUICK_TICK_S)
            wait_s = max(0.0, tick_at - now)
            batch_s = self._batch_until - now if self._batch_until else 0.0
            if batch_s > 0 and self._core.has_no_readers:
                wait_s = min(wait_s, batch_s)
                if stdout in poller:
                    poller.unregister(stdout)
            else:
                batch_s = 0.0
                if stdout not in poller:
                    poller.register(stdout, READABLE)
            broker = self._broker.socket
            listens = not batch_s and self._broker.unsent_bytes < MAX_UNSENT_BYTES
            poller.register(broker, (READABLE if listens else 0) | (WRITABLE if self._broker.has_unsent else 0))
            ready = dict(poller.poll(math.ceil(wait_s * 1000)))
            self._loops += 1
            if self._signals in ready and startup.asks_to_end(self._signals):
                raise Stop("the supervisor asked this worker to stop by SIGTERM")
            if stderr in ready and not self._stderr.read():
                poller.unregister(stderr)
            if stdout in ready:
                self._read_stdout(stdout)
            if ready.get(broker, 0) & READABLE:
                self._read_broker()
            if 0 in ready:
                self._read_supervisor()
            if self._sampler.fileno() in ready and (snapshot := self._sampler.take()) is not None:
                self._apply(self._core.process_snapshot(snapshot, time.monotonic()))
            if (counts := self._core.processes.thread_counts) != self._sampled_counts:
                self._sampled_counts = counts
                self._sampler.ask(*counts)
            now = time.monotonic()
            if self._leaving:
                self._leave(now)
            if now >= tick_at:
                tick_at = wire.next_beat(now)
                self._apply(self._core.tick(now))
                self._reports.load(self._core)
                if self._has_snapshot and not self._sampler.is_running:
                    self._snapshot_now()
                self._reports.memory(self._core.processes.memory_bytes)
                self._note_rest(now)
                self._tracer.flush()
            self._flush_app_server()
            self._broker.flush()
            if now - reaped_at > REAP_EVERY_S:
                # Background commands of tools become children of this process when their parent ends.
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
        size = LONG_READ_BYTES if self._splitter.held_bytes >= READ_BYTES else self._read_bytes
        if self._core.running_turns >= GATHER_TURNS and time.monotonic() - self._read_at < DENSE_S:
            time.sleep(GATHER_S)
        try:
            chunk = os.read(stdout, size)
        except BlockingIOError:
            return
        if not chunk:
            self._broker.flush()
            raise Stop(APP_SERVER_ENDED)
        self._read_bytes = reads.next_bytes(len(chunk), READ_BYTES)
        now = self._read_at = time.monotonic()
        lines = self._splitter.feed(chunk)
        # The rest of a long line follows at once.
        is_little = len(chunk) < reads.LITTLE_BYTES and self._splitter.held_bytes < reads.LITTLE_BYTES
        self._batch_until = now + IDLE_BATCH_S if is_little else 0.0
        if lines:
            self._apply(self._core.lines(lines, now, random.random()))

    def _read_supervisor(self) -> None:
        chunk = os.read(0, 4096)
        if not chunk:
            raise Stop("the supervisor is gone or wants this worker to stop")
        for line in self._from_supervisor.feed(chunk):
            if isinstance(line, bytes) and b'"stop"' in line:
                self._leaving, self._leaves_by = True, time.monotonic() + LEAVE_LIMIT_S
            elif isinstance(line, bytes) and (limits := _limits_in(line)) is not None:
                self._core.set_limits(limits)
            elif isinstance(line, bytes) and _broker_in(line) == "new":
                # The poller has no socket while reads are batched, and cannot unregister one that it does not have.
                self._poller.register(self._broker.socket, 0)
                self._broker.renew()
                self._apply(self._core.new_broker(time.monotonic()))
            else:
                _log.warning(
                    f'ignored a line of the supervisor: {line!r}; expected {{"broker": "new"}}, limits or a stop'
                )

    def _read_broker(self) -> None:
        for _ in range(1000):
            frames = self._broker.receive()
            if frames is None:
                return
            try:
                head = wire.decode_to_worker(frames[0])
                self._apply(self._core.broker_message(head, frames[1:], time.monotonic()))
            except (wire.WireError, msgspec.MsgspecError) as error:
                _log.warning(f"ignored a message of the broker: {error}")

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
                    pid, version = self._process.pid, effect.codex_version
                    report({"event": "ready", "app_server_pid": pid, "codex_version": version})
                case Note():
                    _log.warning(effect.message)
                case FillHistory():
                    self._fill_history(effect.thread_id)
                case ToTracer():
                    self._tracer.send(effect.line)
                case Fail():
                    raise Stop(effect.reason)

    def _fill_history(self, thread_id: str) -> None:
        # Loads SQLite, which few workers need.
        from . import thread_history

        home = self._arguments.environ.get("CODEX_SQLITE_HOME", "")
        if home and (problem := thread_history.try_fill(home, thread_id)):
            _log.warning(f"the history of thread {thread_id} may be incomplete: {problem}")

    def _flush_app_server(self) -> None:
        while self._to_app_server:
            data = self._to_app_server[0]
            try:
                written = os.write(self._stdin, data)
            except BlockingIOError:
                return
            except OSError:
                # The app-server has closed its stdin; the end of its stdout tells the rest.
                self._to_app_server.clear()
                return
            if written < len(data):
                self._to_app_server[0] = data[written:]
                return
            self._to_app_server.popleft()

    def _begin_sampling(self) -> None:
        if not self._counts:
            return
        self._snapshot_now()
        self._has_snapshot = True
        try:
            self._sampler.start()
        except RuntimeError as error:
            _log.warning(f"the memory of this worker is not read: no thread for it could be started: {error}")

    def _snapshot_now(self) -> None:
        snapshot = self._sampler.snapshot_now(*self._core.processes.thread_counts)
        self._apply(self._core.process_snapshot(snapshot, time.monotonic()))

    def _note_rest(self, now: float) -> None:
        """Have the sampler look rarely once this worker has rested for REST_AFTER_S."""
        turns = self._core.finished_turns
        if not self._core.rests or turns != self._rested_turns:
            self._busy_at, self._rested_turns = now, turns
        self._sampler.rest(now - self._busy_at >= REST_AFTER_S)

    def _progress(self) -> wire.Progress:
        core = self._core
        return wire.Progress(self._arguments.worker, self._loops, core.lines_read, core.in_flight, core.dropped)


def _broker_in(line: bytes) -> str | None:
    """The value of `broker` in a line of the supervisor."""
    try:
        value: str | None = msgspec.json.decode(line, type=dict[str, str]).get("broker")
    except msgspec.MsgspecError:
        return None
    return value


def _limits_in(line: bytes) -> TurnLimits | None:
    """The value of `limits` in a line of the supervisor."""
    try:
        return msgspec.json.decode(line, type=dict[Literal["limits"], TurnLimits]).get("limits")
    except msgspec.MsgspecError:
        return None


def work(arguments: bytes, process: subprocess.Popen[bytes], signals: int, started_at: float) -> int:
    """Run the worker with these start arguments, as JSON, around this app-server; the exit code."""
    log.begin("worker", *sys.argv[1:2])
    startup.collect_rarely()
    worker = Worker(startup.decode_arguments(arguments, WorkerArguments), process, signals, started_at)
    reason = worker.run()
    report(worker.exit_report(reason))
    return 0 if reason.startswith("the supervisor") else 1
