"""The standard streams of the command: there even when closed, and with one error when nothing more can be written."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys

# As in `typing`, which `codex-pool --help` does not load.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


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

    def write(self, data: bytes, /) -> int | None:  # type: ignore[override]
        if not self.has_failed:
            try:
                return super().write(data)
            except OSError as error:
                self.has_failed = True
                self._failed(error.errno or errno.EIO)
        return len(data)

    def _failed(self, reason: int) -> None:
        raise OutputError(reason)


class _Messages(_Output):
    """Messages end no work: where nobody can read them they are lost."""

    def _failed(self, reason: int) -> None:
        pass


def prepare() -> None:
    """Make the streams of this process ready.

    One that is closed is the null device: what is opened next would get its descriptor, and what is printed. Standard
    output raises OutputError when it cannot be written, once; standard error is silent then. Both take any text: what
    their encoding lacks is written as escapes, bytes of paths as bytes.
    """
    codecs.register_error("codex-pool", _escaped)
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free, which this one is.
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: TextIO | None) -> io.TextIOWrapper:
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=None if before is None else before.encoding,
        errors="codex-pool",
        line_buffering=getattr(before, "line_buffering", True),
        write_through=getattr(before, "write_through", False),
    )


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return ascii(letter)[1:-1], error.start + 1
