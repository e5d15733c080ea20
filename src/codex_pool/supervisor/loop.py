"""The supervisor process: children, the endpoint's lock and the death pipe, in one loop around `core`.

    python -m codex_pool.supervisor   start arguments: one JSON line on stdin, which then stays open as death pipe;
                                      then commands of the parent: {"command": "started"} once it takes the pool for
                                      started, {"command": "drain_to_stop"}
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
from typing import Any

import msgspec

from codex_app_server._protocol.framing import LineSplitter, LongLine
from codex_app_server.errors import StartError

from ..protocol import endpoints
from ..runtime import startup
from ..runtime.problems import Problems
from . import reload
from .arguments import SupervisorArguments
from .bookkeeping import LOOK_EVERY_S, Bookkeeping
from .broker_child import BrokerProcess
from .child_process import Reports
from .children import Children
from .codex_upgrades import CodexUpgrades
from .commands import CommandError, Commands, Params, Reply, Result
from .core import SupervisorCore
from .effects import Changed, Drain, Effect, GiveUp, Kill, PoolReady, ReportLost, Spawn, Stop, StopAsked
from .gateway_child import GatewayProcess
from .handover import Handover
from .ingress_child import IngressProcess
from .launchers import Launcher
from .lock import EndpointLock
from .parts import Parts
from .reload import Configuration
from .restarted_child import Entrance, RestartedChild
from .self_upgrade import SelfUpgrade
from .steering import Steering
from .system_skills import SystemSkills
from .token_holder import AccountHolder
from .tracer_child import TracerProcess
from .worker_children import Ended, WorkerProcesses

# Children are asked for a sign of life.
SAMPLE_EVERY_S = 2.0
# Those of `steering`.
COMMANDS = ("pause", "resume", "drain", "scale", "recycle", "stop")

_log = logging.getLogger(__name__)


class Supervisor:
    """See the module's docstring."""

    def __init__(
        self, arguments: SupervisorArguments, launcher: Launcher, reports: Reports, taken: Handover | None = None
    ) -> None:
        self._arguments = arguments
        # The state of the program that this process was before; None for a supervisor that starts a pool.
        self._taken = taken
        self._launcher = launcher
        self._reports = reports
        # A command that is not codex has none.
        self._skills = SystemSkills(arguments.sqlite_root, arguments.argv) if arguments.configurable else None
        one_first = self._skills is not None and not self._skills.are_installed
        self._core = SupervisorCore(arguments.options, nonce=os.urandom(3).hex(), one_first=one_first)
        self._steering = Steering(
            self._core, can_stop=arguments.is_daemon, drain_timeout_s=arguments.options.drain_timeout_s
        )
        self._commands = Commands()
        for name in COMMANDS:
            self._commands.add(name, functools.partial(self._steer, name))
        self._upgrades = CodexUpgrades(arguments, self._core, self._steering, launcher)
        self._commands.add("upgrade", self._on_upgrade)
        self._self_upgrade = SelfUpgrade(launcher, self._core, self._handover)
        self._commands.add("upgradeSelf", self._on_upgrade_self)
        self._configuration = Configuration(arguments.source, time.monotonic())
        self._commands.add("reload", self._reload)
        self._parent = LineSplitter()
        self._selector = selectors.DefaultSelector()
        self._ready_lines: list[str] | None = []
        self._sample_at = 0.0
        self._look_at = 0.0
        self._problems = Problems(_log.warning)
        self._failure: GiveUp | None = None
        self._is_ready = False
        self._codex_pool_row: dict[str, Any] = {}
        # The gateway, as the broker knows it.
        self._gateway_row: dict[str, Any] = {}
        # The tracer, as the broker knows it.
        self._tracer_row: dict[str, Any] = {}
        self._account = AccountHolder(
            arguments.auth_json,
            {**os.environ, **arguments.environ},
            launcher,
            None if taken is None else taken.account,
        )
        self._signals = startup.signal_descriptor(signal.SIGTERM, signal.SIGINT)
        startup.survive_hang_up()

    def run(self) -> int:
        """Run the pool until its parent is gone or it gives up; the exit code."""
        path = endpoints.ipc_path(self._arguments.endpoint)
        workers_path = endpoints.ipc_path(f"ipc://{path.with_suffix('.w')}")
        link_path = endpoints.ipc_path(f"ipc://{path.with_suffix('.i')}")
        tracer_path = endpoints.ipc_path(f"ipc://{path.with_suffix('.t')}")
        taken = self._taken
        if taken is None:
            endpoints.make_private(path.parent)
            self._lock = EndpointLock(path)
        else:
            self._lock = EndpointLock.taken_over(path, taken.lock, taken.name)
        self._bookkeeping = Bookkeeping(self._lock, self._problems, _log.warning)
        if self._lock.swept:
            _log.info(f"swept what an earlier pool on this endpoint has left: {', '.join(self._lock.swept)}")
        try:
            options = self._arguments.options
            self._ingress = IngressProcess(
                options.listen,
                options.keys,
                str(link_path),
                self._launcher,
                None if taken is None else taken.ingress,
            )
            self._tracer = TracerProcess(
                str(tracer_path) if options.traces else "", self._launcher, None if taken is None else taken.tracer
            )
        except endpoints.EndpointError:
            self._lock.release()
            raise
        self._workers = WorkerProcesses(
            self._arguments,
            f"ipc://{workers_path}",
            self._launcher,
            None if taken is None else taken.workers,
            tracer=self._tracer.path,
        )
        self._gateway = GatewayProcess(
            self._arguments.listeners, str(link_path), self._arguments.endpoint, self._launcher
        )
        self._restarted: tuple[RestartedChild, ...] = (self._account, self._ingress, self._gateway, self._tracer)
        self._broker = BrokerProcess(
            self._arguments,
            f"ipc://{workers_path}",
            str(link_path),
            ingress=self._ingress,
            gateway=self._gateway,
            launcher=self._launcher,
        )
        self._children = Children(
            self._selector,
            self._bookkeeping,
            broker=self._broker,
            workers=self._workers,
            holder=self._account,
            others=(
                self._ingress,
                self._gateway,
                self._upgrades.canary,
                self._self_upgrade.check,
                self._tracer,
            ),
        )
        self._parts = Parts(
            core=self._core,
            workers=self._workers,
            broker=self._broker,
            account=self._account,
            ingress=self._ingress,
            gateway=self._gateway,
            tracer=self._tracer,
            upgrades=self._upgrades,
            steering=self._steering,
            configuration=self._configuration,
            children=self._children,
            lock=self._lock,
            parent=self._parent,
            reports=self._reports,
        )
        self._upgrades.use(self._children, self._workers)
        self._self_upgrade.use(
            self._children,
            self._broker,
            (self._gateway, self._ingress, self._account, self._tracer),
            self._arguments.options.log_file,
        )
        try:
            if taken is None and self._is_over():
                return 0
            if self._account.is_asleep:
                self._selector.register(
                    self._account, selectors.EVENT_READ, lambda: self._account.wake(time.monotonic())
                )
            if taken is not None:
                self._restore(taken)
                self._loop()
                return self._ended()
            self._account.look(time.monotonic())
            if self._account.due <= time.monotonic():
                self._start(self._account)
            self._start_broker()
            self._start_due(time.monotonic())
            self._apply(self._core.start(time.monotonic()))
            self._loop()
        finally:
            self._children.stop()
            self._selector.close()
            # The broker removes its sockets itself, unless it was killed.
            if self._bookkeeping.holds:
                for leftover in (path, workers_path, link_path):
                    with contextlib.suppress(OSError):
                        leftover.unlink(missing_ok=True)
            self._workers.close()
            self._lock.release()
        return self._ended()

    def _ended(self) -> int:
        """Report why the pool has given up, if it has; the exit code."""
        if self._failure is not None:
            self._reports.last({"event": "failed", **dataclasses.asdict(self._failure)})
            return 1
        return 0

    def _handover(self) -> Handover:
        """The state of this supervisor, for the program that is installed now."""
        return self._parts.state(self._arguments, upgrades=self._self_upgrade.count)

    def _restore(self, taken: Handover) -> None:
        """Go on with a pool that this process has run as another program."""
        self._parts.restore(taken)
        self._is_ready, self._ready_lines = True, None
        if self._broker.child is not None:
            self._broker.child.watch(self._selector, self._on_broker)
        for each in self._restarted:
            if each.child is not None:
                each.child.watch(self._selector, functools.partial(self._on_restarted, each))
        for name, child in self._workers.children.items():
            child.watch(self._selector, functools.partial(self._on_worker, name))
        self._children.remember()
        self._self_upgrade.taken_over(taken.loop.upgrades, frozenset(self._workers.children), taken.from_version)

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
            self._start_due(now)
            if now >= self._look_at:
                self._look(now)
            if now >= self._sample_at:
                self._sample(now)
            if not self._broker.is_reachable:
                self._core.unreachable(now)
            # First: nothing more is started of an upgrade that has failed.
            self._apply(self._upgrades.step(now))
            self._apply(self._self_upgrade.step(now))
            self._show_codex_pool()
            self._apply(self._core.tick(now))
            self._upgrades.show(self._broker)

    def _wait_s(self) -> float:
        deadlines = [self._sample_at, self._look_at, self._core.next_deadline]
        deadlines.append(self._broker.due if self._broker.child is None else None)
        deadlines += [each.due for each in self._restarted if each.child is None]
        deadlines += [self._upgrades.canary.until, self._self_upgrade.until]
        return max(0.0, min(at for at in deadlines if at is not None) - time.monotonic())

    def _look(self, now: float) -> None:
        """Make again what of the endpoint was removed."""
        self._look_at = now + LOOK_EVERY_S
        self._bookkeeping.look(now)
        self._send_problems()

    def _send_problems(self) -> None:
        self._broker.send_problems(self._bookkeeping.holds, self._problems.rows())

    def _sample(self, now: float) -> None:
        """Poll for what is not reported unasked."""
        self._sample_at = now + SAMPLE_EVERY_S
        self._account.look(now)
        for child in self._workers.children.values():
            child.flush()
        self._reports.flush()
        for each in self._restarted:
            if each.ping():
                _log.warning(f"killing the {each.name}: it does not answer")
        self._broker.ping(self._children.lost_lines(), SAMPLE_EVERY_S)

    def _start_broker(self) -> None:
        self._bookkeeping.look(time.monotonic())
        try:
            child = self._broker.start(
                self._lock.fd,
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
        self._send_slots()
        self._send_mode()
        self._send_configuration()
        self._upgrades.show(self._broker, again=True)
        self._show_codex_pool(again=True)
        self._show_gateway(again=True)
        self._show_tracer(again=True)
        self._send_problems()

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

    def _start_due(self, now: float) -> None:
        """Start the children that are replaced alone, where it is time."""
        for each in self._restarted:
            if each.child is None and now >= each.due:
                self._start(each)
                self._show_gateway()
                self._show_tracer()

    def _start(self, process: RestartedChild) -> None:
        if process is self._account and self._account in self._selector.get_map():
            self._selector.unregister(self._account)
        now = time.monotonic()
        try:
            child = process.start(now)
        except StartError as error:
            _log.warning(f"the {process.name} cannot be started: {error}; again in {process.died(now):g} s")
            return
        self._children.watch(child, lambda: self._on_restarted(process))

    def _on_restarted(self, process: RestartedChild) -> None:
        child = process.child
        assert child is not None
        records, ended = child.reports()
        for record in records:
            process.take(record)
            if isinstance(process, Entrance) and record.get("event") == "ready":
                self._report_ready()
        if isinstance(process, Entrance) and process.failure:
            self._failure = GiveUp(process.failure, ())
        if ended:
            how = self._children.ended(child)
            delay_s = process.died(time.monotonic())
            _log.warning(f"the {process.name} has ended: {how}; it is replaced in {delay_s:g} s")
        self._show_gateway()
        self._show_tracer()

    def _show_gateway(self, *, again: bool = False) -> None:
        """Send the broker the state of the gateway, for status, if it has changed or is to be sent `again`."""
        row = self._gateway.row()
        if self._gateway.is_wanted and (again or row != self._gateway_row):
            self._gateway_row = row
            self._broker.send({"gateway": row})

    def _show_tracer(self, *, again: bool = False) -> None:
        """Send the broker the state of the tracer, for status and metrics, as `_show_gateway` does."""
        row = self._tracer.row()
        if row is not None and (again or row != self._tracer_row):
            self._tracer_row = row
            self._broker.send({"tracer": row})

    def _report_ready(self) -> None:
        """The pool is ready once its workers are, and its clients over TCP and of the gateway can come in."""
        if self._is_ready and self._ingress.was_ready and self._gateway.was_ready:
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
        return {**arguments.environ, **self._account.environ({**os.environ, **arguments.environ})}

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

    # The operator.

    def _on_parent(self, chunk: bytes) -> None:
        """Carry out commands of the parent."""
        for line in self._parent.feed(chunk):
            match msgspec.json.decode(b"{}" if isinstance(line, LongLine) else line):
                case {"command": "started"}:
                    self._accepted()
                case {"command": "drain_to_stop"}:
                    self._steering.drain_to_stop()
                    self._send_mode()
                case {"command": "reload"}:
                    with contextlib.suppress(CommandError):
                        # It is in the log.
                        self._reload({}, None)

    def _steer(self, name: str, params: Params, _: Reply | None) -> Result:
        """Carry out a command of `steering`. Raises CommandError."""
        try:
            result, effects = self._steering.command(name, params, time.monotonic())
        except CommandError as error:
            _log.info(f"{name} is refused: {error}")
            raise
        _log.info(f"{name}: {result['message']}")
        # First, so that no turn begins which the command has wait.
        self._send_mode()
        self._apply(effects)
        return result

    def _reload(self, _: Params, reply: Reply | None) -> Result:
        """Read the configuration again, and take over what a pool that runs can. Raises CommandError."""
        try:
            changes = self._configuration.read()
            if workers := changes.live.get("workers"):
                self._steer("scale", {"workers": workers[1]}, reply)
        except (reload.ReloadError, CommandError) as error:
            message = f"the configuration was not reloaded, and the one before stays in force: {error}"
            _log.warning(message)
            self._configuration.failed(str(error))
            self._send_configuration()
            raise CommandError(message) from None
        options = self._arguments.options = reload.with_changes(self._arguments.options, changes)
        now = time.monotonic()
        self._configuration.apply(changes, now)
        self._arguments.source = self._configuration.source
        self._broker.send({"limits": msgspec.to_builtins(reload.broker_limits(options))})
        limits = msgspec.to_builtins(reload.turn_limits(options))
        for child in self._workers.children.values():
            child.send({"limits": limits})
        self._apply(self._core.set_options(options, now))
        self._send_configuration()
        result = reload.result_of(changes)
        _log.info(f"the configuration was read again: {result['message']}")
        return result

    def _on_upgrade(self, params: Params, _: Reply | None) -> Result:
        """Begin an upgrade. Raises CommandError."""
        if self._self_upgrade.is_under_way:
            raise CommandError("an upgrade of codex-pool is under way; repeat this once it is over")
        result = self._upgrades.take(params, self._environ(), time.monotonic())
        self._upgrades.show(self._broker)
        return result

    def _on_upgrade_self(self, _: Params, __: Reply | None) -> Result:
        """Begin an upgrade of codex-pool. Raises CommandError."""
        if self._upgrades.is_under_way:
            raise CommandError("an upgrade of codex is under way; repeat this once it is over")
        if self._steering.mode.stopping:
            raise CommandError("the pool is stopping")
        result = self._self_upgrade.ask()
        # Before the answer: a client that asks for the status then must not be shown the upgrade before.
        self._show_codex_pool()
        return result

    def _show_codex_pool(self, *, again: bool = False) -> None:
        """Send the broker the version that runs, for status, if it has changed or is to be sent `again`."""
        row = self._self_upgrade.row
        if again or row != self._codex_pool_row:
            self._codex_pool_row = row
            self._broker.send({"codex_pool": row})

    def _send_configuration(self) -> None:
        if row := self._configuration.row:
            self._broker.send({"configuration": row})

    def _send_mode(self) -> None:
        self._broker.send({"mode": msgspec.to_builtins(self._steering.mode)})

    def _send_slots(self) -> None:
        core = self._core
        self._broker.send({"slots": core.states(), "workers": core.wanted, "replaced": core.replaced})

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
                    if self._steering.forget():
                        self._send_mode()
                case Changed():
                    self._send_slots()
                    self._reports.add({"event": "slots", "slots": self._core.states()})
                case PoolReady():
                    self._is_ready = True
                    if self._skills is not None:
                        self._skills.note()
                    self._report_ready()
                case StopAsked():
                    self._reports.add({"event": "stop", "at_once": effect.at_once})
                case GiveUp():
                    _log.error(f"giving up: {effect.reason}")
                    self._failure = effect
