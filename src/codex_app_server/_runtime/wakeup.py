"""Waiting and waking without a lock that a signal handler or a finalizer could find held by the code it interrupted.

A signal handler runs in the main thread between any two instructions, a finalizer in any thread at any allocation. The
classes of `threading` hold a lock while they look at their state; one that is interrupted there waits for itself when
it is used again. Here every step is one operation of C, and each waiter has a lock that no other thread waits for.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Waiters:
    """Threads that wait for something to happen, which they look at themselves."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[threading.Lock] = deque()

    def add(self) -> threading.Lock:
        """A new waiter. Look once more whether to wait at all, then call `wait` with it."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiting.append(waiter)
        return waiter

    def wait(self, waiter: threading.Lock, timeout_s: float | None = None) -> None:
        """Wait until `wake` is called, or until the time is over."""
        woken = False
        try:
            woken = waiter.acquire(timeout=-1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX))
        finally:
            if not woken:
                self.drop(waiter)

    def drop(self, waiter: threading.Lock) -> None:
        """Forget a waiter that does not wait."""
        # Others may come and go while it is looked for.
        with contextlib.suppress(ValueError, IndexError):
            self._waiting.remove(waiter)

    def wake(self) -> None:
        """Wake all who wait now. From any thread."""
        while True:
            try:
                waiter = self._waiting.popleft()
            except IndexError:
                return
            waiter.release()


class Latch:
    """Opens once, and stays open."""

    __slots__ = ("_is_open", "_waiters")

    def __init__(self) -> None:
        self._is_open = False
        self._waiters = Waiters()

    @property
    def is_open(self) -> bool:
        return self._is_open

    def open(self) -> None:
        """Wake all waiters, and let later ones pass. May be called from any thread, signal handler or finalizer."""
        self._is_open = True
        self._waiters.wake()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is open, at most `timeout_s` seconds; return True if it is."""
        if not self._is_open:
            waiter = self._waiters.add()
            if self._is_open:
                self._waiters.drop(waiter)
            else:
                self._waiters.wait(waiter, timeout_s)
        return self._is_open


class Answer:
    """The outcome of a request: set once, waited for by threads."""

    __slots__ = ("_error", "_latch", "_result")

    def __init__(self) -> None:
        self._latch = Latch()
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._latch.is_open

    def set_result(self, result: Any, /) -> None:
        self._result = result
        self._latch.open()

    def set_exception(self, exception: BaseException, /) -> None:
        self._error = exception
        self._latch.open()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the answer, at most `timeout_s` seconds; return True if it is there."""
        return self._latch.wait(timeout_s)

    def result(self) -> Any:
        """Return the answer that is there. Raises the error that it is."""
        if self._error is not None:
            raise self._error
        return self._result


class WakePipe:
    """Wakes a thread that polls `descriptor`. POSIX only.

    Its descriptors are closed when nothing refers to it any more, so a late wake-up never writes to a descriptor that
    belongs to something else by then. The caller of `wake` takes a reference first.
    """

    __slots__ = ("_writer", "descriptor")

    def __init__(self) -> None:
        self.descriptor = self._writer = -1
        self.descriptor, self._writer = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._writer, False)

    @property
    def descriptors(self) -> tuple[int, int]:
        return self.descriptor, self._writer

    def wake(self) -> None:
        """Wake the polling thread. May be called from any thread, signal handler or finalizer."""
        # Full: it is going to look anyway.
        with contextlib.suppress(OSError):
            os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Called by the thread that was woken, before it looks at what there is to do."""
        with contextlib.suppress(OSError):
            os.read(self.descriptor, 4096)

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        for descriptor in (self.descriptor, self._writer):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    _close(descriptor)
