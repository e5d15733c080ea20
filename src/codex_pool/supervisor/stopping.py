"""The end of a pool's processes: asked first, then killed, all within 10 s."""

from __future__ import annotations

import selectors
import time
from collections.abc import Iterable

from .child_process import Child

# Of the workers, which end an app-server that does not listen within 4 s; and of the holder of the account, which may
# be asking the issuer, from the same moment on. With a second for the broker and one for ingress, gateway and tracer,
# all is over within 10 s.
WORKERS_STOP_LIMIT_S = 6.0
HOLDER_STOP_LIMIT_S = 7.0
BROKER_STOP_LIMIT_S = 1.0
ENTRANCE_STOP_LIMIT_S = 1.0


def stop(workers: Iterable[Child], holder: Child | None, broker: Child | None, last: Iterable[Child | None]) -> None:
    """End workers and the holder of the account, then the broker, then those that send on what these have sent last:
    ingress, gateway and tracer."""
    begun = time.monotonic()
    waited_for = [*workers]
    holders = [] if holder is None else [holder]
    for child in (*waited_for, *holders):
        child.close_stdin()
    await_ends(waited_for, WORKERS_STOP_LIMIT_S)
    await_ends(holders, begun + HOLDER_STOP_LIMIT_S - time.monotonic())
    for group, limit_s in (([broker], BROKER_STOP_LIMIT_S), (last, ENTRANCE_STOP_LIMIT_S)):
        there = [child for child in group if child is not None]
        for child in there:
            child.close_stdin()
        await_ends(there, limit_s)


def reap(child: Child) -> str:
    """Reap a child whose stdout has ended, after killing it if that was only closed; return how it ended."""
    how = child.reap(1.0)
    if how is None:
        child.kill()
        how = child.reap(5.0) or "it could not be reaped"
    return how


def await_ends(children: list[Child], timeout_s: float) -> None:
    """Let children end that were asked to; their reports are read, so that a full pipe does not hold them up."""
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child, selectors.EVENT_READ, child)
        while selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                if key.data.reports()[1]:
                    selector.unregister(key.fileobj)
        for key in list(selector.get_map().values()):
            key.data.kill()
    for child in children:
        reap(child)
