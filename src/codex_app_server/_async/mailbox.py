"""AsyncMailbox, and reading it as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator

from .._core import silence
from .._core.deadlines import deadline_after, left_s
from .._core.mailbox import Mailbox
from .._runtime import event_loops
from ..notifications import Notification

_running_loop = asyncio._get_running_loop


class AsyncMailbox(Mailbox):
    """Mailbox for one event loop, that of its first reader unless given; call `put` and `close` on that loop."""

    __slots__ = ("_loop_owner", "_silence", "_waiters")

    def __init__(self, *, max_lines: int | None = None, owner: event_loops.LoopOwner | None = None) -> None:
        super().__init__(max_lines=max_lines)
        self._loop_owner = owner or event_loops.LoopOwner()
        self._waiters: list[asyncio.Future[None]] = []
        # One timer for all waits: most are short, and a timer for each would cost more than they do.
        self._silence: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """Raises WrongEventLoopError, WrongProcessError."""
        self._loop_owner.enter()

    async def get(self, timeout_s: float | None = None) -> Notification | None:
        """The next notification, None at the end.

        Raises TimeoutError, the error the mailbox was closed with, WrongEventLoopError, WrongProcessError.
        """
        loop = self._loop_owner.enter()
        deadline = deadline_after(timeout_s)
        while True:
            try:
                return self._pop()
            except IndexError:
                pass
            # Another task may take what this one was woken for.
            rest_s = left_s(deadline)
            if rest_s == 0:
                raise TimeoutError(f"no notification within {timeout_s} s")
            waiter = loop.create_future()
            self._waiters.append(waiter)
            if self._silence is None and self.on_silence is not None:
                self._time_silence(loop)
            timer = None if rest_s is None else loop.call_later(rest_s, _wake, waiter)
            try:
                await waiter
            finally:
                if timer is not None:
                    timer.cancel()
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def close(self, error: Exception | None = None) -> None:
        super().close(error)
        self.on_silence = None
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _time_silence(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weakly: the timer must not keep what its reader has dropped.
        self._silence = loop.call_later(silence.SILENT_S, _look, self.ref, self.received_bytes, loop)

    def _look(self, received_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self._silence = None
        if self.on_silence is None or not self._waiters:
            return
        if self.received_bytes == received_bytes:
            self.on_silence()
        if not self._closed:
            self._time_silence(loop)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            # Nothing waits any more on a loop that is closed.
            with contextlib.suppress(RuntimeError):
                _wake(waiter)


class AsyncMailboxReader(AsyncIterator[Notification]):
    """Gives out the notifications of a mailbox, each once. Cancelling the wait loses none and leaves the turn alone."""

    _mailbox: AsyncMailbox

    async def __anext__(self) -> Notification:
        mailbox = self._mailbox
        # Written out, because it comes for each notification. In a process that was forked from a loop no loop runs.
        if _running_loop() is not mailbox._loop_owner.loop:
            mailbox.check()
        for there in mailbox.current:
            return there
        notification = await mailbox.get()
        if notification is None:
            raise StopAsyncIteration
        return notification

    async def next(self, timeout_s: float | None = None) -> Notification | None:
        """The next notification, None at the end. Raises TimeoutError when none comes in time; the turn goes on."""
        return await self._mailbox.get(timeout_s)


def _look(mailbox: weakref.ref[Mailbox], received_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
    there = mailbox()
    if isinstance(there, AsyncMailbox):
        there._look(received_bytes, loop)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
