"""JSON in a page: compressed and in base64, so that nothing in it can be taken for markup. Pure.

What does not fit into the page stands in segments beside it: scripts with one call each, because a page opened from the
disk may load scripts but not read files. A segment names the report that it belongs to.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any


def dumps(value: Any) -> bytes:
    """JSON in ASCII: lone surrogates survive as escapes; NaN and infinities, which JSON lacks, are null."""
    try:
        text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":"))
    return text.encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def pack(value: Any) -> str:
    """A value as base64 of gzipped JSON; the same value gives the same text."""
    return base64.b64encode(gzip.compress(dumps(value), 6, mtime=0)).decode("ascii")


def unpack(packed: str) -> Any:
    """Return the value that `pack` was given."""
    return json.loads(gzip.decompress(base64.b64decode(packed)))


class ListPacker:
    """A list packed item by item: only its compressed form is kept."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._parts: list[bytes] = []
        self._next = b"["
        self.items = 0
        self.raw_bytes = self.compressed_bytes = 0

    def add(self, value: Any) -> None:
        self._feed(self._next + dumps(value))
        self._next = b","
        self.items += 1

    def finish(self) -> str:
        """The whole list; nothing can be added after it."""
        self._feed((b"[" if self._next == b"[" else b"") + b"]")
        self._parts.append(self._deflate.flush())
        return base64.b64encode(b"".join(self._parts)).decode("ascii")

    def _feed(self, data: bytes) -> None:
        part = self._deflate.compress(data)
        self.raw_bytes += len(data)
        self.compressed_bytes += len(part)
        self._parts.append(part)


def segment_script(token: str, number: int, packed: str) -> str:
    """The text of a segment's file."""
    return f'codexPoolSegment("{token}",{number},"{packed}");\n'


def segment_name(number: int) -> str:
    return f"{number:06}.js"
