"""UsageQuestions: requests for what was used (`pool/usage`), which the usage store answers. Pure.

    client      request pool/usage        broker     ReadUsage        its thread for the store
    client      the answer                broker     usage_found      rows by day, principal and model

A limited key gets its own rows only; for that the store is asked, no others are read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from codex_app_server import errors

from ..auth.usage import DAY_S, UsageKey, UsageSums
from ..auth.usage_store import Rows
from ..protocol import jsonrpc
from .effects import ReadUsage
from .entities import Session
from .request import Request
from .state import BrokerState

LIMIT_S = 20.0
MAX_OPEN = 64
# Of the days that a request may ask for, as a day in days since 1970.
MAX_DAY = 10_000_000


class _Open(NamedTuple):
    request: Request
    until: float


class UsageQuestions:
    """See the module's docstring."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        self._open: dict[int, _Open] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def request(self, session: Session, request: Request) -> None:
        """Ask the store for the rows since the Unix second `since`, of all time without it."""
        state = self._state
        since = request.param("since", int | float) or 0
        if not 0 <= since < MAX_DAY * DAY_S:
            message = f"pool/usage: since is {since}; expected a Unix time in seconds"
            state.fail(request, errors.INVALID_PARAMS, message)
        elif not state.usage.is_open:
            problem = f"pool/usage: what was used is not known: {state.usage.problem}; {state.limits.remedy}"
            state.fail(request, errors.INTERNAL_ERROR, problem)
        elif not state.usage.is_stored:
            state.fail(request, errors.INVALID_REQUEST, "pool/usage: this pool keeps no usage; a daemon does")
        elif len(self._open) >= MAX_OPEN:
            state.overloaded(request, f"pool/usage: {MAX_OPEN} requests are not answered yet")
        else:
            self._last += 1
            self._open[self._last] = _Open(request, state.now + LIMIT_S)
            own = session.principal if state.is_limited(session.principal) else None
            state.requests.execute(request)
            state.out.append(ReadUsage(self._last, int(since // DAY_S), own))

    def found(self, number: int, rows: Rows, names: dict[str, str], problem: str | None) -> None:
        """Answer a request with rows; `problem` is the reason why there are none."""
        open_ = self._open.pop(number, None)
        if open_ is None:
            return
        request = open_.request
        if problem is not None:
            self._state.fail(request, errors.INTERNAL_ERROR, f"pool/usage: {problem}")
            return
        result = {
            "currency": self._state.usage.rates.currency or None,
            "data": [self._row(key, sums, names) for key, sums in sorted(rows.items())],
        }
        self._state.answer(request, jsonrpc.encode({"id": request.request_id, "result": result}))

    def tick(self) -> None:
        """Give up what the store does not answer."""
        for number, open_ in [each for each in self._open.items() if each[1].until <= self._state.now]:
            del self._open[number]
            self._state.fail(open_.request, errors.INTERNAL_ERROR, "pool/usage: the disk does not answer; try again")

    def _row(self, key: UsageKey, sums: UsageSums, names: dict[str, str]) -> dict[str, Any]:
        state, principal = self._state, key.principal
        is_known = state.policy is not None and state.policy.is_known(principal)
        name = state.name_of(principal) if is_known else names.get(principal, principal)
        tokens = sums.tokens
        return {
            "day": key.day * DAY_S,
            "principal": principal,
            "principalName": name if principal else "",
            "model": key.model or None,
            "turns": sums.turns,
            "inputTokens": tokens.input,
            "cachedInputTokens": tokens.cached,
            "outputTokens": tokens.output,
            "reasoningOutputTokens": tokens.reasoning,
            # What is known of it, and of how many parts it is not.
            "spend": sums.cost,
            "unpriced": sums.unpriced,
            "currency": key.currency or None,
        }
