"""Keyboard: keys of the terminal one by one, and signals as events. The terminal is left as it was, however that ends.

Linux and macOS only, as the daemon.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SEQUENCES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b[C": "right",
    b"\x1b[D": "left",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1bOC": "right",
    b"\x1bOD": "left",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
    b"\x1b[1~": "home",
}
_LONGEST = max(map(len, _SEQUENCES))
READ_BYTES = 1024


class TerminalGone(Exception):
    """The terminal is gone: its window was closed, or the connection to it."""


class Ended(Exception):
    """A signal has asked the program to end; `number` is that of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def keys_of(data: bytes) -> list[str]:
    """Return the keys in what a terminal sent in one read; sequences that are not known are left out."""
    keys = []
    while data:
        found = next((data[:size] for size in range(_LONGEST, 1, -1) if data[:size] in _SEQUENCES), b"")
        if found:
            keys.append(_SEQUENCES[found])
            data = data[len(found) :]
        elif data[:1] == b"\x1b":
            # An unknown sequence ends with a letter or a tilde.
            end = next((n for n, byte in enumerate(data[2:], 2) if 0x40 <= byte <= 0x7E), len(data) - 1)
            data = data[end + 1 :]
        else:
            keys.append(data[:1].decode("latin-1"))
            data = data[1:]
    return keys


class Keyboard:
    """Keys of standard input. `wake` may be called on any thread, and ends a wait."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._readable, self._writable = os.pipe()
        for fd in (self._readable, self._writable):
            os.set_blocking(fd, False)
        self._suspends = False

    def close(self) -> None:
        os.close(self._readable)
        os.close(self._writable)

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._writable, b"w")

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Take keys one by one, without echo; signals that end the program raise Ended meanwhile."""
        before = termios.tcgetattr(self._fd)
        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP)
        handlers = {number: signal.getsignal(number) for number in numbers}
        try:
            signal.signal(signal.SIGTERM, self._end)
            signal.signal(signal.SIGHUP, self._end)
            signal.signal(signal.SIGWINCH, lambda *_: self.wake())
            signal.signal(signal.SIGTSTP, self._suspend)
            tty.setcbreak(self._fd, termios.TCSANOW)
            yield
        finally:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, before)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def wait(self, seconds: float) -> list[str]:
        """Return the keys that were pressed, after at most `seconds`; none if it was woken. Raises TerminalGone."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._readable, select.POLLIN)
        ready = dict(poller.poll(max(0.0, seconds) * 1000))
        if self._readable in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._readable, READ_BYTES)
        if self._fd not in ready:
            return []
        try:
            data = os.read(self._fd, READ_BYTES)
        except OSError as error:
            raise TerminalGone(str(error)) from None
        if not data:
            raise TerminalGone("standard input has ended")
        return keys_of(data)

    @property
    def suspends(self) -> bool:
        """True once after Ctrl-Z: the caller leaves `raw`, calls `suspend`, and enters it again."""
        suspends, self._suspends = self._suspends, False
        return suspends

    @staticmethod
    def suspend() -> None:
        """Stop this program as Ctrl-Z does, until it is continued."""
        os.kill(os.getpid(), signal.SIGSTOP)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self._suspends = True
        self.wake()

    @staticmethod
    def _end(number: int, frame: FrameType | None) -> None:
        # A second one ends the program even if the terminal takes nothing.
        signal.signal(number, signal.SIG_DFL)
        raise Ended(number)
