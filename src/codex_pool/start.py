"""How a process of the pool begins: its arguments, its signals, its garbage collector."""

from __future__ import annotations

import gc
import os
import signal
import sys


def signal_descriptor(*numbers: int) -> int:
    """A descriptor that becomes readable when one of these signals comes; the handlers themselves do nothing."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader


def collect_rarely() -> None:
    """Leave what was imported out of garbage collections, and look for cycles among the rest less often.

    A process that passes messages on makes many objects and no cycles.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def read_line(fd: int) -> bytes:
    """One line from a descriptor, byte by byte so that nothing behind it is taken. Exits when there is none."""
    parts = bytearray()
    while not parts.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            sys.exit("no start arguments on stdin: this command is for codex-pool's own use")
        parts += byte
    return bytes(parts)
