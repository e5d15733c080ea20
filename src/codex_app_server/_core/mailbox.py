"""Mailbox: what has come for one listener and has not been looked at yet.

Batches go in on one side, single notifications come out on the other, made when they are taken: who takes one has the
rest of its batch in `current`. A mailbox ends once: after what it holds has been read, it is over, or raises the error
it was closed with, at every further read, so that no reader waits without end.

While more than MAX_WAITING_BYTES wait, further deltas are left out; where they stood comes a notification
`sdk/deltas/dropped` with their `count`. Nothing else is ever left out.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat

from ..generated.routing import NOTIFICATIONS
from ..notifications import Notification

MAX_WAITING_BYTES = 64 * 1024 * 1024
DELTAS_DROPPED = "sdk/deltas/dropped"

_DROPPABLE = frozenset(name for name, entry in NOTIFICATIONS.items() if entry.droppable)


class Mailbox:
    """The part that the sync and the async mailbox share; `_wake` is theirs.

    `max_lines` makes it a ring: the oldest lines give way, counted in `dropped`.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_error",
        "_left_out",
        "_max_lines",
        "_put_bytes",
        "_taken_bytes",
        "_waiting",
        "current",
        "dropped",
        "on_silence",
        "ref",
        "turn_id",
    )

    def __init__(self, *, max_lines: int | None = None) -> None:
        # Lines; their methods, or that of all, "" if it is not known; what that counts in bytes.
        self._waiting: deque[tuple[list[bytes], Sequence[str], int]] = deque()
        # The rest of the batch that is being read; a reader that takes from it gets what no other reader gets.
        self.current: Iterator[Notification] = iter(())
        self._max_lines = max_lines
        # Two counts, because they are written by different threads.
        self._put_bytes = 0
        self._taken_bytes = 0
        self._left_out = 0
        self._closed = False
        self._error: Exception | None = None
        self.dropped: int = 0
        self.turn_id: str | None = None
        # Called when a reader has waited SILENT_S seconds and nothing has come; None: nothing is to be done about it.
        self.on_silence: Callable[[], None] | None = None
        # A router holds mailboxes weakly: one that its reader has dropped costs nothing. Hashed while alive, because
        # a dead reference can be hashed only if it was before.
        self.ref: weakref.ref[Mailbox] = weakref.ref(self)
        hash(self.ref)

    def put(self, lines: list[bytes], methods: Sequence[str] = ()) -> None:
        """Add what has come; `methods` runs parallel to `lines`, or is empty."""
        if self._closed:
            return
        size = sum(map(len, lines))
        self._put_bytes += size
        if self._is_full or self._left_out or self._max_lines is not None:
            self._put_one_by_one(map(Notification, lines, methods or repeat("")))
        elif lines:
            self._waiting.append((lines, methods or "", size))
        if self._max_lines is not None:
            while len(self._waiting) > self._max_lines:
                self._taken_bytes += self._waiting.popleft()[2]
                self.dropped += 1
        self._wake()

    def close(self, error: Exception | None = None) -> None:
        """Note that no more lines will come. Of several calls the first gives the reason."""
        if not self._closed:
            self._note_left_out()
            self._closed, self._error = True, error
            self._wake()

    @property
    def _is_full(self) -> bool:
        return self._put_bytes - self._taken_bytes > MAX_WAITING_BYTES

    def _put_one_by_one(self, came: Iterable[Notification]) -> None:
        """Append each notification as an entry of its own; without room, leave out deltas."""
        for notification in came:
            if self._is_full and notification.method in _DROPPABLE:
                self._put_bytes -= len(notification.raw)
                self._left_out += 1
                continue
            self._note_left_out()
            self._waiting.append(([notification.raw], notification.method, len(notification.raw)))

    def _note_left_out(self) -> None:
        if self._left_out:
            count, self._left_out = self._left_out, 0
            line = b'{"method":"%s","params":{"count":%d}}' % (DELTAS_DROPPED.encode(), count)
            self._waiting.append(([line], DELTAS_DROPPED, 0))

    @property
    def received_bytes(self) -> int:
        """The size of all that has come."""
        return self._put_bytes

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def ended(self) -> bool:
        """True if it was closed without an error: everything has come."""
        return self._closed and self._error is None

    def _pop(self) -> Notification | None:
        """The next one; None at the end. Raises IndexError while there is nothing yet, or the closing error."""
        while True:
            for notification in self.current:
                return notification
            try:
                lines, methods, size = self._waiting.popleft()
            except IndexError:
                if not self._closed:
                    raise
                # What came between the look and the close is there now.
                if self._waiting:
                    continue
                if self._error is not None:
                    # Raised again and again, one exception would gather the traces of all its raises.
                    raise self._error.with_traceback(None) from None
                return None
            self._taken_bytes += size
            self.current = map(Notification, lines, repeat(methods) if isinstance(methods, str) else methods)

    def _wake(self) -> None:
        raise AssertionError("abstract")
