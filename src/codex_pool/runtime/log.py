"""The log of a process of the pool: stdlib `logging`, to stderr or a file, by a writer that neither raises nor blocks.

    2026-11-29 10:00:00.123 WARNING broker[1234] a client sent what is none of the protocol

Time is local. A record is one line; those of a traceback follow it, indented. What is written at once fits what a pipe
takes at once, so that lines of several processes do not mix. Characters that a terminal would not print are escaped.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

from codex_app_server._runtime.text import plural

from .writer import Writer

# What waits to be written; beyond it lines are lost.
MAX_BYTES = 256 * 1024
# A message is cut behind so many characters; a line fits what a pipe takes at once (PIPE_BUF).
MAX_MESSAGE_CHARS = 2000
MAX_LINE_BYTES = 4096
MAX_TRACEBACK_LINES = 50
LAST_WORDS_S = 1
# Loggers whose records a command writes into a file; a process of the pool writes all there are.
OURS = ("codex_pool_cli", "codex_batch", "codex_pool", "codex_app_server")

_process = ""
_path: str | None = None
_writer: Writer | None = None


def begin(process: str, path: str | None = None) -> None:
    """Write the records of this process, from INFO on, to stderr, and with them what is printed there.

    `process`: its name in each line; `path`: the file that stderr is, opened again when it is removed or replaced.
    """
    global _process, _path, _writer
    _process, _path = process, path
    logging.raiseExceptions = False
    _writer = Writer(2, MAX_BYTES, lambda number: lost_line(process, number), path=path)
    root = logging.getLogger()
    root.addHandler(PoolHandler(process, _writer))
    root.setLevel(logging.INFO)
    # Warnings, tracebacks, and what is printed by mistake: it would block.
    sys.stderr = _Printed()


def lost() -> int:
    """Count the lines of this process's log that were lost so far."""
    return 0 if _writer is None else _writer.lost


def settle(limit_s: float) -> None:
    """Wait until the lines of this process's log are written, for up to `limit_s` seconds without a success."""
    if _writer is not None:
        _writer.settle(limit_s)


@contextlib.contextmanager
def to_file(process: str, path: str | os.PathLike[str], redact: Callable[[str], str] | None = None) -> Iterator[None]:
    """Write what this package and the SDK log, from INFO on, into a file as well, which need not be there.

    `redact` takes out of a text what is not to be written.
    """
    writer = Writer(None, MAX_BYTES, lambda number: lost_line(process, number), path=os.path.abspath(path))
    handler = PoolHandler(process, writer, redact)
    loggers = [logging.getLogger(name) for name in OURS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        writer.close()


def path() -> str | None:
    """The file that this process logs to, None for its stderr, whatever that is."""
    return _path


def last_words(message: str) -> None:
    """Write a record at once, from a process that has no memory for the writer; call `os._exit` then. Where that
    blocks, it ends the process within LAST_WORDS_S, by SIGALRM."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LAST_WORDS_S)
    with contextlib.suppress(OSError, MemoryError):
        os.write(2, line_of(time.time(), "ERROR", _process, os.getpid(), message))


class PoolHandler(logging.Handler):
    """Gives records to a writer, in the format of the module's docstring."""

    def __init__(self, process: str, writer: Writer, redact: Callable[[str], str] | None = None) -> None:
        super().__init__()
        self._redact = redact
        self._process = process
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record. Raises nothing, whatever its arguments are."""
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[0] is not None:
                text_of_error = logging.Formatter().formatException(record.exc_info)
            else:
                text_of_error = ""
        except Exception as error:
            text, text_of_error = f"a record that cannot be formatted: {record.msg!r}: {error!r}", ""
        if self._redact is not None:
            text, text_of_error = self._redact(text), self._redact(text_of_error)
        lines = [line_of(record.created, record.levelname, self._process, record.process or os.getpid(), text)]
        lines += [_cut(f"  {_printable(line)}") for line in text_of_error.splitlines()[-MAX_TRACEBACK_LINES:]]
        self._writer.write(b"".join(lines))


def line_of(created_s: float, level: str, process: str, pid: int, message: str) -> bytes:
    """Format one line of a log."""
    ms = int(created_s * 1000) % 1000
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(created_s))
    if len(message) > MAX_MESSAGE_CHARS:
        message = f"{message[:MAX_MESSAGE_CHARS]} [...]"
    return _cut(f"{at}.{ms:03d} {level} {process}[{pid}] {_printable(message)}")


def lost_line(process: str, number: int) -> bytes:
    """Format the line that reports how many were lost before it."""
    words = plural(number, "line was", "lines were")
    return line_of(time.time(), "WARNING", process, os.getpid(), f"{words} lost")


def _cut(line: str) -> bytes:
    text = line.encode("utf-8", "backslashreplace")[: MAX_LINE_BYTES - 1]
    return text.decode("utf-8", "ignore").encode() + b"\n"


def _printable(text: str) -> str:
    # It may hold what a client calls itself, and is read on terminals.
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class _Printed(io.TextIOBase):
    """Stands for sys.stderr; each line becomes a record."""

    def __init__(self) -> None:
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def fileno(self) -> int:
        return 2

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line:
                logging.getLogger("stderr").error("%s", line)
        if len(self._line) > MAX_MESSAGE_CHARS:
            self.flush()
        return len(text)

    def flush(self) -> None:
        line, self._line = self._line, ""
        if line:
            logging.getLogger("stderr").error("%s", line)
