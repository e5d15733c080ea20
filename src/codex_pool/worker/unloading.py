"""Unloading of idle threads, so that another worker can load them. Pure.

Only archiving makes an app-server unload a thread. It is taken out of the archive here too: another app-server would
look for it in its own database, and find it where it was before, if it knows it at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..protocol import jsonrpc, wire
from .effects import LINES, Outbox
from .request_answers import INVALID_REQUEST
from .request_table import RequestTable
from .running_turns import RunningTurns
from .threads import Threads

_DONE = b'{"id":null,"result":{}}'


class ThreadReleases:
    """Threads that the broker has a worker let go of."""

    def __init__(self, threads: Threads, requests: RequestTable, running: RunningTurns, outbox: Outbox) -> None:
        self._threads = threads
        self._requests = requests
        self._running = running
        self._outbox = outbox
        # Number of the broker: call numbers of one mean nothing to the next.
        self._broker = 0

    def new_broker(self) -> None:
        """The next broker waits for no answer."""
        self._broker += 1

    def release(self, head: wire.Release) -> None:
        """Unload an idle thread, so that another worker can load it."""
        broker = self._broker

        def answered(ok: bool, line: bytes) -> None:
            if broker == self._broker:
                self._outbox.broker(wire.encode(wire.Answered(head.call, ok)), LINES, line)
            elif ok:
                # The broker that requested it is gone, and to the next one it was reported as loaded here.
                self._outbox.broker(wire.encode(wire.ThreadGone(head.thread_id, keep=True)))

        if any(self._running.runs_on(thread_id) for thread_id in self._threads.family(head.thread_id)):
            message = f"thread {head.thread_id} or a sub-agent of it runs a turn, so that it cannot be put away"
            answered(False, jsonrpc.error_line(b"null", INVALID_REQUEST, message))
        else:
            _unload(self._threads, self._requests, head.thread_id, head.children, answered)


def _unload(
    threads: Threads,
    requests: RequestTable,
    thread_id: str,
    children: Iterable[str],
    answered: Callable[[bool, bytes], None],
) -> None:
    """Unload a thread; `answered` receives success and the answer, as a line.

    `children`, the threads of its sub-agents, are archived with it, and taken out one by one; one that is not there is
    no error.
    """
    if thread_id not in threads:
        # It was unloaded meanwhile: another worker can load it.
        answered(True, _DONE)
        return
    below = [*dict.fromkeys((*threads.family(thread_id)[1:], *children))]
    threads.leaving.update((thread_id, *below))
    threads.stays(thread_id)

    def on_archived(line: bytes, is_error: bool) -> None:
        if is_error:
            threads.leaving.difference_update((thread_id, *below))
            threads.idle(thread_id)
            answered(False, jsonrpc.with_id(line, b"null"))
            return
        threads.drop(thread_id)
        unarchive_next()

    def unarchive_next() -> None:
        # The thread itself comes last: another worker may resume it as soon as this is answered.
        next_id, then = (below[-1], on_child_unarchived) if below else (thread_id, on_unarchived)
        requests.submit_own("thread/unarchive", {"threadId": next_id}, then, thread_id=next_id)

    def on_child_unarchived(*_: object) -> None:
        child = below.pop()
        threads.leaving.discard(child)
        if child in threads:
            threads.release(child, keep=True)
        unarchive_next()

    def on_unarchived(*_: object) -> None:
        # If that failed it is in the archive, where the next worker looks for it first.
        threads.leaving.discard(thread_id)
        answered(True, _DONE)

    requests.submit_own("thread/archive", {"threadId": thread_id}, on_archived, thread_id=thread_id)
