"""What pool/status says: plain JSON values, times in milliseconds."""

from __future__ import annotations

from collections import Counter
from typing import Any

from codex_pool.broker.books import Books
from codex_pool.broker.pace import Pace
from codex_pool.broker.records import Worker
from codex_pool.broker.workers import state_of
from codex_pool.problems import shown
from codex_pool.wire import TURN_ENDS


def status_of(
    books: Books,
    pace: Pace,
    slot_states: list[dict[str, Any]],
    problems: list[dict[str, Any]],
    started_at: float,
    *,
    roomless: int = 0,
) -> dict[str, Any]:
    """The whole pool. `roomless` is how many requests wait until a worker may load their thread."""
    agents = books.agents()
    by_worker = Counter(turn.worker for turn in agents)
    return {
        "uptimeMs": _ms(books.now - started_at),
        "turnsPerWorker": books.turns_per_worker,
        "workers": _slot_rows(books, slot_states, by_worker),
        "draining": [_worker_row(worker, books.now, by_worker) for worker in books.workers.values() if worker.draining],
        "clients": [session.client for session in books.sessions.values()],
        "sessions": _session_rows(books),
        "threads": len(books.threads),
        "threadsWaiting": roomless,
        "turns": {"running": len(books.turns), "subAgents": len(agents), "queued": _queued(books), **books.ended},
        "refused": dict(books.refused),
        "pace": pace.status(books.now),
        "log": {"lostLines": books.lost_lines},
        "problems": shown(problems, books.now),
    }


def seen_by(status: dict[str, Any], who: str, threads: int) -> dict[str, Any]:
    """Reduce the status to what a limited key may see: slots; of clients, turns and threads its own."""
    sessions = [row for row in status["sessions"] if row["principal"] == who]
    shown = ("slot", "state", "restarts")
    running, agents, queued = (sum(row[name] for row in sessions) for name in ("turns", "subAgents", "queued"))
    ended = dict.fromkeys(TURN_ENDS, 0)
    return {
        **{name: status[name] for name in ("uptimeMs", "turnsPerWorker")},
        "workers": [{name: row[name] for name in shown} for row in status["workers"]],
        "turns": {"running": running, "subAgents": agents, "queued": queued, **ended},
        "clients": [row["client"] for row in sessions],
        "sessions": sessions,
        "threads": threads,
    }


def _slot_rows(books: Books, states: list[dict[str, Any]], agents: Counter[str]) -> list[dict[str, Any]]:
    """One row per slot: what the supervisor says of it (`states`), and of its worker if it has one that stays."""
    by_slot = {worker.slot: worker for worker in sorted(books.workers.values(), key=lambda worker: not worker.draining)}
    rows = []
    for slot in range(books.slots):
        known = next((state for state in states if state["slot"] == slot), {})
        row: dict[str, Any] = {"state": "starting", "restarts": 0, **known, "slot": slot}
        retry_at = row.pop("retryAt", None)
        row["retryInMs"] = None if retry_at is None else _ms(max(0.0, retry_at - books.now))
        worker = by_slot.get(slot)
        rows.append({**row, **_worker_row(worker, books.now, agents)} if worker is not None else row)
    return rows


def _worker_row(worker: Worker, now: float, agents: Counter[str]) -> dict[str, Any]:
    progress = worker.progress
    return {
        "slot": worker.slot,
        "state": state_of(worker, now),
        "worker": worker.name,
        "pid": worker.pid,
        "appServerPid": worker.app_server_pid,
        # Those of sub-agents among them.
        "turns": len(worker.turns),
        "subAgents": agents[worker.name],
        "queued": len(worker.waiting),
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


def _session_rows(books: Books) -> list[dict[str, Any]]:
    turns = Counter(session for turn in books.turns.values() for session in turn.sessions)
    agents = Counter(session for turn in books.agents() for session in turn.sessions)
    return [
        {
            "client": session.client,
            "identity": books.name_of(session.who),
            "principal": session.who,
            "state": "connected" if session.away_since is None else "away",
            "awayMs": _ms(books.now - session.away_since) if session.away_since is not None else 0,
            "priority": session.priority,
            "turns": turns[session.id],
            "subAgents": agents[session.id],
            "queued": len(session.waiting),
        }
        for session in books.sessions.values()
    ]


def _queued(books: Books) -> int:
    return sum(len(worker.waiting) for worker in books.workers.values()) + len(books.homeless)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
