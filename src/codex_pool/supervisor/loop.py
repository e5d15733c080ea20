"""The supervisor process: children, the endpoint's lock and the death pipe, in one loop around `core`.

    python -m codex_pool.supervisor   start arguments: one JSON line on stdin, which then stays open as death pipe
                                      stdout: JSON lines for its parent - ready, slots, failed
                                      stderr: log; the broker and the workers write there too

It has no ZeroMQ: it talks to the broker over the broker's own pipes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import selectors
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from codex_pool import endpoints, processes, start
from codex_pool.broker.arguments import BrokerArguments
from codex_pool.supervisor.core import (
    Changed,
    Effect,
    GiveUp,
    Kill,
    PoolReady,
    Spawn,
    SupervisorCore,
    TellLost,
)
from codex_pool.supervisor.homes import SqliteHomes
from codex_pool.supervisor.launchers import Launcher, LocalLauncher
from codex_pool.supervisor.process import Child
from codex_pool.worker.arguments import WorkerArguments

STOP_LIMIT_S = 8.0
LOCK_LIMIT_S = 3.0


class SupervisorArguments(msgspec.Struct, forbid_unknown_fields=True):
    """What a supervisor is started with. `environ` comes on top of the supervisor's own environment."""

    endpoint: str
    slots: int
    turns_per_worker: int
    argv: list[str]
    cwd: str | None
    environ: dict[str, str]
    initialize: dict[str, Any]
    sqlite_root: str


class StartError(Exception):
    """The pool cannot start; the message says why and what to do."""


