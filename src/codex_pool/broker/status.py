"""What pool/status says of the slots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from codex_pool.broker.records import Worker


def slot_rows(slots: int, states: list[dict[str, Any]], workers: Iterable[Worker], now: float) -> list[dict[str, Any]]:
    """One row per slot: what the supervisor says of it (`states`), and of its worker if it has one. Times in ms."""
    by_slot = {worker.slot: worker for worker in workers}
    rows = []
    for slot in range(slots):
        known = next((state for state in states if state["slot"] == slot), {})
        row: dict[str, Any] = {"state": "starting", "restarts": 0, **known, "slot": slot}
        worker = by_slot.get(slot)
        if worker is not None:
            progress = worker.progress
            row |= {
                "state": "silent" if worker.suspected else "ready",
                "worker": worker.name,
                "pid": worker.pid,
                "appServerPid": worker.app_server_pid,
                "turns": len(worker.turns),
                "queued": len(worker.waiting),
                "threads": len(worker.threads),
                "inFlight": progress.in_flight if progress is not None else 0,
                "lines": progress.lines if progress is not None else 0,
                "beatAgeMs": round((now - worker.seen_at) * 1000),
            }
        rows.append(row)
    return rows
