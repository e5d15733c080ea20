"""Answers: what workers have answered, as one answer to the client; requests whose worker dies before. Pure."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from codex_app_server import errors

from ..protocol import jsonrpc, thread_records
from ..protocol.bound_methods import KINDS
from .fan_out import FanOut, merge
from .request import APPLY, RELEASE, Request
from .state import BrokerState

if TYPE_CHECKING:
    from .dispatch import Dispatcher

# They change nothing, and what they have begun has ended with the worker.
_MADE_AGAIN = frozenset(kind.begin for kind in KINDS if not kind.is_process)
# How many workers a start may lose before it is given up: it may be what they die of.
MAX_TRIES = 3


class Answers:
    """See the module's docstring."""

    def __init__(self, state: BrokerState, dispatcher: Dispatcher) -> None:
        self._state = state
        self._dispatcher = dispatcher

    def answered(self, request: Request, slot: int, frames: list[bytes], *, ok: bool) -> None:
        """Pass the answer of a worker on to the client, or add it to those of other workers."""
        self._state.requests.finish(request)
        if request.fan_out is None:
            # That of a command is in a stream of its session.
            if request.session is not None and frames:
                self._state.forward([request.session], frames)
        elif request.fan_out.add(slot, request.worker, frames[1] if len(frames) == 2 else None, ok=ok):
            self._answer_fan_out(request, request.fan_out)

    def lost(self, request: Request, slot: int, reason: str) -> None:
        """Send a request again whose worker is dead, where that is safe, or answer with an error."""
        message = f"worker {request.worker} died before it answered {request.method}: {reason}"
        if request.method == RELEASE:
            self._state.requests.finish(request)
            self._dispatcher.moves.released(request.thread_id or "", ok=True)
        elif request.method == APPLY:
            self._state.requests.finish(request)
            self._dispatcher.changes.lost(request)
        elif request.fan_out is not None:
            self._state.requests.finish(request)
            if request.fan_out.add(slot, request.worker, None, ok=False):
                self._answer_fan_out(request, request.fan_out, message)
        elif self._state.session(request) is None:
            self._state.requests.finish(request)
        elif request.method == "thread/unsubscribe":
            # The session was removed from the followers before it was sent.
            result = {"status": "unsubscribed"}
            self._state.answer(request, jsonrpc.encode({"id": request.request_id, "result": result}))
        elif request.method == "turn/start" and request.thread_id in self._state.threads and request.tries < MAX_TRIES:
            # The next worker finds in the thread's history whether it has begun.
            request.again = True
            request.tries += 1
            self._dispatcher.route(request)
        elif request.method in thread_records.READS_HISTORY and request.tries < MAX_TRIES:
            request.tries += 1
            self._dispatcher.route(request)
        elif request.method in _MADE_AGAIN and request.tries < MAX_TRIES:
            request.again = True
            request.tries += 1
            self._dispatcher.route(request)
        else:
            # A thread that no client knows may be started again.
            data = {"kind": "lost", "safeToRetry": request.method == "thread/start"}
            self._state.fail(request, errors.TURN_LOST, message, data)

    def _answer_fan_out(self, request: Request, fan_out: FanOut, message: str = "") -> None:
        outcome = fan_out.outcome
        if outcome is None:
            self._state.fail(request, errors.TURN_LOST, message, {"kind": "lost", "safeToRetry": False})
            return
        if fan_out.results:
            visible = functools.partial(self._state.may_touch, request.principal)
            places = {worker: place for place, worker in enumerate(fan_out.workers)}
            outcome = merge(
                request.method,
                fan_out.results,
                self._name_of,
                visible,
                request.message.params,
                lambda thread_id: places.get(self._state.threads.holder_of(thread_id), 0),
            )
            outcome = self._dispatcher.lists.first_page(request, outcome)
        self._state.answer(request, outcome)

    def _name_of(self, thread_id: str) -> str | None:
        record = self._state.threads.record(thread_id)
        return record.name if record is not None else None
