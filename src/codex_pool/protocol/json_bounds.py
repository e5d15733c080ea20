"""Bounds of JSON text that are checked before it is decoded. Pure.

A decoded value takes up to 40 times the memory of its text, and decoding millions of empty ones takes seconds. So the
brackets and commas outside of strings are counted first, in a few passes over the bytes, none of which runs in Python.
For text that is not JSON the counts mean nothing; decoding refuses it.
"""

from __future__ import annotations

_KEPT = b'"[]{},'
_OTHERS = bytes(set(range(256)) - set(_KEPT))
_ALIKE = bytes.maketrans(b"[]", b"{}")


def has_more_values(line: bytes, limit: int) -> bool:
    """Return True if there are more than `limit` brackets and commas, or strings."""
    if len(line) <= limit:
        return False
    text = _without_escapes(line)
    return text.count(b'"') > 2 * limit or len(_outside_strings(text)) > limit


def is_deeper(line: bytes, levels: int) -> bool:
    """Return True if arrays and objects are nested deeper than `levels`."""
    if line.count(b"[") + line.count(b"{") <= levels:
        return False
    rest = _outside_strings(_without_escapes(line)).translate(_ALIKE, b",")
    for _ in range(levels):
        if not rest:
            return False
        rest = rest.replace(b"{}", b"")
    return bool(rest)


def _without_escapes(line: bytes) -> bytes:
    # Pairs of backslashes first: what is left of a run before a quote is one backslash, or none.
    return line.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in line else line


def _outside_strings(text: bytes) -> bytes:
    return b"".join(text.translate(None, _OTHERS).split(b'"')[::2])
