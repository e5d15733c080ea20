"""The begin of a process of the pool: its command, its arguments, its signals, its garbage collector."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_ISOLATED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "isolated.py")


def python(module: str, *arguments: str, utf8: bool = True) -> list[str]:
    """The command that runs a module with this interpreter, and imports nothing from the working directory.

    `utf8`: in UTF-8 mode, where what is said to it of paths (see `as_utf8`) means the same whatever the locale; else in
    the mode of this process.
    """
    mode = 1 if utf8 else sys.flags.utf8_mode
    return [sys.executable, "-I", "-X", f"utf8={mode}", "-S", _ISOLATED, module, *arguments]


def as_utf8(path: str | os.PathLike[str]) -> str:
    """The path as a process in UTF-8 mode writes it: the same bytes, those that are no UTF-8 as lone surrogates."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def encode_arguments(arguments: Any) -> bytes:
    """Start arguments, or a report, as one line of JSON. Unlike msgspec alone it takes paths that are no UTF-8."""
    # Imported when needed, as below: commands do not start processes.
    import json

    return json.dumps(msgspec.to_builtins(arguments)).encode() + b"\n"


def decode_arguments(line: bytes, type: type[T]) -> T:
    """Decode the result of `encode_arguments` as `type`. Raises ValueError."""
    import json

    return msgspec.convert(json.loads(line), type)


def signal_descriptor(*numbers: int) -> int:
    """A descriptor that becomes readable when a signal comes, see `asks_to_end`; the handlers themselves do nothing."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader


def asks_to_end(reader: int) -> bool:
    """True if SIGTERM or SIGINT is among the signals that a `signal_descriptor` has; they are taken from it."""
    try:
        numbers = os.read(reader, 4096)
    except BlockingIOError:
        return False
    return signal.SIGTERM in numbers or signal.SIGINT in numbers


def survive_hang_up() -> None:
    """Have SIGHUP do nothing in this process. What it starts gets the default action, which ignoring would replace."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: None)


class HungUp(KeyboardInterrupt):
    """SIGHUP has come: the terminal of the command is gone."""


def interrupt_on_signals() -> None:
    """Have SIGTERM raise KeyboardInterrupt in the main thread, as Ctrl-C does, and SIGHUP raise HungUp.

    Under nohup, SIGHUP stays ignored.
    """

    def hang_up(number: int, frame: object) -> None:
        raise HungUp

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, hang_up)


def descriptors() -> int:
    """Raise the limit of this process's file descriptors as far as possible; return the new limit."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def collect_rarely() -> None:
    """Leave what was imported out of garbage collections, and look for cycles among the rest less often.

    A process that passes messages on makes many objects and no cycles.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def read_line(fd: int) -> bytes:
    """Read one line from a descriptor, byte by byte so that nothing behind it is taken. Exits when there is none."""
    parts = bytearray()
    while not parts.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            sys.exit("no start arguments on stdin: this command is for codex-pool's own use")
        parts += byte
    return bytes(parts)
