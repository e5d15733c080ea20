"""Turns on the side: those that a client starts by itself beside the turn that its user waits for. Pure.

The codex TUI starts a thread for each first prompt, ephemeral and with one short turn, to find a title. With all turns
in one queue it would wait in front of other users' turns, or have a turn of its own user's wait. So a turn of an
ephemeral thread, of a session that also has a turn on a stored thread, is on the side: it starts after all other turns
that may start, and one on each worker needs no permit, so that it comes soon wherever all permits are taken. Measured
with one turn at a time and three such clients: titles come in 0.2 s instead of 1.8 s, and turns as without titles.

That is for clients that do not know the queue (`Hello.knows_queue`); others set the priority of their session.
"""

from __future__ import annotations

from .entities import Thread, Worker
from .request import Request
from .state import BrokerState


def is_on_side(state: BrokerState, request: Request, thread: Thread | None) -> bool:
    """True for a turn on the side."""
    session = state.session(request)
    if session is None or session.knows_queue or thread is None or not thread.record.ephemeral:
        return False
    held = (each.thread_id for each in session.held.values() if each.starts_turn)
    sent = (each.thread_id for each in state.requests.by_number.values() if _starts_turn_of(each, session.id))
    running = (turn.thread_id for turn in state.turns.values() if session.id in turn.sessions)
    return any(_is_stored(state, thread_id) for threads in (held, sent, running) for thread_id in threads)


def started(state: BrokerState, request: Request, worker: Worker) -> None:
    """Note that a turn has been sent to this worker: without a permit, if it is the only one there on the side."""
    if request.on_side and not worker.side_thread and request.state == "dispatched":
        worker.side_thread = request.thread_id or ""
        state.busy.eased(worker)


def settle(state: BrokerState, worker: Worker) -> None:
    """Note that something has ended on this worker; its turn on the side may be over."""
    if worker.side_thread:
        thread = state.threads.get(worker.side_thread)
        if thread is None or thread.worker != worker.name or not thread.busy:
            worker.side_thread = ""


def _starts_turn_of(request: Request, session: object) -> bool:
    return request.starts_turn and request.session == session


def _is_stored(state: BrokerState, thread_id: str | None) -> bool:
    thread = state.threads.get(thread_id or "")
    return thread is not None and not thread.record.ephemeral
