"""Parts of a supervisor that have state, as one value.

They are made of its start arguments, or of the state that the program before has handed over; theirs is handed over to
the program that comes next.
"""

from __future__ import annotations

import logging
import os
import selectors
import time
from pathlib import Path
from typing import NamedTuple

from codex_app_server._protocol.framing import LineSplitter

from ..protocol import endpoints
from ..runtime.problems import Problems
from .arguments import SupervisorArguments
from .bookkeeping import Bookkeeping
from .broker_child import BrokerProcess
from .child_process import Reports
from .children import Children
from .codex_upgrades import CodexUpgrades
from .core import SupervisorCore
from .gateway_child import GatewayProcess
from .handover import VERSION, Handover, KeptLoop, bytes_of, text_of
from .ingress_child import IngressProcess
from .launchers import Launcher
from .lock import EndpointLock
from .reload import Configuration
from .self_upgrade import SelfUpgrade, running_version
from .steering import Steering
from .system_skills import SystemSkills
from .token_holder import AccountHolder
from .tracer_child import TracerProcess
from .worker_children import WorkerProcesses

_log = logging.getLogger(__name__)


class Paths(NamedTuple):
    """Sockets of an endpoint: of clients, of workers, of ingress and gateway (`link`), and of the tracer."""

    clients: Path
    workers: Path
    link: Path
    tracer: Path


def paths_of(endpoint: str) -> Paths:
    """Return the paths of an endpoint's sockets. Raises EndpointError for one that is too long."""
    path = endpoints.ipc_path(endpoint)
    return Paths(path, *(endpoints.ipc_path(f"ipc://{path.with_suffix(suffix)}") for suffix in (".w", ".i", ".t")))


class Parts(NamedTuple):
    """See the module's docstring. `parent`: the begin of a line of the parent; `reports`: what it has not read.

    `skills`: None for a command that is not codex.
    """

    core: SupervisorCore
    skills: SystemSkills | None
    workers: WorkerProcesses
    broker: BrokerProcess
    account: AccountHolder
    ingress: IngressProcess
    gateway: GatewayProcess
    tracer: TracerProcess
    upgrades: CodexUpgrades
    self_upgrade: SelfUpgrade
    steering: Steering
    configuration: Configuration
    children: Children
    bookkeeping: Bookkeeping
    lock: EndpointLock
    parent: LineSplitter
    reports: Reports

    def state(self, arguments: SupervisorArguments) -> Handover:
        """Return the state now, for the program that comes next."""
        unsent, waiting = self.reports.kept()
        loaded_at, problem, restart = self.configuration.kept()
        lock, name = self.lock.kept()
        return Handover(
            version=VERSION,
            from_version=running_version(),
            arguments=arguments,
            core=self.core.kept(),
            workers=self.workers.kept(),
            broker=self.broker.kept(),
            account=self.account.kept(),
            ingress=self.ingress.kept(),
            gateway=self.gateway.kept(),
            tracer=self.tracer.kept(),
            upgrade=self.upgrades.kept(),
            mode=self.steering.mode,
            loop=KeptLoop(
                held=text_of(self.parent.rest()),
                unsent=unsent,
                waiting=waiting,
                loaded_at=loaded_at,
                problem=problem,
                restart=restart,
                lost_lines=self.children.lost_before,
                upgrades=self.self_upgrade.count,
            ),
            lock=lock,
            name=name,
        )

    def restore(self, taken: Handover) -> None:
        """Go on with a state. Holder, ingress, tracer, workers and lock were made of it, with its descriptors."""
        self.core.restore(taken.core)
        self.steering.mode = taken.mode
        self.upgrades.restore(taken.upgrade)
        self.configuration.restore(taken.loop.loaded_at, taken.loop.problem, taken.loop.restart)
        self.parent.feed(bytes_of(taken.loop.held))
        self.reports.restore(taken.loop.unsent, taken.loop.waiting)
        self.children.lost_before = taken.loop.lost_lines
        self.gateway.restore(taken.gateway)
        self.broker.restore(taken.broker)


def assemble(
    arguments: SupervisorArguments,
    launcher: Launcher,
    reports: Reports,
    selector: selectors.BaseSelector,
    problems: Problems,
    taken: Handover | None,
) -> Parts:
    """Take the endpoint's lock, and make the parts; nothing is started yet. `taken`: the state of the program before.

    Raises EndpointTakenError, EndpointError, and OSError for a lock file that cannot be opened.
    """
    paths = paths_of(arguments.endpoint)
    lock = _locked(paths.clients, taken)
    try:
        return _assembled(
            arguments, launcher, reports, selector, Bookkeeping(lock, problems, _log.warning), lock, taken
        )
    except endpoints.EndpointError:
        lock.release()
        raise


def _locked(path: Path, taken: Handover | None) -> EndpointLock:
    if taken is not None:
        return EndpointLock.taken_over(path, taken.lock, taken.name)
    endpoints.make_private(path.parent)
    return EndpointLock(path)


def _assembled(
    arguments: SupervisorArguments,
    launcher: Launcher,
    reports: Reports,
    selector: selectors.BaseSelector,
    bookkeeping: Bookkeeping,
    lock: EndpointLock,
    taken: Handover | None,
) -> Parts:
    options, paths, environ = arguments.options, paths_of(arguments.endpoint), {**os.environ, **arguments.environ}
    skills = SystemSkills(arguments.sqlite_root, arguments.argv) if arguments.configurable else None
    one_first = skills is not None and not skills.are_installed
    core = SupervisorCore(options, nonce=os.urandom(3).hex(), one_first=one_first)
    steering = Steering(core, can_stop=arguments.is_daemon, drain_timeout_s=options.drain_timeout_s)
    upgrades = CodexUpgrades(arguments, core, steering, launcher)
    # The state is taken while the pool runs, with all parts.
    self_upgrade = SelfUpgrade(launcher, core, lambda: parts.state(arguments))
    account = AccountHolder(arguments.auth_json, environ, launcher, None if taken is None else taken.account)
    ingress = IngressProcess(
        options.listen, options.keys, str(paths.link), launcher, None if taken is None else taken.ingress
    )
    tracer_path = str(paths.tracer) if options.traces else ""
    tracer = TracerProcess(tracer_path, launcher, None if taken is None else taken.tracer)
    at = f"ipc://{paths.workers}"
    workers = WorkerProcesses(arguments, at, launcher, None if taken is None else taken.workers, tracer=tracer.path)
    gateway = GatewayProcess(arguments.listeners, str(paths.link), arguments.endpoint, launcher)
    broker = BrokerProcess(arguments, at, str(paths.link), ingress=ingress, gateway=gateway, launcher=launcher)
    others = (ingress, gateway, upgrades.canary, self_upgrade.check, tracer)
    children = Children(selector, bookkeeping, broker=broker, workers=workers, holder=account, others=others)
    upgrades.use(children, workers)
    self_upgrade.use(children, broker, (gateway, ingress, account, tracer), options.log_file)
    parts = Parts(
        core=core,
        skills=skills,
        workers=workers,
        broker=broker,
        account=account,
        ingress=ingress,
        gateway=gateway,
        tracer=tracer,
        upgrades=upgrades,
        self_upgrade=self_upgrade,
        steering=steering,
        configuration=Configuration(arguments.source, time.monotonic()),
        children=children,
        bookkeeping=bookkeeping,
        lock=lock,
        parent=LineSplitter(),
        reports=reports,
    )
    return parts
