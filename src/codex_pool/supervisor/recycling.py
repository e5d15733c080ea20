"""Slots whose worker is to be replaced while it works: from when on, and why. Pure.

One successor starts at a time; the old worker may take long. Those that must be renewed are yielded before the worn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..options import PoolOptions
from .slots import Slot

# A bound below what a fresh app-server takes must not spin.
MEMORY_MIN_AGE_S = 10.0


def due(slots: Sequence[Slot], options: PoolOptions, *, pool_ready: bool) -> Iterator[tuple[float, Slot, str]]:
    """Yield from when on a slot is to have another worker, and why; nothing while a successor starts.

    While the pool starts, worn workers are left alone.
    """
    if any(slot.successor for slot in slots):
        return
    yield from _renewals(slots)
    if pool_ready:
        yield from _worn(slots, options)


def _renewals(slots: Sequence[Slot]) -> Iterator[tuple[float, Slot, str]]:
    for slot in slots:
        worker = slot.worker
        if slot.renewal and slot.retired is None and worker is not None and worker.state == "ready":
            yield slot.due, slot, slot.renewal


def _worn(slots: Sequence[Slot], options: PoolOptions) -> Iterator[tuple[float, Slot, str]]:
    for slot in slots:
        worker = slot.worker
        if worker is None or worker.state != "ready" or worker.killing or slot.retired is not None:
            continue
        if options.recycle_turns and worker.turns >= options.recycle_turns:
            yield slot.due, slot, f"{worker.turns} turns, the limit is {options.recycle_turns}"
        elif options.recycle_threads and worker.threads >= options.recycle_threads:
            yield slot.due, slot, f"{worker.threads} threads, the limit is {options.recycle_threads}"
        elif options.recycle_memory_bytes and worker.memory_bytes >= options.recycle_memory_bytes:
            why = f"{worker.memory_bytes} bytes of memory, the limit is {options.recycle_memory_bytes}"
            yield max(slot.due, worker.ready_at + MEMORY_MIN_AGE_S), slot, why
        elif options.recycle_age_s:
            at = worker.ready_at + options.recycle_age_s
            yield max(slot.due, at), slot, f"it has run for {options.recycle_age_s:g} s, the limit"
