"""The supervisor process: children, the endpoint's lock and the death pipe, in one loop around `core`.

    python -m codex_pool.supervisor   start arguments: one JSON line on stdin, which then stays open as death pipe;
                                      an empty line once the parent takes the pool for started
                                      stdout: JSON lines for its parent - ready, slots, failed
                                      stderr: log; the broker and the workers write there too

It has no ZeroMQ: it talks to the broker and the workers over their own pipes.

    to the broker        {"slots": [...]}  {"lost": worker, "reason"}  {"drain": worker}
                         {"ping": number, "lost_lines": of the logs of all other processes}
                         {"holds": bool, "problems": [...]}: whether the endpoint is held, and what cannot be written
    from the broker      {"event": "ready" | "registered" | "suspect" | "drained" | "pong" | "reachable" | "unsaved" |
                          "saved", "worker", "reason", "registered": [worker], "drained": [worker], "workers",
                          "threads", "lost_lines"}
    to the holder of the account      {"ping": number}
    from the holder of the account    {"event": "pong", "lost_lines"}
    to a worker          {"broker": "new"}: the broker that it is registered with has died and been replaced
                         {"stop": "acknowledged"}: it is to end once its turns are over, and its clients have all that
                         it has for them
    to the ingress       {"ping": number}
    from the ingress     {"event": "ready" | "failed" | "pong", "reason", "lost_lines"}
    from a worker        {"event": "ready", "app_server_pid"}  {"event": "memory", "memory_bytes"}
                         {"event": "load", "turns", "threads", "running", "lost_lines"}
                         {"event": "exit", "reason", "stderr", "kind", "lost_lines"}
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import random
import select
import selectors
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server.errors import StartError
from codex_pool import endpoints, log, processes, start
from codex_pool.broker.arguments import BrokerArguments
from codex_pool.problems import Problems
from codex_pool.processes import ProcessId
from codex_pool.supervisor.account import AccountHolder
from codex_pool.supervisor.bookkeeping import LOOK_EVERY_S, Bookkeeping
from codex_pool.supervisor.core import (
    Changed,
    Drain,
    Effect,
    GiveUp,
    Kill,
    PoolReady,
    Recycle,
    Spawn,
    Stop,
    SupervisorCore,
    TellLost,
)
from codex_pool.supervisor.homes import SqliteHomes, home_of, with_sqlite_home
from codex_pool.supervisor.ingress import IngressProcess
from codex_pool.supervisor.launchers import Launcher, LocalLauncher
from codex_pool.supervisor.lock import EndpointLock, EndpointTakenError
from codex_pool.supervisor.process import Child, Reports
from codex_pool.supervisor.restarts import MAX_DEATHS, WINDOW_S, BrokerRestarts
from codex_pool.worker.arguments import WorkerArguments

# Of the workers, which end an app-server that does not listen within 4 s; and of the holder of the account, which may
# be asking the issuer, from the same moment on. With broker and ingress, a second each, all is over within 10 s.
WORKERS_STOP_LIMIT_S = 6.0
HOLDER_STOP_LIMIT_S = 7.0
# Broker and holder of the account are asked for a sign of life.
SAMPLE_EVERY_S = 2.0
MAX_UNSAVED = 2000
# Counted, not timed: this process may have been stopped itself.
UNANSWERED_PINGS = 5
UNANSWERED_PINGS_AT_START = 15

_log = logging.getLogger(__name__)


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
    # Whose tokens the pool's holder refreshes.
    auth_json: str
    # Whether argv is a codex command, which takes --config options.
    configurable: bool = False
    recycle: Recycle = Recycle()
    turn_idle_limit_s: float | None = None
    turn_wall_limit_s: float | None = None
    # tcp://HOST:PORT for clients with a key, let in by the ingress; where the keys are.
    listen: str | None = None
    keys: str | None = None


class Supervisor:
    """See the module's docstring."""

    def __init__(self, arguments: SupervisorArguments, launcher: Launcher, reports: Reports) -> None:
        self._arguments = arguments
        self._launcher = launcher
        self._reports = reports
        self._core = SupervisorCore(slots=arguments.slots, nonce=os.urandom(3).hex(), recycle=arguments.recycle)
        self._selector = selectors.DefaultSelector()
        self._workers: dict[str, Child] = {}
        self._ready_lines: list[str] | None = []
        self._app_servers: dict[str, ProcessId] = {}
        self._used_homes: dict[str, Path] = {}
        self._broker: Child | None = None
        self._brokers = 0
        # When the account was changed last, and whether a broker has died while it was being changed.
        self._account_changed_at = 0.0
        self._account_changes = False
        self._broker_due = 0.0
        self._unanswered_pings = 0
        self._restarts = BrokerRestarts()
        self._sample_at = 0.0
        # Lines that the logs of children lost which have ended.
        self._lost_before = 0
        self._look_at = 0.0
        self._problems = Problems(_log.warning)
        # What the broker was told of them, and whether workers can come to it.
        self._told: dict[str, Any] = {}
        self._is_reachable = True
        # Records of threads that the broker could not write down, for the next one; None for a thread that is no more.
        self._unsaved: dict[str, Any] = {}
        self._failure: GiveUp | None = None
        self._is_ready = False
        self._account = AccountHolder(arguments.auth_json, {**os.environ, **arguments.environ}, launcher)
        self._signals = start.signal_descriptor(signal.SIGTERM, signal.SIGINT)
        start.survive_hang_up()
        # What makes the time of events Unix time: taken once, so that no step of the clock changes a wait.
        self._unix_offset = time.time() - time.monotonic()

    def run(self) -> int:
        """Run the pool until its parent is gone or it gives up; the exit code."""
        path = endpoints.ipc_path(self._arguments.endpoint)
        workers_path = endpoints.ipc_path(f"ipc://{path.with_suffix('.w')}")
        link_path = endpoints.ipc_path(f"ipc://{path.with_suffix('.i')}")
        endpoints.make_private(path.parent)
        self._lock = EndpointLock(path)
        self._books = Bookkeeping(self._lock, self._problems, _log.warning)
        if self._lock.swept:
            _log.info(f"swept what an earlier pool on this endpoint has left: {', '.join(self._lock.swept)}")
        try:
            self._ingress = IngressProcess(
                self._arguments.listen, self._arguments.keys, f"ipc://{link_path}", self._launcher
            )
        except endpoints.EndpointError:
            self._lock.release()
            raise
        self._homes = SqliteHomes(Path(self._arguments.sqlite_root), self._arguments.slots)
        try:
            if self._is_over():
                return 0
            self._workers_endpoint = f"ipc://{workers_path}"
            if self._account.is_asleep:
                self._selector.register(
                    self._account, selectors.EVENT_READ, lambda: self._account.wake(time.monotonic())
                )
            self._account.look(time.monotonic())
            if self._account.due <= time.monotonic():
                self._start_account()
            self._start_broker()
            if self._ingress.link is not None:
                self._start_ingress()
            self._apply(self._core.start(time.monotonic()))
            self._loop()
        finally:
            self._stop()
            # The broker removes its sockets itself, unless it was killed.
            if self._books.holds:
                for leftover in (path, workers_path, link_path):
                    with contextlib.suppress(OSError):
                        leftover.unlink(missing_ok=True)
            self._homes.close()
            self._lock.release()
        if self._failure is not None:
            self._reports.last({"event": "failed", **dataclasses.asdict(self._failure)})
            return 1
        return 0

    def _is_over(self) -> bool:
        """Whether the end was asked for before anything is started: the lock of an endpoint may take seconds."""
        readable, _, _ = select.select([0, self._signals], [], [], 0)
        return (0 in readable and not os.read(0, 4096)) or (
            self._signals in readable and start.asks_to_end(self._signals)
        )

    def _loop(self) -> None:
        for fd in (0, self._signals):
            self._selector.register(fd, selectors.EVENT_READ)
        while self._failure is None:
            for key, _ in self._selector.select(self._wait_s()):
                if key.fileobj == self._signals:
                    if start.asks_to_end(self._signals):
                        return
                    continue
                if key.fileobj == 0:
                    if not os.read(0, 4096):
                        return
                    self._accepted()
                    continue
                key.data()
            now = time.monotonic()
            if self._broker is None and self._failure is None and now >= self._broker_due:
                self._start_broker()
            if self._account.child is None and now >= self._account.due:
                self._start_account()
            if self._ingress.child is None and now >= self._ingress.due:
                self._start_ingress()
            if now >= self._look_at:
                self._look(now)
            if now >= self._sample_at:
                self._sample(now)
            if not self._is_reachable:
                self._core.unreachable(now)
            self._apply(self._core.tick(now))

    def _wait_s(self) -> float:
        deadlines = [self._sample_at, self._look_at, self._core.next_deadline]
        deadlines.append(self._broker_due if self._broker is None else None)
        deadlines.append(self._account.due if self._account.child is None else None)
        deadlines.append(self._ingress.due if self._ingress.child is None else None)
        return max(0.0, min(at for at in deadlines if at is not None) - time.monotonic())

    def _look(self, now: float) -> None:
        """What of the endpoint was removed is made again."""
        self._look_at = now + LOOK_EVERY_S
        self._books.look(now)
        self._tell_problems()

    def _tell_problems(self) -> None:
        told = {"holds": self._books.holds, "problems": self._problems.rows()}
        if told != self._told and self._broker is not None:
            self._told = told
            self._tell_broker(told)

    def _sample(self, now: float) -> None:
        """What nobody reports by itself."""
        self._sample_at = now + SAMPLE_EVERY_S
        self._account.look(now)
        for child in self._workers.values():
            child.flush()
        self._reports.flush()
        if self._account.ping():
            _log.warning("killing the holder of the account: it does not answer")
        if not self._ingress.ping():
            _log.warning("killing the ingress: it does not answer")
        broker = self._broker
        if broker is None:
            return
        if self._unanswered_pings >= (UNANSWERED_PINGS if broker.last_report else UNANSWERED_PINGS_AT_START):
            silent_s = self._unanswered_pings * SAMPLE_EVERY_S
            _log.warning(f"killing the broker (pid {broker.pid}): it has not answered for {silent_s:.0f} s")
            broker.kill()
        self._unanswered_pings += 1
        broker.tell({"ping": self._unanswered_pings, "lost_lines": self._lost_lines()})

    # Children.

    def _watch(self, child: Child, on_reports: Callable[[], None]) -> None:
        self._selector.register(child, selectors.EVENT_READ, on_reports)

    def _unwatch(self, child: Child) -> None:
        """It has ended."""
        self._selector.unregister(child)
        self._lost_before += child.lost_lines

    def _lost_lines(self) -> int:
        """How many lines the logs of this process and its children have lost, that of the broker left out."""
        others = [*self._workers.values(), self._account.child, self._ingress.child]
        return log.lost() + self._lost_before + sum(child.lost_lines for child in others if child is not None)

    def _remember(self) -> None:
        """What a supervisor after this one has to end, should this one be killed."""
        started = [(child.pid, f"worker {name}") for name, child in self._workers.items()]
        started += [(process.pid, f"app-server of {name}") for name, process in self._app_servers.items()]
        if self._broker is not None:
            started.append((self._broker.pid, "broker"))
        if self._account.child is not None:
            started.append((self._account.child.pid, "holder of the account"))
        if self._ingress.child is not None:
            started.append((self._ingress.child.pid, "ingress"))
        self._books.remember(started, time.monotonic())

    def _start_broker(self) -> None:
        self._books.look(time.monotonic())
        arguments = BrokerArguments(
            clients_endpoint=self._arguments.endpoint,
            workers_endpoint=self._workers_endpoint,
            slots=self._arguments.slots,
            turns_per_worker=self._arguments.turns_per_worker,
            expect=self._core.registered,
            cwd=self._arguments.cwd,
            link=self._ingress.link,
            secret=self._ingress.secret,
            recycle_descendants=self._arguments.recycle.descendants,
            keys=self._arguments.keys,
            codex_home=str(home_of(Path(self._arguments.sqlite_root))),
            changed_at=time.monotonic() if self._account_changes else self._account_changed_at,
            unix_offset=self._unix_offset,
            holds=self._books.holds,
            must_bind=not self._is_ready,
            unsaved=self._unsaved,
        )
        # The broker holds the lock too: should this process be killed, nobody takes the endpoint before the broker has
        # removed its sockets.
        try:
            self._broker = self._launcher.launch("codex_pool.broker", arguments, inherit=(self._lock.fd,))
        except StartError as error:
            if self._brokers == 0:
                raise
            self._replace_broker(str(error), time.monotonic())
            return
        self._brokers += 1
        self._unanswered_pings = 0
        self._told, self._is_reachable = {}, True
        self._watch(self._broker, self._on_broker)
        self._remember()
        self._tell_broker({"slots": self._core.states()})
        self._tell_problems()

    def _on_broker(self) -> None:
        assert self._broker is not None
        records, ended = self._broker.reports()
        now = time.monotonic()
        if records:
            self._unanswered_pings = 0
        for record in records:
            match record:
                case {"event": "failed", "reason": str(reason)} if not self._is_ready:
                    self._failure = GiveUp(reason, ())
                case {"event": "ready"} if self._brokers > 1:
                    for child in self._workers.values():
                        child.tell({"broker": "new"})
                case {"event": "registered", "worker": str(worker)}:
                    self._on_registered(worker, now)
                case {"event": "pong", "registered": [*workers], "drained": [*drained]}:
                    # A report may have been lost.
                    for worker in {str(name) for name in workers}.difference(self._core.registered):
                        self._on_registered(worker, now)
                    for worker in drained:
                        self._apply(self._core.drained(str(worker), now))
                case {"event": "suspect", "worker": str(worker), "reason": str(reason)}:
                    self._apply(self._core.suspect(worker, reason))
                case {"event": "renew", "worker": str(worker), "reason": str(reason)}:
                    self._apply(self._core.renew(worker, reason, now))
                case {"event": "account", "changed_at": float(changed_at), "under_way": bool(under_way)}:
                    self._account_changed_at, self._account_changes = changed_at, under_way
                case {"event": "unsaved", "threads": dict(threads)}:
                    self._keep_unsaved(threads)
                case {"event": "saved"}:
                    self._unsaved.clear()
                case {"event": "reachable", "workers": bool(reachable)}:
                    self._is_reachable = reachable
                case {"event": "drained", "worker": str(worker)}:
                    self._apply(self._core.drained(worker, now))
        if ended:
            self._on_broker_ended(self._broker, now)

    def _keep_unsaved(self, threads: dict[str, Any]) -> None:
        for thread_id, record in threads.items():
            # Beyond the bound it is only known that what is written down of them does not hold any more.
            self._unsaved[thread_id] = record if len(self._unsaved) < MAX_UNSAVED else None

    def _on_registered(self, worker: str, now: float) -> None:
        """The broker knows the worker. It is not ready before: a client that comes at once is to find every worker."""
        self._restarts.useful()
        self._apply(self._core.ready(worker, now))

    def _on_broker_ended(self, broker: Child, now: float) -> None:
        self._unwatch(broker)
        self._broker = None
        self._replace_broker(f"the broker has ended, noticed by its sentinel: {_reap(broker)}", now)

    def _replace_broker(self, how: str, now: float) -> None:
        delay_s = self._restarts.died(now)
        if delay_s is None:
            what = f"the broker has died more than {MAX_DEATHS} times within {WINDOW_S:.0f} s"
            self._failure = GiveUp(f"{what}, before any worker could register with it: {how}", ())
            _log.error(f"giving up: {self._failure.reason}")
            return
        _log.warning(f"{how}; it is replaced in {delay_s:g} s")
        self._broker_due = now + delay_s

    def _start_account(self) -> None:
        now = time.monotonic()
        if self._account in self._selector.get_map():
            self._selector.unregister(self._account)
        try:
            child = self._account.start(now)
        except StartError as error:
            _log.warning(
                f"the holder of the account cannot be started: {error}; again in {self._account.died(now):g} s"
            )
            return
        self._watch(child, self._on_account)
        self._remember()

    def _on_account(self) -> None:
        child = self._account.child
        assert child is not None
        records, ended = child.reports()
        if records:
            self._account.heard()
        if ended:
            self._unwatch(child)
            delay_s = self._account.died(time.monotonic())
            _log.warning(f"the holder of the account has ended: {_reap(child)}; it is replaced in {delay_s:g} s")

    def _start_ingress(self) -> None:
        now = time.monotonic()
        try:
            child = self._ingress.start(now)
        except StartError as error:
            _log.warning(f"the ingress cannot be started: {error}; again in {self._ingress.died(now):g} s")
            return
        self._watch(child, self._on_ingress)
        self._remember()

    def _on_ingress(self) -> None:
        child = self._ingress.child
        assert child is not None
        records, ended = child.reports()
        for record in records:
            self._ingress.heard()
            match record:
                case {"event": "failed", "reason": str(reason)} if not self._ingress.was_ready:
                    self._failure = GiveUp(reason, ())
                case {"event": "ready"}:
                    self._ingress.was_ready = True
                    self._report_ready()
        if ended:
            self._unwatch(child)
            delay_s = self._ingress.died(time.monotonic())
            _log.warning(f"the ingress has ended: {_reap(child)}; it is replaced in {delay_s:g} s")

    def _report_ready(self) -> None:
        """The pool is ready once its workers are, and its clients over TCP can come in."""
        if self._is_ready and self._ingress.was_ready:
            self._reports.add({"event": "ready", "endpoint": self._arguments.endpoint})

    def _spawn_worker(self, spawn: Spawn) -> None:
        arguments = self._arguments
        environ = {**arguments.environ, **self._account.environ({**os.environ, **arguments.environ})}
        try:
            home = self._homes.take(spawn.slot)
        except OSError as error:
            self._no_home(spawn, error)
            return
        self._problems.solved("SQLite homes", time.monotonic())
        started = WorkerArguments(
            slot=spawn.slot,
            worker=spawn.worker,
            endpoint=self._workers_endpoint,
            argv=with_sqlite_home(arguments.argv, home) if arguments.configurable else arguments.argv,
            cwd=arguments.cwd,
            environ={**environ, "CODEX_SQLITE_HOME": str(home)},
            initialize=arguments.initialize,
            turn_idle_limit_s=arguments.turn_idle_limit_s,
            turn_wall_limit_s=arguments.turn_wall_limit_s,
        )
        try:
            # Should this process be killed, no other pool takes the home before the worker is gone.
            child = self._launcher.launch("codex_pool.worker", started, inherit=(self._homes.lock_of(home),))
        except StartError as error:
            # The machine may have room for it later.
            self._homes.give_back(home)
            self._worker_ended(spawn.worker, str(error), (), error.kind)
            return
        self._used_homes[spawn.worker] = home
        self._workers[spawn.worker] = child
        self._watch(child, lambda: self._on_worker(spawn.worker))
        self._remember()

    def _no_home(self, spawn: Spawn, error: OSError) -> None:
        """A worker has no directory for its databases. That is the disk's fault and says nothing of workers: it ends
        no pool that has worked."""
        now = time.monotonic()
        reason = f"the directory for a worker's databases cannot be used: {error.filename}: {error.strerror}"
        self._problems.failed("SQLite homes", reason, now)
        jitter = random.random()
        self._apply(self._core.exited(spawn.worker, reason, (), now, jitter=jitter, counts=not self._is_ready))

    def _log_ready(self, line: str) -> None:
        """Log it, but during the start only once the parent has found the pool usable: else an error is all it says."""
        if self._ready_lines is None:
            _log.info(line)
        else:
            self._ready_lines.append(line)

    def _accepted(self) -> None:
        """The parent takes the pool for started."""
        lines, self._ready_lines = self._ready_lines, None
        for line in lines or ():
            _log.info(line)

    def _on_worker(self, worker: str) -> None:
        child = self._workers[worker]
        records, ended = child.reports()
        for record in records:
            match record:
                case {"event": "ready", "app_server_pid": int(pid)}:
                    self._log_ready(f"{worker} is ready (pid {child.pid}, app-server {pid})")
                    if (process := processes.identify(pid)) is not None:
                        self._app_servers[worker] = process
                        self._remember()
                case {"event": "memory", "memory_bytes": int(memory_bytes)}:
                    self._apply(self._core.memory(worker, memory_bytes, time.monotonic()))
                case {"event": "load", "turns": int(turns), "threads": int(threads), "running": int(running)}:
                    now = time.monotonic()
                    self._apply(self._core.load(worker, turns=turns, threads=threads, running=running, now=now))
        if ended:
            self._on_worker_ended(worker, child)

    def _on_worker_ended(self, worker: str, child: Child) -> None:
        self._unwatch(child)
        del self._workers[worker]
        self._app_servers.pop(worker, None)
        how = _reap(child)
        reported = child.last_report if child.last_report.get("event") == "exit" else {}
        reason = str(reported.get("reason", how))
        # Fence: what the worker could not end itself is ended before anybody hears of its death.
        swept = processes.sweep(os.getpid(), spare=self._living())
        processes.reap_orphans(self._living())
        _log.warning(f"{worker} has ended, noticed by its sentinel: {reason}; {len(swept)} processes swept")
        stderr = tuple(str(line) for line in reported.get("stderr", ()))
        for line in stderr[-5:]:
            _log.warning(f"{worker} stderr: {line}")
        self._homes.give_back(self._used_homes.pop(worker))
        kind = reported.get("kind")
        self._worker_ended(worker, reason, stderr, None if kind is None else str(kind))

    def _worker_ended(self, worker: str, reason: str, stderr: tuple[str, ...], kind: str | None) -> None:
        self._apply(self._core.exited(worker, reason, stderr, time.monotonic(), jitter=random.random(), kind=kind))

    def _living(self) -> frozenset[int]:
        children = [*self._workers.values(), self._broker, self._account.child, self._ingress.child]
        return frozenset(child.pid for child in children if child is not None)

    # Effects.

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Spawn():
                    self._spawn_worker(effect)
                case Kill():
                    _log.warning(f"killing {effect.worker}: {effect.reason}")
                    self._workers[effect.worker].kill()
                case Drain():
                    _log.info(f"recycling {effect.worker}, which finishes what it runs: {effect.reason}")
                    self._tell_broker({"drain": effect.worker})
                case Stop():
                    _log.info(f"{effect.worker} has nothing to do any more, and is asked to stop")
                    self._workers[effect.worker].tell({"stop": "acknowledged"})
                case TellLost():
                    self._tell_broker({"lost": effect.worker, "reason": effect.reason})
                case Changed():
                    states = self._core.states()
                    self._tell_broker({"slots": states})
                    self._reports.add({"event": "slots", "slots": states})
                case PoolReady():
                    self._is_ready = True
                    self._report_ready()
                case GiveUp():
                    _log.error(f"giving up: {effect.reason}")
                    self._failure = effect

    def _tell_broker(self, record: dict[str, Any]) -> None:
        if self._broker is not None:
            self._broker.tell(record)

    # The end.

    def _stop(self) -> None:
        """Workers and the holder of the account, then the broker, then whatever is left below this process."""
        begun = time.monotonic()
        holder = [self._account.child] if self._account.child is not None else []
        for child in (*self._workers.values(), *holder):
            child.close_stdin()
        _await_ends([*self._workers.values()], WORKERS_STOP_LIMIT_S)
        _await_ends(holder, begun + HOLDER_STOP_LIMIT_S - time.monotonic())
        self._account.close()
        if self._broker is not None:
            self._broker.close_stdin()
            _await_ends([self._broker], 1.0)
        if self._ingress.child is not None:
            # After the broker, whose last words it passes on.
            self._ingress.child.close_stdin()
            _await_ends([self._ingress.child], 1.0)
        self._ingress.close()
        processes.sweep(os.getpid())
        self._selector.close()


def _reap(child: Child) -> str:
    """How a child ended whose stdout has; killed if that was only closed."""
    how = child.reap(1.0)
    if how is None:
        child.kill()
        how = child.reap(5.0) or "it could not be reaped"
    return how


def _await_ends(children: list[Child], timeout_s: float) -> None:
    """Let children end that were asked to; what they have to say is read, so that it does not hold them up."""
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child, selectors.EVENT_READ, child)
        while selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                if key.data.reports()[1]:
                    selector.unregister(key.fileobj)
        for key in list(selector.get_map().values()):
            key.data.kill()
    for child in children:
        _reap(child)


def main() -> None:
    """Entry of the supervisor process."""
    log.begin("supervisor", *sys.argv[1:2])
    processes.become_subreaper()
    arguments = start.decode_arguments(start.read_line(0), SupervisorArguments)
    reports = Reports()
    try:
        code = Supervisor(arguments, LocalLauncher(*sys.argv[1:2]), reports).run()
    except (EndpointTakenError, endpoints.EndpointError, StartError, OSError) as error:
        kind = error.kind if isinstance(error, StartError) else None
        reports.last({"event": "failed", "reason": str(error), "stderr": [], "kind": kind})
        code = 1
    sys.exit(code)
