"""Lists for operators: turns, sessions, threads and workers as rows of plain JSON values. Pure.

Times are in seconds, sizes in bytes. Rows have ids, names and counts, never texts: no prompt, no answer, no name of a
thread. A limited key gets what belongs to it, selected here, and of workers what `pool/status` shows it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ..protocol import wire
from .entities import Session, Thread, Turn
from .request import Request
from .request_queues import TurnQueue
from .state import BrokerState

TURNS, SESSIONS = "pool/turns/list", "pool/sessions/list"
THREADS, WORKERS = "pool/threads/list", "pool/workers/list"
METHODS = frozenset({TURNS, SESSIONS, THREADS, WORKERS})
DEFAULT_ROWS, MAX_ROWS = 1000, 10_000

# What a running turn waits for, by the method of the app-server's request; another one is named as it is.
WAITS_FOR = {
    "item/commandExecution/requestApproval": "commandApproval",
    "execCommandApproval": "commandApproval",
    "item/fileChange/requestApproval": "fileChangeApproval",
    "applyPatchApproval": "fileChangeApproval",
    "item/permissions/requestApproval": "permissionsApproval",
    "item/tool/requestUserInput": "userInput",
    "mcpServer/elicitation/request": "elicitation",
}
# What a queued turn waits for, by the reason of its queue.
_QUEUED_FOR = {
    "turn": "permit",
    "worker": "worker",
    "worker's end": "threadMove",
    "thread move": "threadMove",
    "thread capacity": "threadCapacity",
}

Row = dict[str, Any]


def listed(
    method: str, state: BrokerState, own: str | None, limit: int | None, status: Callable[[], Row]
) -> dict[str, Any]:
    """Return the answer to one of METHODS: the first rows and how many there are.

    `own` is the principal of a limited key, None for a client that may see all; `limit` the number of rows wanted,
    DEFAULT_ROWS if None; `status` gives the result of pool/status.
    """
    wanted = max(1, min(limit if limit is not None else DEFAULT_ROWS, MAX_ROWS))
    if method == WORKERS:
        rows = worker_rows(status(), is_limited=own is not None)
        return {"data": rows[:wanted], "total": len(rows)}
    if method == THREADS:
        return thread_rows(state, own, wanted)
    rows = turn_rows(state, own) if method == TURNS else session_rows(state, own)
    return {"data": rows[:wanted], "total": len(rows)}


# Turns.


def turn_rows(state: BrokerState, own: str | None = None) -> list[Row]:
    """List the turns: those that wait for a person first, then those that run, then those to be started, and those in
    a queue; each kind with the oldest, or the next to be started, first."""
    running = [
        _running_row(state, turn_id, turn, own)
        for turn_id, turn in state.turns.items()
        if own is None or state.threads.owner_of(turn.thread_id) == own
    ]
    starting = [
        _request_row(state, request, "starting")
        for worker in state.workers.values()
        for request in map(worker.requests.__getitem__, worker.starting)
        if own is None or request.principal == own
    ]
    queued = [_request_row(state, request, "queued", place) for request, place in _queued(state, own)]
    queued.sort(key=lambda row: (row["place"] is None, row["place"], -row["ageS"]))
    rows = sorted(running, key=lambda row: (row["state"] != "waiting", -(row["waitedS"] or 0), -row["ageS"]))
    return [*rows, *sorted(starting, key=lambda row: -row["ageS"]), *queued]


def _queued(state: BrokerState, own: str | None) -> Iterator[tuple[Request, int | None]]:
    """Yield each held request for a turn, and its place among those that wait with the same worker, from 1.

    A limited key does not learn how many others wait: its place is that among its own.
    """

    def is_shown(request: Request) -> bool:
        return own is None or request.principal == own

    for worker in state.workers.values():
        for place, request in enumerate(filter(is_shown, worker.queue.in_order()), 1):
            yield request, place
    for request in filter(is_shown, state.requests.by_state["held"]):
        if request.starts_turn and not isinstance(request.queue, TurnQueue):
            yield request, None


def _running_row(state: BrokerState, turn_id: str, turn: Turn, own: str | None) -> Row:
    worker = state.workers.get(turn.worker)
    since = worker.waiting.get(turn_id) if worker is not None else None
    sessions = [each for each in turn.sessions if own is None or each.principal == own]
    principal = state.threads.owner_of(turn.thread_id)
    first = state.sessions.get(sessions[0]) if sessions else None
    return {
        "turnId": turn_id,
        "threadId": turn.thread_id,
        "rootTurnId": _root_of(state, turn),
        **_who(state, principal, first),
        "followers": len(sessions),
        "state": "running" if since is None else "waiting",
        "waitsFor": None if since is None else WAITS_FOR.get(turn.waits_for, turn.waits_for or "approval"),
        "waitedS": None if since is None else _s(state.now - since),
        "place": None,
        "worker": turn.worker,
        "slot": worker.slot if worker is not None else None,
        "ageS": _s(state.now - turn.began_at),
        "lastEventAgeS": _s(state.now - turn.heard_at),
        "tokens": _tokens(turn.tokens),
    }


def _request_row(state: BrokerState, request: Request, kind: str, place: int | None = None) -> Row:
    thread = state.threads.get(request.thread_id or "")
    reason = request.queue.reason if request.queue is not None else ""
    waits_for = _QUEUED_FOR.get(reason, reason) if kind == "queued" else None
    if waits_for == "permit" and thread is not None and thread.busy:
        waits_for = "thread"
    worker = state.workers.get(request.worker or (thread.worker if thread is not None else "") or "")
    age_s = _s(state.now - request.came_at)
    return {
        "turnId": None,
        "threadId": request.thread_id,
        "rootTurnId": None,
        **_who(state, request.principal, state.session(request)),
        "followers": 0,
        "state": kind,
        "waitsFor": waits_for,
        "waitedS": age_s if kind == "queued" else None,
        "place": place,
        "worker": worker.name if worker is not None else None,
        "slot": worker.slot if worker is not None else None,
        "ageS": age_s,
        "lastEventAgeS": None,
        "tokens": None,
    }


def _root_of(state: BrokerState, turn: Turn) -> str | None:
    """Return the turn that a sub-agent's turn works for, the topmost one; None for a turn of no sub-agent."""
    above = [state.threads.get(thread_id) for thread_id in state.threads.ancestors(turn.thread_id)]
    turns = [turn_id for thread in above if thread is not None for turn_id in thread.turns]
    return turns[-1] if turns else None


