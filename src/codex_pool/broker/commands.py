"""Commands: requests of clients that the supervisor carries out (see `supervisor.commands`). Pure.

    client      request pool/...      broker     {"event": "command", "id", "command", "params"}      supervisor
    client      its answer            broker     {"command_result": {"id", "result" or "error"}}      supervisor

Every command may be carried out twice with the same effect: a client that comes back to the next broker sends its
request again, and it is passed on again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..protocol import jsonrpc
from .effects import Command
from .request import Request
from .state import BrokerState

INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
# How long the supervisor may take to answer, unless a command says otherwise.
LIMIT_S = 30.0
MAX_OPEN = 64

Result = dict[str, Any]


class _Open(NamedTuple):
    """A command that is not answered yet; `until` is when it is given up."""

    request: Request
    command: str
    until: float
    finish: Callable[[Result], Result] | None


class Commands:
    """See the module's docstring."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        self._open: dict[int, _Open] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def send(
        self,
        request: Request,
        command: str,
        params: Result,
        *,
        limit_s: float = LIMIT_S,
        finish: Callable[[Result], Result] | None = None,
    ) -> None:
        """Have the supervisor carry out a command, and answer the request with its result, or its error.

        `finish` may add to the result what the broker knows. The answer is an error after `limit_s` seconds.
        """
        if len(self._open) >= MAX_OPEN:
            self._state.overloaded(request, f"{request.method}: {MAX_OPEN} commands are not answered yet")
            return
        self._last += 1
        self._open[self._last] = _Open(request, command, self._state.now + limit_s, finish)
        self._state.out.append(Command(self._last, command, params))

    def done(self, number: int, result: Result | None, error: str | None) -> None:
        """Pass on the supervisor's answer; `error` is the reason why there is no result."""
        open_ = self._open.pop(number, None)
        if open_ is None:
            return
        if result is None:
            self._state.fail(open_.request, INTERNAL_ERROR, f"{open_.request.method}: {error or 'no reason was given'}")
            return
        answer(self._state, open_.request, result if open_.finish is None else open_.finish(result))

    def tick(self) -> None:
        """Give up commands that the supervisor has not answered in time."""
        now = self._state.now
        for number, open_ in [each for each in self._open.items() if each[1].until <= now]:
            del self._open[number]
            message = (
                f"{open_.request.method}: the supervisor of the pool has not answered in time, so the command may or "
                "may not be carried out; repeat it, which does nothing twice"
            )
            self._state.fail(open_.request, INTERNAL_ERROR, message)


def answer(state: BrokerState, request: Request, result: Result) -> None:
    """Answer a request with a result."""
    state.answer(request, jsonrpc.encode({"id": request.request_id, "result": result}))
