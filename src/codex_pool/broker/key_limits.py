"""Limits of keys beyond what their requests may do: turns that run and wait, tokens and spend. Pure.

    limit                  counts                                                       beyond it
    max_running_turns      turns that run or are about to, sub-agents' among them       a turn waits in its queue
    max_waiting_turns      turns that wait here, for whatever reason                    refused, to be tried again
    max_tokens_per_day     input and output tokens since 0:00 UTC, sub-agents' too      refused
    max_tokens             the same, of all days                                        refused
    max_spend_per_day      the most that these can have cost (`auth.usage`)             refused
    max_spend              the same, of all days                                        refused

Tokens and spend are checked when a request comes that begins a turn, changes what the next one is, or steers one, and
again when a turn that has waited is to begin. A turn that runs is not cut, and one more may begin while the last tokens
of others are not reported yet; a turn that begins by itself beyond a limit, such as that of a goal, is interrupted.
Where the usage is not known, or a limit of spend meets a model without a price, the answer is a refusal.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, NamedTuple

from codex_app_server import errors

from ..auth.parameters import STARTS_TURN
from ..auth.policy import RETRY_TURN_MS, Refusal
from ..auth.principal import DEFAULT_PRIORITY, Identity
from ..auth.usage import Used, total
from .request import Request

if TYPE_CHECKING:
    from .state import BrokerState

LIMITED = STARTS_TURN | {"turn/steer"}


class _Limit(NamedTuple):
    what: str
    limit: float
    used: float
    is_daily: bool
    is_money: bool


class KeyLimits:
    """See the module's docstring."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        # How to have a usage store that is lost accepted.
        self.remedy = "codex-pool keys reset-usage HOME"

    def _identity(self, principal: str) -> Identity | None:
        policy = self._state.policy
        return policy.identity(principal) if policy is not None and principal else None

    def priority(self, principal: str) -> int:
        """The share of turns of a principal."""
        identity = self._identity(principal)
        return DEFAULT_PRIORITY if identity is None else identity.priority

    # Turns.

    @property
    def bound_running(self) -> bool:
        """True if any key has a limit of turns that run, so that the end of one lets another begin on any worker."""
        return self._state.policy is not None and self._state.policy.bounds_running

    def may_run(self, principal: str) -> bool:
        """Return True if a further turn of this principal may run."""
        identity = self._identity(principal)
        limit = identity.max_running_turns if identity is not None else None
        return limit is None or self._state.turns.running_of(principal) < limit

    def waiting_refusal(self, request: Request) -> Refusal | None:
        """Return why a request may not wait; None if it may."""
        identity = self._identity(request.principal) if request.starts_turn else None
        limit = identity.max_waiting_turns if identity is not None else None
        if identity is None or limit is None:
            return None
        waiting = sum(each.starts_turn for each in self._state.requests.held_of(request.principal))
        if waiting < limit:
            return None
        message = (
            f"{request.method}: this turn would wait, and {identity.name} has {waiting} that do; its key allows "
            f"{limit}: retry when one of its turns has ended, or ask the pool's owner for a higher --max-waiting-turns"
        )
        data = {"what": "waiting_turns", "limit": limit, "used": waiting, "retryAfterMs": RETRY_TURN_MS}
        return Refusal(errors.SERVER_OVERLOADED, message, data)

    # Tokens and spend.

    def request_refusal(self, request: Request) -> Refusal | None:
        """Return why a request may not have its principal use more; None if it may, or does not."""
        if request.method in LIMITED:
            refusal = self.usage_refusal(request.principal, request.method, request.thread_id)
            if refusal is not None:
                return refusal
        identity = self._identity(request.principal)
        if identity is None or not identity.counts_spend:
            return None
        model = request.param("model", str)
        problem = self._price_problem(identity, model) if model else None
        return _refusal(request.method, "prices", problem) if problem is not None else None

    def usage_refusal(self, principal: str, method: str, thread_id: str | None) -> Refusal | None:
        """Return why a principal may not use more on this thread; None if it may."""
        identity = self._identity(principal)
        if identity is None or not identity.counts_usage:
            return None
        ledger = self._state.usage
        if not ledger.is_open:
            why = f"what {identity.name} has used is not known: {ledger.problem}; the pool's owner can put the usage "
            return _refusal(method, "usage", f"{why}store back, or accept its loss: {self.remedy}")
        model = self._state.threads.model_of(thread_id)
        if identity.counts_spend and (problem := self._price_problem(identity, model)) is not None:
            return _refusal(method, "prices", problem)
        today, in_all = ledger.used(principal, self._running(principal), self._state.now)
        for each in _limits(identity, today, in_all):
            if each.used >= each.limit:
                return self._beyond(identity, method, each)
        return None

    def _price_problem(self, identity: Identity, model: str) -> str | None:
        rates = self._state.usage.rates
        if not rates.currency:
            return f"the key of {identity.name} has a limit of spend, and the pool has no prices (serve --prices)"
        if rates.has_price(model):
            return None
        named = f"model {model!r}" if model else "the model of this thread, which is not known"
        return (
            f"the key of {identity.name} has a limit of spend, and the pool's prices have none of {named}: use another "
            "model, or ask the pool's owner to add its price"
        )

    def _running(self, principal: str) -> Used:
        """Usage so far of turns that run."""
        state, used = self._state, Used()
        for turn in state.turns.values():
            if turn.tokens is not None and state.threads.owner_of(turn.thread_id) == principal:
                spend = state.usage.most(principal, turn.tokens, state.threads.model_of(turn.thread_id))
                used = used.plus(Used(total(turn.tokens), spend))
        return used

    def _beyond(self, identity: Identity, method: str, limit: _Limit) -> Refusal:
        ledger = self._state.usage
        free_at = ledger.next_day(self._state.now) if limit.is_daily else None
        currency = ledger.rates.currency

        def shown(value: float) -> str:
            return f"{value:,.4f} {currency}" if limit.is_money else f"{value:,.0f} tokens"

        per = " a day" if limit.is_daily else ""
        today = " today" if limit.is_daily else ""
        until = f"it is free again at {_utc(free_at)}" if free_at is not None else "it does not become free by itself"
        option = f"--max-{limit.what.replace('_', '-')}"
        data = {"what": limit.what, "limit": limit.limit, "used": limit.used, "freeAt": free_at}
        message = (
            f"{identity.name} has used {shown(limit.used)}{today}; its key allows {shown(limit.limit)}{per}: {until}, "
            f"or ask the pool's owner for a higher {option} (codex-pool keys set {identity.name} {option} N)"
        )
        if limit.is_money:
            data["currency"] = currency
        return _refusal(method, limit.what, message, data)


def _limits(identity: Identity, today: Used, in_all: Used) -> list[_Limit]:
    found = (
        ("tokens", identity.max_tokens, in_all.tokens, False, False),
        ("spend", identity.max_spend, in_all.spend, False, True),
        ("tokens_per_day", identity.max_tokens_per_day, today.tokens, True, False),
        ("spend_per_day", identity.max_spend_per_day, today.spend, True, True),
    )
    return [_Limit(what, limit, *rest) for what, limit, *rest in found if limit is not None]


def _refusal(method: str, what: str, message: str, data: dict[str, object] | None = None) -> Refusal:
    return Refusal(errors.KEY_LIMIT, f"{method}: {message}", {"kind": "limit", "what": what, **(data or {})})


def _utc(at: int) -> str:
    return dt.datetime.fromtimestamp(at, dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