def _who(state: BrokerState, principal: str, session: Session | None) -> Row:
    return {
        "principal": principal,
        "principalName": state.name_of(principal),
        "session": session.id.session if session is not None else None,
        "client": session.client if session is not None else None,
    }


def _tokens(tokens: wire.Tokens | None) -> Row | None:
    if tokens is None:
        return None
    return {
        "inputTokens": tokens.input,
        "cachedInputTokens": tokens.cached,
        "outputTokens": tokens.output,
        "reasoningOutputTokens": tokens.reasoning,
        "totalTokens": tokens.input + tokens.output,
    }


# Sessions.


def turns_by_session(state: BrokerState) -> tuple[Counter[wire.SessionId], Counter[wire.SessionId]]:
    """Count the turns of each session that run, and those of them that wait for a person."""
    turns = Counter(session for turn in state.turns.values() for session in turn.sessions)
    waiting = Counter(
        session
        for worker in state.workers.values()
        for turn_id in worker.waiting
        if turn_id in state.turns
        for session in state.turns[turn_id].sessions
    )
    return turns, waiting


def session_rows(state: BrokerState, own: str | None = None) -> list[Row]:
    """List the sessions, those with the most turns first, then the oldest."""
    turns, waiting = turns_by_session(state)
    rows = [
        {
            "session": session.id.session,
            "principal": session.principal,
            "principalName": state.name_of(session.principal),
            "client": session.client,
            "program": session.program,
            "programVersion": session.program_version,
            "listener": session.listener,
            "state": "away" if session.is_away else "connected",
            "awayS": _s(state.now - session.away_since) if session.away_since is not None else None,
            "priority": session.priority,
            "whenGone": session.when_gone,
            "turns": turns[session.id],
            "waiting": waiting[session.id],
            "queued": sum(request.starts_turn for request in session.held.values()),
            "heldBytes": session.held_bytes,
            "ageS": _s(state.now - session.began_at),
        }
        for session in state.sessions.values()
        if own is None or session.principal == own
    ]
    return sorted(rows, key=lambda row: (-row["turns"], -row["queued"], -row["ageS"]))


# Threads.


def thread_rows(state: BrokerState, own: str | None, limit: int) -> dict[str, Any]:
    """List the threads that the pool knows, those that run a turn first, then the ones used last."""
    threads = [thread for thread in state.threads.values() if own is None or thread.record.owner == own]
    first = heapq.nlargest(limit, threads, key=lambda thread: (bool(thread.turns), thread.used_at))
    return {"data": [_thread_row(state, thread, own) for thread in first], "total": len(threads)}


def _thread_row(state: BrokerState, thread: Thread, own: str | None) -> Row:
    record = thread.record
    worker = state.workers.get(thread.worker or "")
    where = "moving" if thread.moving is not None else "loaded" if thread.worker is not None else "stored"
    return {
        "threadId": record.thread_id,
        "parentThreadId": state.threads.parents.get(record.thread_id),
        "principal": record.owner,
        "principalName": state.name_of(record.owner),
        "state": "running" if thread.turns else "starting" if thread.starting else where,
        "worker": thread.worker,
        "slot": worker.slot if worker is not None else None,
        "turnId": min(thread.turns, default=None),
        "turns": record.turns,
        "followers": sum(own is None or session.principal == own for session in thread.followers),
        "ephemeral": record.ephemeral,
        "model": record.model,
        "cwd": record.cwd,
        "idleS": 0.0 if thread.turns else _s(state.now - thread.used_at),
    }


# Workers.


def worker_rows(status: Row, *, is_limited: bool = False) -> list[Row]:
    """List a row for each slot, and one for each worker that drains beside the worker of its slot."""
    slots = status["workers"]
    if is_limited:
        return [{name: row[name] for name in ("slot", "state", "restarts")} for row in slots]
    named = {row.get("worker") for row in slots}
    rows = [*slots, *(row for row in status["draining"] if row["worker"] not in named)]
    return [_worker_row(row, status["turnsPerWorker"]) for row in rows]


def _worker_row(row: Row, turns_per_worker: int) -> Row:
    in_seconds = {f"{name[:-2]}S": value / 1000 for name, value in row.items() if name.endswith("Ms") and value}
    rest = {name: value for name, value in row.items() if not name.endswith("Ms")}
    return {"worker": None, **rest, **in_seconds, "turnsPerWorker": turns_per_worker}


def _s(seconds: float) -> float:
    return round(max(0.0, seconds), 3)