class Supervisor:
    """See the module's docstring."""

    def __init__(self, arguments: SupervisorArguments, launcher: Launcher) -> None:
        self._arguments = arguments
        self._launcher = launcher
        self._core = SupervisorCore(slots=arguments.slots, nonce=secrets.token_hex(3))
        self._selector = selectors.DefaultSelector()
        self._workers: dict[str, Child] = {}
        self._broker: Child | None = None
        self._failure: GiveUp | None = None
        self._signals = start.signal_descriptor(signal.SIGTERM, signal.SIGINT)

    def run(self) -> int:
        """Run the pool until its parent is gone or it gives up; the exit code."""
        path = endpoints.ipc_path(self._arguments.endpoint)
        workers_path = endpoints.ipc_path(f"ipc://{path.with_suffix('.w')}")
        endpoints.make_private(path.parent)
        self._lock = _lock(path)
        self._homes = SqliteHomes(Path(self._arguments.sqlite_root), self._arguments.slots)
        try:
            self._workers_endpoint = f"ipc://{workers_path}"
            self._start_broker()
            self._apply(self._core.start(time.monotonic()))
            self._loop()
        finally:
            self._stop()
            # The broker removes its sockets itself, unless it was killed.
            for leftover in (path, workers_path):
                leftover.unlink(missing_ok=True)
            self._homes.release()
            # The lock file stays: removing it would let two supervisors hold locks on different files.
            os.close(self._lock)
        if self._failure is not None:
            report({"event": "failed", "reason": self._failure.reason, "stderr": self._failure.stderr})
            return 1
        return 0

    def _loop(self) -> None:
        for fd in (0, self._signals):
            self._selector.register(fd, selectors.EVENT_READ)
        while self._failure is None:
            deadline = self._core.next_deadline
            timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            for key, _ in self._selector.select(timeout_s):
                if key.fileobj == self._signals:
                    return
                if key.fileobj == 0:
                    if not os.read(0, 4096):
                        return
                    continue
                key.data()
            self._apply(self._core.tick(time.monotonic()))

    # Children.

    def _watch(self, child: Child, on_reports: Callable[[], None]) -> None:
        self._selector.register(child, selectors.EVENT_READ, on_reports)

    def _start_broker(self) -> None:
        arguments = BrokerArguments(
            clients_endpoint=self._arguments.endpoint,
            workers_endpoint=self._workers_endpoint,
            slots=self._arguments.slots,
            turns_per_worker=self._arguments.turns_per_worker,
        )
        # The broker holds the lock too: should this process be killed, nobody takes the endpoint before the broker has
        # removed its sockets.
        self._broker = self._launcher.launch("codex_pool.broker", arguments, inherit=(self._lock,))
        self._watch(self._broker, self._on_broker)

    def _on_broker(self) -> None:
        assert self._broker is not None
        records, ended = self._broker.reports()
        for record in records:
            if record.get("event") == "registered":
                # Not before: a client that comes at once is to find every worker.
                self._apply(self._core.ready(record["worker"], time.monotonic()))
            elif record.get("event") == "suspect":
                self._apply(self._core.suspect(record["worker"], record["reason"]))
        if ended:
            self._selector.unregister(self._broker)
            how = self._broker.reap(5.0)
            self._failure = GiveUp(f"the broker has ended: {how}", ())

    def _spawn_worker(self, spawn: Spawn) -> None:
        arguments = self._arguments
        self._homes.seed(spawn.slot)
        environ = {**arguments.environ, "CODEX_SQLITE_HOME": str(self._homes.paths[spawn.slot])}
        child = self._launcher.launch(
            "codex_pool.worker",
            WorkerArguments(
                slot=spawn.slot,
                worker=spawn.worker,
                endpoint=self._workers_endpoint,
                argv=arguments.argv,
                cwd=arguments.cwd,
                environ=environ,
                initialize=arguments.initialize,
            ),
        )
        self._workers[spawn.worker] = child
        self._watch(child, lambda: self._on_worker(spawn.worker))

    def _on_worker(self, worker: str) -> None:
        child = self._workers[worker]
        records, ended = child.reports()
        for record in records:
            if record.get("event") == "ready":
                log(f"{worker} is ready (pid {child.pid}, app-server {record.get('app_server_pid')})")
        if ended:
            self._on_worker_ended(worker, child)

    def _on_worker_ended(self, worker: str, child: Child) -> None:
        self._selector.unregister(child)
        del self._workers[worker]
        how = child.reap(1.0)
        if how is None:
            child.kill()
            how = child.reap(5.0) or "it could not be reaped"
        reported = child.last_report if child.last_report.get("event") == "exit" else {}
        reason = str(reported.get("reason", how))
        # Fence: what the worker could not end itself is ended before anybody hears of its death.
        swept = processes.sweep(os.getpid(), spare=self._living())
        processes.reap_orphans(self._living())
        log(f"{worker} has ended, noticed by its sentinel: {reason}; {len(swept)} processes swept")
        stderr = tuple(str(line) for line in reported.get("stderr", ()))
        for line in stderr[-5:]:
            log(f"{worker} stderr: {line}")
        self._apply(self._core.exited(worker, reason, stderr, time.monotonic(), jitter=random.random()))

    def _living(self) -> frozenset[int]:
        children = [*self._workers.values(), *([self._broker] if self._broker is not None else [])]
        return frozenset(child.pid for child in children)

    # Effects.

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Spawn():
                    self._spawn_worker(effect)
                case Kill():
                    log(f"killing {effect.worker}: {effect.reason}")
                    self._workers[effect.worker].kill()
                case TellLost():
                    self._tell_broker({"lost": effect.worker, "reason": effect.reason})
                case Changed():
                    states = self._core.states()
                    self._tell_broker({"slots": states})
                    report({"event": "slots", "slots": states})
                case PoolReady():
                    report({"event": "ready", "endpoint": self._arguments.endpoint})
                case GiveUp():
                    log(f"giving up: {effect.reason}")
                    self._failure = effect

    def _tell_broker(self, record: dict[str, Any]) -> None:
        if self._broker is not None:
            self._broker.tell(record)

    # The end.

    def _stop(self) -> None:
        """In reverse order of the start: workers, then the broker, then whatever is left below this process."""
        deadline = time.monotonic() + STOP_LIMIT_S
        for child in self._workers.values():
            child.close_stdin()
        for child in self._workers.values():
            if child.reap(max(0.1, deadline - time.monotonic())) is None:
                child.kill()
                child.reap(5.0)
        if self._broker is not None:
            self._broker.close_stdin()
            if self._broker.reap(1.0) is None:
                self._broker.kill()
                self._broker.reap(5.0)
        processes.sweep(os.getpid())
        self._selector.close()


def _lock(path: Path) -> int:
    """Hold the endpoint: a second process that binds the same path would silently steal it. Raises StartError.

    The broker of a supervisor that was killed lives on for a moment; that is waited for.
    """
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_LIMIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            if time.monotonic() < deadline and holder.isdigit() and processes.identify(int(holder)) is None:
                time.sleep(0.05)
                continue
        os.close(lock)
        raise StartError(
            f"a pool is already running on ipc://{path} (supervisor pid {holder or 'unknown'}); "
            "stop it or use another endpoint"
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def report(record: dict[str, Any]) -> None:
    """One JSON line for the parent."""
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode(record) + b"\n")


def log(message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"supervisor: {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Entry of the supervisor process."""
    processes.become_subreaper()
    arguments = msgspec.json.decode(start.read_line(0), type=SupervisorArguments)
    try:
        code = Supervisor(arguments, LocalLauncher()).run()
    except (StartError, endpoints.EndpointError, OSError) as error:
        report({"event": "failed", "reason": str(error), "stderr": []})
        code = 1
    sys.exit(code)
