"""Children: the processes that a supervisor has started, whatever they are."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Sequence

from ..runtime import log, processes
from .bookkeeping import Bookkeeping
from .broker_child import BrokerProcess
from .child_process import Child
from .restarted_child import RestartedChild
from .stopping import reap, stop
from .worker_children import WorkerProcesses


class Children:
    """Broker, workers, the holder of the account, and `others`: ingress, gateway, canary and tracer.

    They are watched by `selector`, and written down for a supervisor after this one, which has to end them should this
    one be killed.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        bookkeeping: Bookkeeping,
        *,
        broker: BrokerProcess,
        workers: WorkerProcesses,
        holder: RestartedChild,
        others: Sequence[RestartedChild],
    ) -> None:
        self._selector = selector
        self._bookkeeping = bookkeeping
        self._broker = broker
        self._workers = workers
        self._holder = holder
        self._others = others
        self._restarted = (holder, *others)
        # Lines that the logs of children lost which have ended.
        self.lost_before = 0

    def _single(self) -> list[tuple[Child, str]]:
        """Return those that are no workers, each with its name."""
        named = [(self._broker.child, "broker"), *((each.child, each.name) for each in self._restarted)]
        return [(child, name) for child, name in named if child is not None]

    def watch(self, child: Child, on_reports: Callable[[], None]) -> None:
        """Have `on_reports` called when a child that has just been started has reported, or ended."""
        child.watch(self._selector, on_reports)
        self.remember()

    def ended(self, child: Child) -> str:
        """Reap a child whose reports have ended; how it ended."""
        child.unwatch(self._selector)
        self.lost_before += child.lost_lines
        return reap(child)

    def remember(self) -> None:
        """Write down which processes there are."""
        started = self._workers.started() + [(child.pid, name) for child, name in self._single()]
        self._bookkeeping.remember(started, time.monotonic())

    def living(self) -> frozenset[int]:
        """The pids of all."""
        children = [*self._workers.children.values(), *(child for child, _ in self._single())]
        return frozenset(child.pid for child in children)

    def lost_lines(self) -> int:
        """Count the lines that the logs of this process and its children have lost, without the broker's."""
        others = [*self._workers.children.values(), *(each.child for each in self._restarted)]
        return log.lost() + self.lost_before + sum(child.lost_lines for child in others if child is not None)

    def stop(self) -> None:
        """End all, then whatever is left below this process."""
        others = [each.child for each in self._others]
        stop(self._workers.children.values(), self._holder.child, self._broker.child, others)
        for each in self._restarted:
            each.close()
        processes.sweep(os.getpid())
