"""ThreadMoves: threads that leave a worker which is to be replaced, while they live. Pure.

A stored thread moves at its next request: its worker releases it, and the request goes to another worker, which loads
it. What cannot leave - it is ephemeral, has no turn yet, or the app-server keeps it - has no further turns on a worker
that is stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codex_app_server import errors

from ..auth.parameters import STARTS_TURN
from ..protocol import wire
from .entities import Thread, Worker
from .request import RELEASE, Request
from .request_queues import OrderedQueue
from .state import BrokerState

if TYPE_CHECKING:
    from .dispatch import Dispatcher


class ThreadMoves:
    """See the module's docstring."""

    def __init__(self, state: BrokerState, dispatcher: Dispatcher) -> None:
        self._state = state
        self._dispatcher = dispatcher

    def must_move(self, thread: Thread, worker: Worker) -> bool:
        """True when this thread is to move now: its worker is to be replaced, and it is stored and idle."""
        if not worker.leaving or thread.worker != worker.name or thread.pinned or not thread.stored or thread.busy:
            return False
        if self._state.threads.runs_sub_agents(thread.record.thread_id):
            return False
        return all(request.thread_id != thread.record.thread_id for request in worker.requests.values())

    def is_refused(self, request: Request, thread: Thread, worker: Worker) -> bool:
        """True when this would use a former account, on a thread that cannot leave its worker."""
        return request.method in STARTS_TURN and is_stuck(thread, worker)

    def refuse(self, request: Request, thread: Thread, worker: Worker) -> None:
        """Answer a request for which `is_refused` is true."""
        why = "is ephemeral" if thread.record.ephemeral else "has no turn yet" if not thread.stored else "is in use"
        message = (
            f"thread {thread.record.thread_id} {why} and cannot leave worker {worker.name}, which is being renewed: "
            f"{worker.stale}; start a new thread"
        )
        self._state.fail(request, errors.THREAD_LOST, message, {"safeToRetry": not request.again})

    def move(self, request: Request, thread: Thread, worker: Worker) -> None:
        """Have the worker release the thread; the request waits for that."""
        queue = OrderedQueue("thread move")
        if self._state.requests.hold(request, queue):
            thread.moving = queue
            self._dispatcher.notices.queued(request)
            self.release(thread.record.thread_id, worker)

    def release(self, thread_id: str, worker: Worker) -> None:
        """Ask the worker to release a thread."""
        release = Request(None, 0, RELEASE, thread_id, b"", "full", self._state.now)
        number = self._state.requests.dispatch(release, worker)
        self._state.to_worker(worker, wire.Release(number, thread_id, self._state.threads.descendants(thread_id)))

    def released(self, thread_id: str, *, ok: bool) -> None:
        """Go on with the requests that have waited: the worker has released the thread, or will not."""
        thread = self._state.threads.get(thread_id)
        if thread is None or thread.moving is None:
            return
        queue, thread.moving = thread.moving, None
        if ok:
            worker = self._state.workers.get(thread.worker or "")
            if worker is not None:
                worker.threads.discard(thread_id)
                self._state.busy.eased(worker)
            self._state.threads.detach(thread)
            thread.archived = True
        else:
            thread.pinned = True
        for request in queue.take_all():
            self._dispatcher.route(request)


def is_stuck(thread: Thread, worker: Worker) -> bool:
    """True when this idle thread can have no more turns: its worker is stale, and it cannot leave it."""
    return (
        bool(worker.stale) and thread.worker == worker.name and not thread.busy and (thread.pinned or not thread.stored)
    )
