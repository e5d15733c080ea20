"""The standard streams of the command: there even when closed, and with one error when nothing more can be written.

Verbs that run for long `unblock` them: then a stream that is not read, or cannot be written, holds up nothing and ends
nothing; what it does not take is lost, counted, and reported.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys

from codex_pool.runtime.terminal import plain
from codex_pool.runtime.workflow_commands import is_on, json_line, neutral

# As in `typing`, which `codex-pool --help` does not load.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from typing import BinaryIO, TextIO, TypeVar

    from codex_pool.runtime.writer import Writer

    _T = TypeVar("_T", bound=io.TextIOWrapper)

# What may wait to be written of stdout and of stderr, once they are unblocked.
MAX_OUTPUT_BYTES = 16 * 1024 * 1024
MAX_MESSAGES_BYTES = 64 * 1024
# How long a batch waits at its end for who reads its records, and has not taken one.
READER_S = 30.0
# The same after Ctrl-C.
HURRY_S = 2.0


class OutputError(OSError):
    """Standard output cannot be written; `reason` is the errno."""

    def __init__(self, reason: int) -> None:
        # Without an errno of its own: to click, and to others, it is no error of the file that they are at.
        super().__init__(f"standard output cannot be written: {os.strerror(reason)}")
        self.reason = reason

    @property
    def is_reader_gone(self) -> bool:
        return self.reason == errno.EPIPE


class _Output(io.FileIO):
    """A descriptor that nothing is written to any more once that has failed."""

    has_failed = False
    writer: Writer | None = None

    def write(self, data: bytes, /) -> int | None:  # type: ignore[override]
        if self.writer is not None:
            self._queue(self.writer, bytes(data))
        elif not self.has_failed:
            try:
                return super().write(data)
            except OSError as error:
                self.has_failed = True
                self._failed(error.errno or errno.EIO)
        return len(data)

    def _failed(self, reason: int) -> None:
        raise OutputError(reason)

    _line = b""

    def _queue(self, writer: Writer, data: bytes) -> None:
        # A line is lost as a whole, or not at all.
        lines, end, rest = (self._line + data).rpartition(b"\n")
        self._line = rest
        writer.write(lines + end)


class _Messages(_Output):
    """Output of messages, which end no work: they are lost where they cannot be read."""

    def _failed(self, reason: int) -> None:
        pass

    def _queue(self, writer: Writer, data: bytes) -> None:
        # A display draws and prompts without ends of lines.
        writer.write(data)


_output: _Output | None = None
_messages: _Messages | None = None
_patience_s = 0.0
_on_github = is_on(os.environ)


def prepare() -> None:
    """Make the streams of this process ready.

    One that is closed is the null device: what is opened next would get its descriptor, and what is printed. Standard
    output raises OutputError when it cannot be written, once; standard error is silent then. Both take any text: what
    their encoding lacks is written as escapes, bytes of paths as bytes. Control characters are escaped on a terminal,
    and on standard error always; `raw_text` of such a stream takes those of a display.
    """
    global _output, _messages
    codecs.register_error("codex-pool", _escaped)
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free, which this one is.
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    _output, _messages = _Output(1, "w", closefd=False), _Messages(2, "w", closefd=False)
    # What is printed into a file or a pipe is data; messages are for people, wherever they end up.
    sys.stdout = _text(_output, sys.stdout, is_plain=os.isatty(1))
    sys.stderr = _text(_messages, sys.stderr, is_plain=True)


def unblock(goes_on: str, patience_s: float) -> None:
    """Have the streams written by threads of their own, for a verb that must not wait for them, nor end with them.

    `goes_on` ends the message that something is lost, which goes to stderr and to the log (codex_pool_cli.streams).
    `patience_s`: how long the end of the command waits for a reader of stdout that takes nothing.
    """
    global _patience_s
    if _output is None or _messages is None:
        # The verb is called by a program, whose streams these are.
        return
    import logging

    from codex_pool.runtime.writer import Writer

    _patience_s = patience_s
    sys.stdout.flush()
    sys.stderr.flush()
    log = logging.getLogger(__name__)
    log.addHandler(_to_messages(_messages))

    def on_loss(stream: str, error: OSError | None) -> None:
        what = "is not read" if error is None else f"cannot be written: {os.strerror(error.errno or errno.EIO)}"
        log.warning("%s %s; %s", stream, what, goes_on)

    def lost(number: int) -> bytes:
        return b"codex-pool: %d %s lost here\n" % (number, b"line was" if number == 1 else b"lines were")

    _output.writer = Writer(1, MAX_OUTPUT_BYTES, on_loss=lambda error: on_loss("standard output", error))
    _messages.writer = Writer(2, MAX_MESSAGES_BYTES, lost, on_loss=lambda error: on_loss("standard error", error))


def hurry() -> None:
    """Wait less for a reader at the end of the command: the user has asked it to end."""
    global _patience_s
    _patience_s = min(_patience_s, HURRY_S)


def settle() -> None:
    """Wait, before the command ends, for what is still to be written to stdout. Raises OutputError."""
    sys.stderr.flush()
    sys.stdout.flush()
    if _output is None or _output.writer is None:
        return
    _output.write(b"\n" if _output._line else b"")
    _output.writer.settle(_patience_s)
    if _output.writer.lost:
        from codex_app_server._runtime.text import plural

        words = plural(_output.writer.lost, "line of standard output was", "lines of standard output were")
        print(f"codex-pool: {words} lost", file=sys.stderr)


def _to_messages(messages: _Messages) -> logging.Handler:
    import logging

    class Handler(logging.Handler):
        """Writes records to stderr, not through sys.stderr: they may come while that is being written."""

        def emit(self, record: logging.LogRecord) -> None:
            messages.write(f"codex-pool: {record.getMessage()}\n".encode(errors="backslashreplace"))

    return Handler()


class _Bytes(io.RawIOBase):
    """Takes bytes in UTF-8 that are to be read on standard output, a terminal."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        sys.stdout.write(self._decode(data))
        return len(data)


def binary_output() -> BinaryIO:
    """Standard output for bytes in UTF-8: as they are in a file or a pipe, plain text on a terminal."""
    if isinstance(sys.stdout, _PlainText):
        return _Bytes()  # type: ignore[return-value]
    return sys.stdout.buffer


def shown(text: str) -> str:
    """The text of others as people are shown it: it controls no terminal, and no runner of GitHub Actions."""
    text = plain(text, paths=True)
    return neutral(text) if _on_github else text


def json_text(text: str) -> str:
    """The same of JSON, which keeps its value."""
    return json_line(text) if _on_github else text


class _PlainText(io.TextIOWrapper):
    """A stream for a terminal that text of others does not control; `raw_text` is the same stream for a display.

    On GitHub Actions its text is no workflow command either.
    """

    raw_text: io.TextIOWrapper

    def write(self, text: str, /) -> int:
        super().write(shown(text))
        return len(text)


def _text(raw: io.FileIO, before: TextIO | None, *, is_plain: bool) -> io.TextIOWrapper:
    if before is not None:
        before.flush()

    def stream(kind: type[_T]) -> _T:
        return kind(
            io.BufferedWriter(raw),
            encoding=None if before is None else before.encoding,
            errors="codex-pool",
            # Unbuffered, as with PYTHONUNBUFFERED, is by lines here.
            line_buffering=getattr(before, "line_buffering", True) or getattr(before, "write_through", False),
        )

    if not is_plain:
        return stream(io.TextIOWrapper)
    found = stream(_PlainText)
    found.raw_text = stream(io.TextIOWrapper)
    return found


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return ascii(letter)[1:-1], error.start + 1
