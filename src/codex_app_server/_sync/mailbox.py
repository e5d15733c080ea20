"""SyncMailbox, and reading it as a stream."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._core import silence
from .._core.deadlines import deadline_after, left_s
from .._core.mailbox import Mailbox
from .._runtime.fork import check_process
from .._runtime.wakeup import Waiters
from ..notifications import Notification

if TYPE_CHECKING:
    from .turn import TurnHandle


class SyncMailbox(Mailbox):
    """Mailbox for threads. `put` and `close` never wait for a reader, even one that a signal handler interrupts."""

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
        deadline = deadline_after(timeout_s)
        silent_from = time.monotonic()
        while True:
            # Locked: of two readers that both find the batch at its end one takes the next.
            with self._readers:
                try:
                    return self._pop()
                except IndexError:
                    pass
            # Another thread may take what this one was woken for.
            rest_s = left_s(deadline)
            if rest_s == 0:
                raise TimeoutError(f"no notification within {timeout_s} s")
            waiter = self._waiters.add()
            if self._waiting or self._closed:
                self._waiters.drop(waiter)
            elif self.on_silence is None:
                self._waiters.wait(waiter, rest_s)
            else:
                received_bytes = self.received_bytes
                self._waiters.wait(waiter, silence.SILENT_S if rest_s is None else min(rest_s, silence.SILENT_S))
                now = time.monotonic()
                if self.received_bytes != received_bytes:
                    silent_from = now
                elif now - silent_from >= silence.SILENT_S and not self._closed:
                    silent_from = now
                    self.on_silence()

    def _wake(self) -> None:
        self._waiters.wake()


class MailboxReader(Iterator[Notification]):
    """Gives out the notifications of a mailbox, each once. Ctrl-C while it waits interrupts the turn."""

    _mailbox: SyncMailbox
    _turn: TurnHandle

    def __iter__(self) -> Iterator[Notification]:
        mailbox = self._mailbox
        try:
            while (notification := mailbox.get()) is not None:
                yield notification
                # The rest of what came with it costs no call for each.
                yield from mailbox.current
        except KeyboardInterrupt:
            self._turn.abandon()
            raise

    def __next__(self) -> Notification:
        for notification in self:
            return notification
        raise StopIteration

    def next(self, timeout_s: float | None = None) -> Notification | None:
        """The next notification, None at the end. Raises TimeoutError when none comes in time; the turn goes on."""
        try:
            return self._mailbox.get(timeout_s)
        except KeyboardInterrupt:
            self._turn.abandon()
            raise
