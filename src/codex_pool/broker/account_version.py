"""AccountVersion: when the account was changed last, and the workers whose app-servers are out of date. Pure.

A worker is *stale* if its app-server has a former account: it gets no turn any more, stored threads leave it, and the
supervisor renews it. Times are those of CLOCK_MONOTONIC: a worker reports when its app-server was started, and
`AccountChanged` reports the last change to the supervisor, which hands it to the next broker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..protocol import wire
from .effects import AccountChanged, Renew
from .entities import Worker
from .replayed_requests import ReplayedRequests
from .state import BrokerState

if TYPE_CHECKING:
    from .dispatch import Dispatcher


class AccountVersion:
    """See the module's docstring. `changed_at` is the time of the last change that the broker before this one knew."""

    def __init__(
        self, state: BrokerState, dispatcher: Dispatcher, replayed: ReplayedRequests, changed_at: float
    ) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._replayed = replayed
        self._changed_at = changed_at

    @property
    def changed_at(self) -> float:
        """Time at which the account was changed last."""
        return self._changed_at

    def report(self, *, under_way: bool) -> None:
        """Report to the supervisor whether a change is under way, or what the last one was."""
        self._state.out.append(AccountChanged(self._changed_at, under_way=under_way))

    def change(self, current: Iterable[str], reason: str) -> None:
        """Note that from now on only these workers have the account."""
        self._changed_at = max(self._state.now, math.nextafter(self._changed_at, math.inf))
        self.report(under_way=False)
        for name in current:
            if name in self._state.workers:
                self._state.workers[name].as_of = self._changed_at
        self.find_stale(reason)

    def adopt(self, changed_at: float) -> None:
        """Take over the time of a change that a worker knows of, if it is later."""
        if changed_at > self._changed_at:
            self._changed_at = changed_at
            self.report(under_way=False)

    def find_stale(self, reason: str) -> None:
        """Have the workers renewed that do not have the account."""
        for name, worker in self._state.workers.items():
            if worker.as_of < self._changed_at and not worker.stale:
                worker.stale = reason
                self._state.log(f"worker {name} must be renewed: {reason}")
                self._state.out.append(Renew(name, reason))
                self._state.events.record(self._state.now, "worker stale", worker=name)
        for worker in [worker for worker in self._state.workers.values() if worker.stale]:
            self._dispatcher.vacate(worker)

    def mark_stale(self, name: str, reason: str) -> None:
        """Have this worker renewed: it did not take part in a change."""
        worker = self._state.workers.get(name)
        if worker is not None and not worker.stale:
            worker.as_of = -1.0
            # The next broker learns it from the worker.
            self._send_current(worker)
            self.find_stale(reason)

    def make_current(self, worker: Worker, kept_at: float) -> None:
        """Note that this worker has the account, and the replayed requests up to this time."""
        worker.as_of = max(worker.as_of, self._changed_at)
        worker.kept_at, worker.behind = kept_at, kept_at < self._replayed.at
        self._send_current(worker)

    def forget_replayed(self) -> None:
        """Tell all workers what is to be replayed now, so that no later broker knows of more."""
        for worker in self._state.workers.values():
            worker.kept_at = self._replayed.at
            self._send_current(worker)

    def renew_stale(self) -> None:
        """Ask the supervisor again to renew the stale workers that it does not drain yet."""
        for worker in self._state.workers.values():
            if worker.stale and not worker.draining:
                self._state.out.append(Renew(worker.name, worker.stale))

    def _send_current(self, worker: Worker) -> None:
        self._state.to_worker(worker, wire.SharedState(worker.as_of, worker.kept_at), *self._replayed.lines)
