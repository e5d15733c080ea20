"""The broker as a child of the supervisor (see codex_pool.broker).

    to the broker      {"slots": [...], "workers": how many there are to be, "replaced"}
                       {"mode": {...}}: as of `broker.mode`
                       {"command_result": {"id", "result" or "error"}}: see `commands`
                       {"limits": {...}}: other limits, as of BrokerLimits  {"configuration": {...}}: for status
                       {"upgrade": {...}}: for status, as of `upgrade`  {"codex_pool": {...}}: as of `self_upgrade`
                       {"gateway": {...}}, {"tracer": {...}}: for status
                       {"lost": worker, "reason", "tally": as of `protocol.tally`, or null}  {"drain": worker}
                       {"ping": number, "lost_lines": of the logs of all other processes}
                       {"holds": bool, "problems": [...]}: whether the endpoint is held, and what cannot be written
    from the broker    {"event": "ready" | "failed" | "registered" | "suspect" | "renew" | "drained" | "pong" |
                        "command" | "draining" |
                        "account" | "reachable" | "unsaved" | "saved" | "counts", "worker", "reason",
                        "registered": [worker], "drained": [worker], "workers", "threads", "changed_at", "under_way",
                        "lost_lines", "kept", "lost": [worker]}

What the next broker has to know of the last one is kept here.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ..broker.arguments import BrokerArguments
from ..protocol import ingress_frames
from .arguments import SupervisorArguments
from .child_process import Child
from .gateway_child import GatewayProcess
from .handover import KeptBroker
from .ingress_child import IngressProcess
from .launchers import Launcher
from .restarts import MAX_DEATHS, WINDOW_S, BrokerRestarts
from .sqlite_homes import home_of

MAX_UNSAVED = 2000
# Pings without an answer after which it is killed. Counted, not timed: the supervisor may have been stopped itself.
UNANSWERED_PINGS = 5
UNANSWERED_PINGS_AT_START = 15

_log = logging.getLogger(__name__)


class BrokerProcess:
    """Starts the broker, and again when it has died. `child` is None in between, `due` is when it is to be started.

    `starts`: how many brokers there have been. `is_reachable`: workers can connect to it, as it has reported.
    """

    def __init__(
        self,
        arguments: SupervisorArguments,
        workers_endpoint: str,
        link: str,
        *,
        ingress: IngressProcess,
        gateway: GatewayProcess,
        launcher: Launcher,
    ) -> None:
        self._arguments = arguments
        self._workers_endpoint = workers_endpoint
        self._link = link
        self._ingress = ingress
        self._gateway = gateway
        self._launcher = launcher
        # What makes the time of events Unix time: taken once, so that no step of the clock changes a wait.
        self._unix_offset = time.time() - time.monotonic()
        self._restarts = BrokerRestarts()
        self._unanswered_pings = 0
        # The problems that it was sent last.
        self._sent_problems: dict[str, Any] = {}
        # When the account was changed last, and whether a broker has died while it was being changed.
        self._account_changed_at = 0.0
        self._account_changes = False
        self.child: Child | None = None
        self.due = 0.0
        self.starts = 0
        self.is_reachable = True
        self.unsaved: dict[str, Any] = {}
        """Records of threads that it could not write, for the next one; None for a thread that is no more."""
        # What it has counted, for the next one: None if that is not complete. Workers whose loss is not counted there,
        # with the tallies of those that have ended in order.
        self._counted: dict[str, Any] | None = {}
        self._uncounted: set[str] = set()
        self._tallies: dict[str, list[Any]] = {}

    def start(self, lock: int, *, slots: int, expect: list[str], holds: bool, must_bind: bool) -> Child:
        """Start it. Raises StartError.

        `lock`: the descriptor of the endpoint's lock. The broker holds it too: should the supervisor be killed, no
        other pool takes the endpoint before the broker has removed its sockets. `slots`, `expect`, `holds` and
        `must_bind` are as of BrokerArguments.
        """
        options, secrets = self._arguments.options, {}
        if self._uncounted - self._tallies.keys():
            # What these workers had counted is known to nobody.
            self._counted = None
            self._uncounted &= self._tallies.keys()
        if self._ingress.is_wanted:
            secrets[ingress_frames.INGRESS] = self._ingress.secret
        if self._gateway.is_wanted:
            secrets[ingress_frames.GATEWAY] = self._gateway.secret
        arguments = BrokerArguments(
            clients_endpoint=self._arguments.endpoint,
            workers_endpoint=self._workers_endpoint,
            slots=slots,
            turns_per_worker=options.turns_per_worker,
            waiting_turns_per_worker=options.waiting_turns_per_worker,
            expect=[*expect, *self._tallies],
            cwd=self._arguments.cwd,
            link=f"ipc://{self._link}" if secrets else None,
            secrets=secrets,
            recycle_descendants=options.recycle_descendants or 0,
            keys=options.keys,
            codex_home=str(home_of(Path(self._arguments.sqlite_root))),
            changed_at=time.monotonic() if self._account_changes else self._account_changed_at,
            unix_offset=self._unix_offset,
            holds=holds,
            must_bind=must_bind,
            unsaved=self.unsaved,
            counted=self._counted,
            keeps_usage=self._arguments.is_daemon or options.lets_keys_in,
            prices=options.prices,
            audit_log=options.audit_log,
            audit_log_bytes=options.audit_log_bytes,
            audit_log_files=options.audit_log_files,
        )
        self.child = self._launcher.launch("codex_pool.broker", arguments, inherit=(lock,))
        self.starts += 1
        self._unanswered_pings = 0
        self._sent_problems, self.is_reachable = {}, True
        for worker, tally in self._tallies.items():
            self.send({"lost": worker, "reason": "it has ended", "tally": tally})
        return self.child

    def kept(self) -> KeptBroker:
        """Return the state that the next supervisor needs to go on with the broker."""
        return KeptBroker(
            child=None if self.child is None else self.child.kept(),
            starts=self.starts,
            unix_offset=self._unix_offset,
            account_changed_at=self._account_changed_at,
            account_changes=self._account_changes,
            is_reachable=self.is_reachable,
            unsaved=self.unsaved,
            counted=self._counted,
            uncounted=sorted(self._uncounted),
            tallies=self._tallies,
        )

    def restore(self, kept: KeptBroker) -> None:
        """Go on with a broker of before. Workers have registered with it."""
        self.child = None if kept.child is None else Child.taken_over(kept.child)
        self.starts, self._unix_offset, self.is_reachable = kept.starts, kept.unix_offset, kept.is_reachable
        self._account_changed_at, self._account_changes = kept.account_changed_at, kept.account_changes
        self.unsaved, self._counted, self._uncounted = kept.unsaved, kept.counted, set(kept.uncounted)
        self._tallies = kept.tallies
        self._restarts.useful()

    def send(self, record: dict[str, Any]) -> None:
        """Send it a record; none while there is no broker."""
        if self.child is not None:
            self.child.send(record)

    def take_tally(self, worker: str, tally: list[Any] | None) -> None:
        """Keep what a worker that has ended had counted, until a broker has counted its loss."""
        if tally is not None:
            self._tallies[worker] = tally

    def report_lost(self, worker: str, reason: str) -> None:
        """Report the death of a worker."""
        self._uncounted.add(worker)
        self.send({"lost": worker, "reason": reason, "tally": self._tallies.get(worker)})

    def take_counts(self, kept: dict[str, Any], lost: list[str]) -> None:
        """Keep what it has counted, with the workers whose loss it knows of."""
        self._counted = kept
        self._uncounted.difference_update(lost)
        for worker in lost:
            self._tallies.pop(worker, None)

    def send_problems(self, holds: bool, rows: list[dict[str, Any]]) -> None:
        """Send whether the endpoint is held, and what cannot be written, if the broker does not know it yet."""
        problems = {"holds": holds, "problems": rows}
        if problems != self._sent_problems and self.child is not None:
            self._sent_problems = problems
            self.send(problems)

    def reported(self) -> None:
        """Note a report: it is alive."""
        self._unanswered_pings = 0

    def ping(self, lost_lines: int, every_s: float) -> None:
        """Ask for a sign of life; kill it if it has not given any for too long. Called each `every_s` seconds."""
        if self.child is None:
            return
        if self._unanswered_pings >= (UNANSWERED_PINGS if self.child.last_report else UNANSWERED_PINGS_AT_START):
            silent_s = self._unanswered_pings * every_s
            _log.warning(f"killing the broker (pid {self.child.pid}): it has not answered for {silent_s:.0f} s")
            self.child.kill()
        self._unanswered_pings += 1
        self.send({"ping": self._unanswered_pings, "lost_lines": lost_lines})

    def account_changed(self, changed_at: float, under_way: bool) -> None:
        """Note that it has changed the account, or is about to."""
        self._account_changed_at, self._account_changes = changed_at, under_way

    def keep_unsaved(self, threads: dict[str, Any]) -> None:
        """Keep records that it could not write."""
        for thread_id, record in threads.items():
            # Beyond the bound it is only known that what is written down of them does not hold any more.
            self.unsaved[thread_id] = record if len(self.unsaved) < MAX_UNSAVED else None

    def useful(self) -> None:
        """Note that a worker has registered with it."""
        self._restarts.useful()

    def died(self, how: str, now: float) -> str | None:
        """Note its death, or a start that failed; return why the pool is to give up, None if it is started again."""
        self.child = None
        delay_s = self._restarts.died(now)
        if delay_s is None:
            what = f"the broker has died more than {MAX_DEATHS} times within {WINDOW_S:.0f} s"
            return f"{what}, before any worker could register with it: {how}"
        _log.warning(f"{how}; it is replaced in {delay_s:g} s")
        self.due = now + delay_s
        return None
