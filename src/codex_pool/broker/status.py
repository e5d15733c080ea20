"""The result of pool/status: plain JSON values, times in milliseconds."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

from ..protocol.wire import TURN_ENDS
from ..runtime.problems import shown
from .entities import Worker
from .listings import turns_by_session
from .rate_limiter import RateLimiter
from .state import BrokerState
from .workers import state_of

MAX_WAITING_ROWS = 100


def status_of(
    state: BrokerState,
    rate_limiter: RateLimiter,
    slot_states: list[dict[str, Any]],
    problems: list[dict[str, Any]],
    started_at: float,
    *,
    awaiting_capacity: int = 0,
) -> dict[str, Any]:
    """The status of the whole pool. `awaiting_capacity`: how many requests wait to load their thread."""
    agents = state.turns.of_sub_agents()
    by_worker = Counter(turn.worker for turn in agents)
    return {
        "uptimeMs": _ms(state.now - started_at),
        "mode": state.mode.name,
        "turnsPerWorker": state.turns_per_worker,
        "workers": _slot_rows(state, slot_states, by_worker),
        "draining": [_worker_row(worker, state.now, by_worker) for worker in state.workers.values() if worker.draining],
        "clients": [session.client for session in state.sessions.values()],
        "sessions": _session_rows(state),
        "threads": len(state.threads),
        "threadsWaiting": awaiting_capacity,
        "turns": {
            "running": len(state.turns),
            "subAgents": len(agents),
            "waiting": state.turns.waiting,
            "queued": _queued(state),
            **state.turns.ended,
        },
        "turnsWaiting": _waiting_rows(state),
        "refused": dict(state.refused),
        "rateLimiter": rate_limiter.status(state.now),
        # The name that it had before; deprecated.
        "pace": rate_limiter.status(state.now),
        "log": {"lostLines": state.lost_lines, "file": state.log_file},
        **({"audit": {"lostLines": state.audit_lost, "file": state.audit_file}} if state.audit_file else {}),
        "problems": shown(problems, state.now),
    }


def limited_status(status: dict[str, Any], principal: str, threads: int) -> dict[str, Any]:
    """Reduce the status to what a limited key may see: slots; of clients, turns and threads its own."""
    sessions = [row for row in status["sessions"] if row["principal"] == principal]
    shown = ("slot", "state", "restarts")
    names = ("turns", "subAgents", "waiting", "queued")
    running, agents, waiting, queued = (sum(row[name] for row in sessions) for name in names)
    ended = dict.fromkeys(TURN_ENDS, 0)
    return {
        **{name: status[name] for name in ("uptimeMs", "mode", "turnsPerWorker")},
        "workers": [{name: row[name] for name in shown} for row in status["workers"]],
        "turns": {"running": running, "subAgents": agents, "waiting": waiting, "queued": queued, **ended},
        "clients": [row["client"] for row in sessions],
        "sessions": sessions,
        "threads": threads,
    }


def _slot_rows(state: BrokerState, states: list[dict[str, Any]], agents: Counter[str]) -> list[dict[str, Any]]:
    """List a row per slot: what the supervisor reports of it (`states`), and of its worker if it has one that stays."""
    by_slot = {worker.slot: worker for worker in sorted(state.workers.values(), key=lambda worker: not worker.draining)}
    rows = []
    # A slot that is being removed is beyond them until its worker has ended.
    for slot in sorted({*range(state.slots), *(each["slot"] for each in states)}):
        known = next((state for state in states if state["slot"] == slot), {})
        row: dict[str, Any] = {"state": "starting", "restarts": 0, **known, "slot": slot}
        retry_at = row.pop("retryAt", None)
        row["retryInMs"] = None if retry_at is None else _ms(max(0.0, retry_at - state.now))
        worker = by_slot.get(slot)
        rows.append({**row, **_worker_row(worker, state.now, agents)} if worker is not None else row)
    return rows


def _worker_row(worker: Worker, now: float, agents: Counter[str]) -> dict[str, Any]:
    progress = worker.progress
    return {
        "slot": worker.slot,
        "state": state_of(worker, now),
        "worker": worker.name,
        "pid": worker.pid,
        "appServerPid": worker.app_server_pid,
        "codexVersion": worker.codex_version,
        "ageMs": _ms(now - worker.started_at),
        # Those of sub-agents among them.
        "turns": len(worker.turns),
        "subAgents": agents[worker.name],
        # Of the turns, those that wait for an approval or another answer of a person.
        "waiting": len(worker.waiting),
        "queued": len(worker.queue),
        "threads": len(worker.threads),
        "inFlight": progress.in_flight if progress is not None else 0,
        "lines": progress.lines if progress is not None else 0,
        "beatAgeMs": _ms(now - worker.seen_at),
        **_tree_fields(worker),
    }


def _tree_fields(worker: Worker) -> dict[str, Any]:
    """Rows of status about the processes below a worker: None where that is not known."""
    tree = worker.tree
    if tree is None:
        names = ("memoryBytes", "memoryIs", "descendants", "leftCommands", "toolCommands", "toolMemoryBytes")
        return dict.fromkeys(names)
    return {
        # 0 before the first reading.
        "memoryBytes": tree.memory_bytes or None,
        "memoryIs": "pss" if tree.is_pss else "rss",
        "descendants": tree.servers + tree.left,
        "leftCommands": tree.left,
        "toolCommands": tree.commands,
        "toolMemoryBytes": tree.command_memory_bytes,
    }


def _session_rows(state: BrokerState) -> list[dict[str, Any]]:
    turns, waiting = turns_by_session(state)
    agents = Counter(session for turn in state.turns.of_sub_agents() for session in turn.sessions)
    return [
        {
            "client": session.client,
            "identity": state.name_of(session.principal),
            "principal": session.principal,
            "state": "away" if session.is_away else "connected",
            "awayMs": _ms(state.now - session.away_since) if session.away_since is not None else 0,
            "priority": session.priority,
            "turns": turns[session.id],
            "subAgents": agents[session.id],
            "waiting": waiting[session.id],
            "queued": len(session.held),
        }
        for session in state.sessions.values()
    ]


def _waiting_rows(state: BrokerState) -> list[dict[str, Any]]:
    """List the turns that wait for a person, those that have waited longest first."""
    waiting = [
        (since, turn_id, worker) for worker in state.workers.values() for turn_id, since in worker.waiting.items()
    ]
    return [
        {
            "turnId": turn_id,
            "threadId": state.turns[turn_id].thread_id if turn_id in state.turns else None,
            "worker": worker.name,
            "waitedMs": _ms(max(0.0, state.now - since)),
            "holdsPermit": turn_id not in worker.without_permit,
        }
        for since, turn_id, worker in heapq.nsmallest(MAX_WAITING_ROWS, waiting, key=lambda each: each[0])
    ]


def _queued(state: BrokerState) -> int:
    return sum(len(worker.queue) for worker in state.workers.values()) + len(state.requests.unassigned)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
