"""Repetitions: requests that are sent to a worker for the second time, by their client or by this broker. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codex_app_server import errors

from .entities import Worker
from .repeatable import may_be_repeated
from .request import APPLY, RELEASE, Request
from .state import BrokerState

if TYPE_CHECKING:
    from .dispatch import Dispatcher


class Repetitions:
    """See the module's docstring."""

    def __init__(self, state: BrokerState, dispatcher: Dispatcher) -> None:
        self._state = state
        self._dispatcher = dispatcher

    def repeat(self, request: Request) -> bool:
        """Send a request that was sent before to the worker that has it, if one has, which does nothing twice.

        One that has the id of another which is under way is refused.
        """
        requests = self._state.requests
        numbers = requests.by_key.get(request.key)
        if numbers:
            if not request.repeats(requests.by_number[numbers[-1]]):
                self._state.refuse_id(request)
                return True
            before = [requests.take_back(number) for number in list(numbers)]
            for each in before:
                requests.finish(each)
            worker = self._state.workers.get(before[-1].worker)
            if before[-1].fan_out is not None or worker is None:
                return False
        else:
            name = requests.sent_to.get(request.key, "") if request.again else ""
            worker = self._state.workers.get(name)
            if worker is None:
                return bool(name) and self._refuse_again(request, name)
        self._dispatcher.dispatch(request, worker)
        return True

    def _refuse_again(self, request: Request, name: str) -> bool:
        """Refuse a request that was with a worker that is dead, unless it may be executed twice; True if refused."""
        if request.changes_all or may_be_repeated(request.method):
            return False
        message = (
            f"worker {name}, which had it, has died; {request.method} was not executed again: it may have been done"
        )
        self._state.fail(request, errors.TURN_LOST, message, {"kind": "lost", "safeToRetry": False})
        return True

    def send_again(self, worker: Worker) -> None:
        """Send again what was under way to a worker that has a new connection: it may be lost."""
        for number in sorted(worker.requests):
            request = self._state.requests.take_back(number)
            if request.method == RELEASE:
                self._state.requests.finish(request)
                self._dispatcher.moves.release(request.thread_id or "", worker)
            elif request.method == APPLY:
                self._dispatcher.changes.send_again(request, worker)
            else:
                request.again = True
                self._dispatcher.dispatch(request, worker)
