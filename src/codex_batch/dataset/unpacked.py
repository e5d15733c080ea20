"""Bytes of a dataset, unpacked if they are compressed with gzip, in pieces of bounded size."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol, cast

from codex_pool.runtime.os_errors import describe

MAX_ROW_BYTES = 64 << 20
"""Of one sample as it is written. What a small compressed file unpacks to is bounded by this as well."""
TOO_LONG = f"is longer than {MAX_ROW_BYTES >> 20} MiB; expected a sample of ordinary size"
_GZIP = b"\x1f\x8b"


class UnreadableError(ValueError):
    """A file whose rest cannot be read; the message is the problem."""


class ByteReader(Protocol):
    """A file of bytes, as far as it is read here."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self, size: int, /) -> bytes: ...


def unpacked(file: IO[bytes]) -> ByteReader:
    """The file, or what is packed in it: its first bytes tell, whatever its name."""
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", file))
    if buffered.peek(len(_GZIP)).startswith(_GZIP):
        return gzip.GzipFile(fileobj=buffered)
    return buffered


def taken(read: Callable[[int], bytes], size: int) -> bytes:
    """Up to `size` bytes by a method of a file. Raises UnreadableError."""
    try:
        return read(size)
    except EOFError:
        raise UnreadableError("the compressed file ends before its end; expected all of it: copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableError(f"cannot be unpacked: {error}; expected a file compressed with gzip") from None
    except OSError as error:
        raise UnreadableError(f"cannot be read: {describe(error)}; expected a file that this user can read") from None


def lines(file: ByteReader) -> Iterator[bytes]:
    """The lines with their ends. Raises UnreadableError, also for a line of more than MAX_ROW_BYTES."""
    while line := taken(file.readline, MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            raise UnreadableError(f"the line {TOO_LONG}")
        yield line
