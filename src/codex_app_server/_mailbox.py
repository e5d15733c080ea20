"""Mailbox: what has come for one listener and has not been looked at yet.

Batches go in on one side, single notifications come out on the other, made when they are taken: who takes one has the
rest of its batch in `current`. A mailbox ends once: after what it holds has been read, it is over, or raises the error
it was closed with - again and again, so that nobody waits for nothing.

While more than MAX_WAITING_BYTES wait, further deltas are left out; where they stood comes a notification
`sdk/deltas/dropped` with their `count`. Nothing else is ever left out.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from types import MappingProxyType

from ._fork import check_process
from ._waking import Waiters
from .generated.routing import NOTIFICATIONS
from .notifications import Notification

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
        "ref",
        "turn_id",
    )

    def __init__(self, *, max_lines: int | None = None) -> None:
        # Lines, or a stretch of them; their methods, or that of all, "" if it is not known; what that counts in bytes.
        self._waiting: deque[tuple[list[bytes] | bytes, Sequence[str], int]] = deque()
        # The rest of the batch that is being read; whoever takes from it gets what no other reader gets.
        self.current: Iterator[Notification] = iter(())
        self._max_lines = max_lines
        # Two counts, because they are written by different threads.
        self._put_bytes = 0
        self._taken_bytes = 0
        self._left_out = 0
        self._closed = False
        self._error: Exception | None = None
        self.dropped = 0
        self.turn_id: str | None = None
        # A router holds mailboxes weakly: one that its reader has dropped costs nothing. Hashed while alive, because
        # a dead reference can be hashed only if it was before.
        self.ref = weakref.ref(self)
        hash(self.ref)

    def put(
        self, lines: list[bytes], methods: Sequence[str] = (), counts: Mapping[int, int] = MappingProxyType({})
    ) -> None:
        """What has come; `methods` runs parallel to `lines`, or is empty.

        `counts`: by their place in `lines` the stretches, many deltas of one method with the newlines between them.
        """
        if self._closed:
            return
        begin = 0
        for place, count in counts.items():
            self._put_lines(lines[begin:place], methods[begin:place])
            self._put_stretch(lines[place], methods[place], count)
            begin = place + 1
        self._put_lines(lines[begin:] if begin else lines, methods[begin:] if begin else methods)
        if self._max_lines is not None:
            while len(self._waiting) > self._max_lines:
                self._taken_bytes += self._waiting.popleft()[2]
                self.dropped += 1
        self._wake()

    def close(self, error: Exception | None = None) -> None:
        """No more lines will come; the first reason counts."""
        if not self._closed:
            self._note_left_out()
            self._closed, self._error = True, error
            self._wake()

    def _put_lines(self, lines: list[bytes], methods: Sequence[str]) -> None:
        size = sum(map(len, lines))
        self._put_bytes += size
        if self._is_full or self._left_out or self._max_lines is not None:
            self._put_one_by_one(map(Notification, lines, methods or repeat("")))
        elif lines:
            self._waiting.append((lines, methods or "", size))

    def _put_stretch(self, stretch: bytes, method: str, count: int) -> None:
        self._put_bytes += len(stretch)
        if self._is_full:
            self._put_bytes -= len(stretch)
            self._left_out += count
            return
        self._note_left_out()
        self._waiting.append((stretch, method, len(stretch)))

    @property
    def _is_full(self) -> bool:
        return self._put_bytes - self._taken_bytes > MAX_WAITING_BYTES

    def _put_one_by_one(self, came: Iterable[Notification]) -> None:
        """A ring has each by itself; without room a delta is left out."""
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
    def closed(self) -> bool:
        return self._closed

    @property
    def ended(self) -> bool:
        """Whether it was closed without an error: everything has come."""
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
            if isinstance(lines, bytes):
                lines = lines.split(b"\n")
            self.current = map(Notification, lines, repeat(methods) if isinstance(methods, str) else methods)

    def _wake(self) -> None:
        raise AssertionError("abstract")


class SyncMailbox(Mailbox):
    """For threads. `put` and `close` never wait for a reader, whatever a signal handler has interrupted in one."""

    __slots__ = ("_made_in", "_readers", "_waiters")

    def __init__(self, *, max_lines: int | None = None) -> None:
        super().__init__(max_lines=max_lines)
        self._readers = threading.RLock()
        self._waiters = Waiters()
        self._made_in = os.getpid()

    def get(self, timeout_s: float | None = None) -> Notification | None:
        """The next notification, None at the end.

        Raises TimeoutError, the error the mailbox was closed with, WrongProcessError.
        """
        check_process(self._made_in, "client")
        for notification in self.current:
            return notification
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            # Locked: of two readers that both find the batch at its end one takes the next.
            with self._readers:
                try:
                    return self._pop()
                except IndexError:
                    pass
            # Another thread may take what this one was woken for.
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError(f"no notification within {timeout_s} s")
            waiter = self._waiters.add()
            if self._waiting or self._closed:
                self._waiters.drop(waiter)
            else:
                self._waiters.wait(waiter, left_s)

    def _wake(self) -> None:
        self._waiters.wake()
