"""Parts of a supervisor that have state, as one value: what is handed over to the program that comes next."""

from __future__ import annotations

from typing import NamedTuple

from codex_app_server._protocol.framing import LineSplitter

from .arguments import SupervisorArguments
from .broker_child import BrokerProcess
from .child_process import Reports
from .children import Children
from .codex_upgrades import CodexUpgrades
from .core import SupervisorCore
from .gateway_child import GatewayProcess
from .handover import VERSION, Handover, KeptLoop, bytes_of, text_of
from .ingress_child import IngressProcess
from .lock import EndpointLock
from .reload import Configuration
from .self_upgrade import running_version
from .steering import Steering
from .token_holder import AccountHolder
from .tracer_child import TracerProcess
from .worker_children import WorkerProcesses


class Parts(NamedTuple):
    """See the module's docstring. `parent`: the begin of a line of the parent; `reports`: what it has not read."""

    core: SupervisorCore
    workers: WorkerProcesses
    broker: BrokerProcess
    account: AccountHolder
    ingress: IngressProcess
    gateway: GatewayProcess
    tracer: TracerProcess
    upgrades: CodexUpgrades
    steering: Steering
    configuration: Configuration
    children: Children
    lock: EndpointLock
    parent: LineSplitter
    reports: Reports

    def state(self, arguments: SupervisorArguments, *, upgrades: int) -> Handover:
        """The state now. `upgrades`: how often the process has become another program."""
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
                upgrades=upgrades,
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
