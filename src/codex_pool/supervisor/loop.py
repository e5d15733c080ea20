"""The supervisor process: children, the endpoint's lock and the death pipe, in one loop around `core`.

    python -m codex_pool.supervisor   start arguments: one JSON line on stdin, which then stays open as death pipe;
                                      then commands of the parent: {"command": "started"} once it takes the pool for
                                      started, {"command": "drain_to_stop"}, {"command": "reload"}
                                      stdout: JSON lines for its parent - ready, slots, draining, stop, failed
                                      stderr: log; the broker and the workers write there too

It has no ZeroMQ: it talks to its children over their own pipes, in JSON lines, as `broker_child`, `worker_children`,
`ingress_child`, `gateway_child` and `token_holder` describe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import random
import select
import selectors
import signal
import time

import msgspec

from codex_app_server._protocol.framing import LongLine
from codex_app_server.errors import StartError

from ..runtime import startup
from ..runtime.problems import Problems
from .arguments import SupervisorArguments
from .bookkeeping import LOOK_EVERY_S
from .child_process import Reports
from .effects import Changed, Drain, Effect, GiveUp, Kill, PoolReady, ReportLost, Spawn, Stop, StopAsked
from .handover import Handover
from .launchers import Launcher
from .operator_commands import OperatorCommands
from .parts import Parts, assemble, paths_of
from .restarted_children import RestartedChildren
from .status_rows import StatusRows
from .worker_children import Ended

# Children are asked for a sign of life.
SAMPLE_EVERY_S = 2.0

_log = logging.getLogger(__name__)


class Supervisor:
    """See the module's docstring."""

    def __init__(
        self, arguments: SupervisorArguments, launcher: Launcher, reports: Reports, taken: Handover | None = None
    ) -> None:
        self._arguments = arguments
        self._launcher = launcher
        self._reports = reports
        # The state of the program that this process was before; None for a supervisor that starts a pool.
        self._taken = taken
        self._selector = selectors.DefaultSelector()
        self._problems = Problems(_log.warning)
        self._ready_lines: list[str] | None = []
        self._sample_at = 0.0
        self._look_at = 0.0
        self._failure: GiveUp | None = None
        self._is_ready = False
        self._signals = startup.signal_descriptor(signal.SIGTERM, signal.SIGINT)
        startup.survive_hang_up()

    def run(self) -> int:
        """Run the pool until its parent is gone or it gives up; the exit code."""
        taken = self._taken
        self._use(assemble(self._arguments, self._launcher, self._reports, self._selector, self._problems, taken))
        try:
            if taken is None and self._is_over():
                return 0
            if taken is not None:
                self._restarted.wake_account_when_asked()
                self._restore(taken)
                self._loop()
                return self._ended()
            self._restarted.begin(time.monotonic())
            self._start_broker()
            self._restarted.start_due(time.monotonic())
            self._apply(self._core.start(time.monotonic()))
            self._loop()
        finally:
            self._children.stop()
            self._selector.close()
            # The broker removes its sockets itself, unless it was killed.
            if self._bookkeeping.holds:
                paths = paths_of(self._arguments.endpoint)
                for leftover in (paths.clients, paths.workers, paths.link):
                    with contextlib.suppress(OSError):
                        leftover.unlink(missing_ok=True)
            self._workers.close()
            self._parts.lock.release()
        return self._ended()

    def _use(self, parts: Parts) -> None:
        self._parts = parts
        self._core = parts.core
        self._broker = parts.broker
        self._workers = parts.workers
        self._children = parts.children
        self._bookkeeping = parts.bookkeeping
        self._upgrades = parts.upgrades
        self._rows = StatusRows(parts, self._problems)
        self._commands = OperatorCommands(self._arguments, parts, self._rows, apply=self._apply, environ=self._environ)
        self._restarted = RestartedChildren(
            parts, self._selector, self._rows, on_ready=self._report_ready, give_up=self._give_up
        )
        if parts.lock.swept:
            _log.info(f"swept what an earlier pool on this endpoint has left: {', '.join(parts.lock.swept)}")

    def _ended(self) -> int:
        """Report why the pool has given up, if it has; the exit code."""
        if self._failure is not None:
            self._reports.last({"event": "failed", **dataclasses.asdict(self._failure)})
            return 1
        return 0

    def _restore(self, taken: Handover) -> None:
        """Go on with a pool that this process has run as another program."""
        self._parts.restore(taken)
        self._is_ready, self._ready_lines = True, None
        if self._broker.child is not None:
            self._broker.child.watch(self._selector, self._on_broker)
        self._restarted.go_on()
        for name, child in self._workers.children.items():
            child.watch(self._selector, functools.partial(self._on_worker, name))
        self._children.remember()
        workers = frozenset(self._workers.children)
        self._parts.self_upgrade.taken_over(taken.loop.upgrades, workers, taken.from_version)

    def _is_over(self) -> bool:
        """Return whether the end was asked for before anything is started: the lock of an endpoint may take seconds."""
        readable, _, _ = select.select([0, self._signals], [], [], 0)
        return (0 in readable and not os.read(0, 4096)) or (
            self._signals in readable and startup.asks_to_end(self._signals)
        )

    def _loop(self) -> None:
        for fd in (0, self._signals):
            self._selector.register(fd, selectors.EVENT_READ)
        while self._failure is None:
            for key, _ in self._selector.select(self._wait_s()):
                if key.fileobj == self._signals:
                    if startup.asks_to_end(self._signals):
                        return
                    continue
                if key.fileobj == 0:
                    chunk = os.read(0, 4096)
                    if not chunk:
                        return
                    self._on_parent(chunk)
                    continue
                key.data()
            now = time.monotonic()
            if self._broker.child is None and self._failure is None and now >= self._broker.due:
                self._start_broker()
            self._restarted.start_due(now)
            if now >= self._look_at:
                self._look(now)
            if now >= self._sample_at:
                self._sample(now)
            if not self._broker.is_reachable:
                self._core.unreachable(now)
            # First: nothing more is started of an upgrade that has failed.
            self._apply(self._upgrades.step(now))
            self._apply(self._parts.self_upgrade.step(now))
            self._rows.send_codex_pool()
            self._apply(self._core.tick(now))
            self._upgrades.show(self._broker)

    def _wait_s(self) -> float:
        deadlines = [self._sample_at, self._look_at, self._core.next_deadline]
        deadlines.append(self._broker.due if self._broker.child is None else None)
        deadlines += self._restarted.deadlines()
        deadlines += [self._upgrades.canary.until, self._parts.self_upgrade.until]
        return max(0.0, min(at for at in deadlines if at is not None) - time.monotonic())

    def _look(self, now: float) -> None:
        """Make again what of the endpoint was removed."""
        self._look_at = now + LOOK_EVERY_S
        self._bookkeeping.look(now)
        self._rows.send_problems()

    def _sample(self, now: float) -> None:
        """Poll for what is not reported unasked."""
        self._sample_at = now + SAMPLE_EVERY_S
        self._restarted.sample(now)
        for child in self._workers.children.values():
            child.flush()
        self._reports.flush()
        self._broker.ping(self._children.lost_lines(), SAMPLE_EVERY_S)

    def _start_broker(self) -> None:
        self._bookkeeping.look(time.monotonic())
        try:
            child = self._broker.start(
                self._parts.lock.fd,
                expect=self._core.registered,
                slots=self._core.wanted,
                holds=self._bookkeeping.holds,
                must_bind=not self._is_ready,
            )
        except StartError as error:
            if self._broker.starts == 0:
                raise
            self._replace_broker(str(error))
            return
        self._children.watch(child, self._on_broker)
        self._rows.send_all()

    def _on_broker(self) -> None:
        child = self._broker.child
        assert child is not None
        records, ended = child.reports()
        now = time.monotonic()
        if records:
            self._broker.reported()
        for record in records:
            match record:
                case {"event": "failed", "reason": str(reason)} if not self._is_ready:
                    self._failure = GiveUp(reason, ())
                case {"event": "ready"} if self._broker.starts > 1:
                    for child_of_worker in self._workers.children.values():
                        child_of_worker.send({"broker": "new"})
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
                    self._broker.account_changed(changed_at, under_way)
                case {"event": "unsaved", "threads": dict(threads)}:
                    self._broker.keep_unsaved(threads)
                case {"event": "counts", "kept": dict(kept), "lost": list(lost)}:
                    self._broker.take_counts(kept, lost)
                case {"event": "saved"}:
                    self._broker.unsaved.clear()
                case {"event": "reachable", "workers": bool(reachable)}:
                    self._broker.is_reachable = reachable
                case {"event": "drained", "worker": str(worker)}:
                    self._apply(self._core.drained(worker, now))
                case {"event": "command", "id": int(number), "command": str(name), "params": dict(params)}:
                    self._commands.take(number, name, params, child.send)
                case {"event": "draining"}:
                    self._reports.add(record)
        if ended:
            self._replace_broker(f"the broker has ended, noticed by its sentinel: {self._children.ended(child)}")

    def _on_registered(self, worker: str, now: float) -> None:
        """The broker knows the worker. It is not ready before: a client that comes at once is to find every worker."""
        self._broker.useful()
        self._apply(self._core.ready(worker, now))

    def _replace_broker(self, how: str) -> None:
        problem = self._broker.died(how, time.monotonic())
        if problem is not None:
            _log.error(f"giving up: {problem}")
            self._failure = GiveUp(problem, ())

    def _give_up(self, failure: GiveUp) -> None:
        self._failure = failure

    def _report_ready(self) -> None:
        """The pool is ready once its workers are, and its clients over TCP and of the gateway can come in."""
        if self._is_ready and self._parts.ingress.was_ready and self._parts.gateway.was_ready:
            self._reports.add({"event": "ready", "endpoint": self._arguments.endpoint})

    def _spawn_worker(self, spawn: Spawn) -> None:
        environ = self._environ()
        try:
            home = self._workers.take_home(spawn.slot)
        except OSError as error:
            self._no_home(spawn, error)
            return
        self._problems.solved("SQLite homes", time.monotonic())
        try:
            child = self._workers.start(spawn.slot, spawn.worker, home, environ, self._upgrades.binary_of(spawn.build))
        except StartError as error:
            # The machine may have room for it later.
            self._worker_ended(spawn.worker, Ended(str(error), (), error.kind))
            return
        self._children.watch(child, lambda: self._on_worker(spawn.worker))

    def _environ(self) -> dict[str, str]:
        """The variables of app-servers that go on top of this process's own."""
        arguments = self._arguments
        return {**arguments.environ, **self._parts.account.environ({**os.environ, **arguments.environ})}

    def _no_home(self, spawn: Spawn, error: OSError) -> None:
        """A worker has no directory for its databases. That is the disk's fault and no fault of the worker: it ends
        no pool that has worked."""
        now = time.monotonic()
        reason = f"the directory for a worker's databases cannot be used: {error.filename}: {error.strerror}"
        self._problems.failed("SQLite homes", reason, now)
        jitter = random.random()
        self._apply(self._core.exited(spawn.worker, reason, (), now, jitter=jitter, counts=not self._is_ready))

    def _log_ready(self, line: str) -> None:
        """Log it; during the start once the parent finds the pool usable, so a failed start logs its error only."""
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
        child = self._workers.children[worker]
        records, ended = child.reports()
        for record in records:
            match record:
                case {"event": "ready", "app_server_pid": int(pid)}:
                    version = record.get("codex_version") or "of an unknown version"
                    self._log_ready(f"{worker} is ready (pid {child.pid}, app-server {pid}, codex {version})")
                    if self._workers.app_server_started(worker, pid):
                        self._children.remember()
                case {"event": "memory", "memory_bytes": int(memory_bytes)}:
                    self._apply(self._core.memory(worker, memory_bytes, time.monotonic()))
                case {"event": "load", "turns": int(turns), "threads": int(threads), "running": int(running)}:
                    now = time.monotonic()
                    self._apply(self._core.load(worker, turns=turns, threads=threads, running=running, now=now))
        if ended:
            how = self._children.ended(child)
            self._workers.remove(worker)
            self._worker_ended(worker, self._workers.ended(worker, child, how, self._children.living()))

    def _worker_ended(self, worker: str, ended: Ended) -> None:
        jitter = random.random()
        now = time.monotonic()
        self._broker.take_tally(worker, ended.tally)
        self._apply(self._core.exited(worker, ended.reason, ended.stderr, now, jitter=jitter, kind=ended.kind))

    # The parent.

    def _on_parent(self, chunk: bytes) -> None:
        """Carry out commands of the parent."""
        for line in self._parts.parent.feed(chunk):
            match msgspec.json.decode(b"{}" if isinstance(line, LongLine) else line):
                case {"command": "started"}:
                    self._accepted()
                case {"command": "drain_to_stop"}:
                    self._commands.drain_to_stop()
                case {"command": "reload"}:
                    self._commands.reload()

    # Effects.

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Spawn():
                    self._spawn_worker(effect)
                case Kill():
                    _log.warning(f"killing {effect.worker}: {effect.reason}")
                    self._workers.children[effect.worker].kill()
                case Drain():
                    what = "recycling" if effect.is_replaced else "draining"
                    _log.info(f"{what} {effect.worker}, which finishes what it runs: {effect.reason}")
                    self._broker.send({"drain": effect.worker})
                case Stop():
                    _log.info(f"{effect.worker} has nothing to do any more, and is asked to stop")
                    self._workers.children[effect.worker].send({"stop": "acknowledged"})
                case ReportLost():
                    self._broker.report_lost(effect.worker, effect.reason)
                    if self._parts.steering.forget():
                        self._rows.send_mode()
                case Changed():
                    self._rows.send_slots()
                    self._reports.add({"event": "slots", "slots": self._core.states()})
                case PoolReady():
                    self._is_ready = True
                    if self._parts.skills is not None:
                        self._parts.skills.note()
                    self._report_ready()
                case StopAsked():
                    self._reports.add({"event": "stop", "at_once": effect.at_once})
                case GiveUp():
                    _log.error(f"giving up: {effect.reason}")
                    self._failure = effect
