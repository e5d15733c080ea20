"""The report for probes and metrics (`protocol.pool_report`), from the state of the broker. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..protocol.pool_report import WORKER_STATES, PoolReport
from .rate_limiter import RateLimiter
from .state import BrokerState
from .workers import state_of


def report_of(
    state: BrokerState,
    rate_limiter: RateLimiter,
    slot_states: list[dict[str, Any]],
    replaced: dict[str, dict[str, int]],
    *,
    changed_at: float,
    upgrade: str = "",
) -> PoolReport:
    """Report the state of the pool now.

    `slot_states` and `replaced` are what the supervisor has reported of slots, and of restarts and recycles by reason;
    `changed_at` is when the account was changed last (CLOCK_MONOTONIC), `upgrade` the state of an upgrade of codex.
    """
    counts = state.counts
    for principal in sorted(counts.principals()):
        counts.name(principal, state.name_of(principal))
    tally = counts.total() if counts.is_complete else None
    memory: Counter[int] = Counter()
    threads: Counter[int] = Counter()
    for worker in state.workers.values():
        threads[worker.slot] += len(worker.threads)
        if worker.tree is not None and worker.tree.memory_bytes:
            memory[worker.slot] += worker.tree.memory_bytes
    login_refused = tally is not None and tally.login_refused and tally.answered_at > changed_at
    queued = sum(len(worker.queue) for worker in state.workers.values())
    return PoolReport(
        not_ready=_not_ready(state, login_refused=login_refused),
        tally=tally,
        turns_running=len(state.turns),
        turns_waiting=queued + sum(request.starts_turn for request in state.requests.unassigned),
        workers=_workers(state, slot_states),
        memory_bytes=dict(memory),
        threads=dict(threads),
        restarts=replaced.get("restarts", {}),
        recycles=replaced.get("recycles", {}),
        sessions=len(state.sessions),
        rate_limit_paused=not rate_limiter.allows(0, state.now),
        refused=dict(state.refused),
        codex=sorted({worker.codex_version for worker in state.workers.values() if worker.codex_version}),
        upgrade=upgrade,
    )


def _not_ready(state: BrokerState, *, login_refused: bool) -> str:
    if state.mode.name != "running":
        return f"the pool is {state.mode.name}"
    if not state.counts.is_complete:
        return "the broker was replaced, and waits for its workers"
    if not any(worker.takes_work and not worker.is_silent(state.now) for worker in state.workers.values()):
        return "no worker is ready"
    if login_refused:
        return "the provider has refused the log-in at the last turn; log in again (codex login)"
    return ""


def _workers(state: BrokerState, slot_states: list[dict[str, Any]]) -> dict[str, int]:
    """Count the workers by state; a slot without one counts by its own."""
    found = Counter(dict.fromkeys(WORKER_STATES, 0))
    found.update(state_of(worker, state.now) for worker in state.workers.values())
    known = {row["slot"]: row["state"] for row in slot_states}
    empty = {*range(state.slots)} - {worker.slot for worker in state.workers.values()}
    found.update(known.get(slot, "starting") for slot in empty)
    return {name: found[name] for name in WORKER_STATES}
