"""The elements of a JSON array, one at a time: a file of any length in bounded memory. Pure: bytes in, values out."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from .unpacked import MAX_ROW_BYTES, TOO_LONG, UnreadableError

_PIECE_BYTES = 256 * 1024
_BEHIND = tuple(", ]\t\r\n")
_SPACE = re.compile(r"[ \t\r\n]*")
# What a parser reports that far before the end of what it has may be due to what it has not: half of `-Infinity`.
_MAY_BE_CUT = 16
# Numbers that JSON does not have are found where fields are checked, each with its row.
_decoder = json.JSONDecoder()


def elements(read: Callable[[int], bytes]) -> Iterator[Any]:
    """The elements of the array that `read(size)` gives in pieces, until it gives b"".

    Raises UnreadableError where it cannot go on: what has come by then is right.
    """
    text = _Text(read)
    if text.next() != "[":
        raise UnreadableError("no JSON array begins here; expected one")
    text.skip()
    if text.next() == "]":
        text.skip()
    else:
        ended = False
        while not ended:
            yield text.element()
            after = text.next()
            if after not in (",", "]"):
                why = "no comma follows" if after else "the file ends before the array does,"
                raise UnreadableError(f"not JSON: {why} at {text.place()}; expected , or ]")
            text.skip()
            ended = after == "]"
    if text.next():
        raise UnreadableError(f"more follows the array at {text.place()}; expected one array of objects")


class _Text:
    """The part of the file that is looked at."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        self._lines = 0
        """Line ends before the text."""
        self._column = 0
        """Characters of its first line before the text."""
        self._is_whole = False

    def next(self) -> str:
        """The next character that is no space; "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = self._at if match is None else match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        self._at += 1

    def element(self) -> Any:
        self.next()
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_unterminated = error.msg.startswith("Unterminated")
                if not self._is_whole and (is_unterminated or error.pos >= len(self._text) - _MAY_BE_CUT):
                    self._more()
                    continue
                why = error.msg
                if is_unterminated or not self._text[error.pos :].strip():
                    why = f"the file ends before the array does: {why}"
                raise UnreadableError(
                    f"not JSON: {why} at {self.place(error.pos)}; expected an array of objects"
                ) from None
            except RecursionError:
                raise UnreadableError(
                    f"not readable: nested too deeply, at {self.place()}; expected objects of ordinary depth"
                ) from None
            except ValueError as error:
                raise UnreadableError(f"not readable: {error}, at {self.place()}") from None
            # A number may go on in the next piece: 0 is the beginning of 0.5e+10.
            has_ended = self._text[end : end + 1] in _BEHIND or len(self._text) - end >= _MAY_BE_CUT
            if has_ended or self._is_whole:
                self._at = end
                return value
            self._more()

    def place(self, at: int | None = None) -> str:
        at = self._at if at is None else at
        line = self._text.count("\n", 0, at)
        column = at - self._text.rfind("\n", 0, at) + (0 if line else self._column)
        return f"line {self._lines + line + 1}, column {column}"

    def _more(self) -> bool:
        """Read on; False at the end of the file. What has been looked at is forgotten."""
        if self._is_whole:
            return False
        rest = self._text[self._at :]
        if len(rest) > MAX_ROW_BYTES:
            raise UnreadableError(f"the element {TOO_LONG}")
        ended = self._text.count("\n", 0, self._at)
        self._lines += ended
        self._column = self._at - self._text.rfind("\n", 0, self._at) - 1 + (0 if ended else self._column)
        # Twice as much each time: an element that takes many pieces is parsed a few times only.
        piece = self._read(max(_PIECE_BYTES, len(rest)))
        self._is_whole = not piece
        try:
            self._text = rest + self._decode(piece, self._is_whole)
        except UnicodeDecodeError:
            raise UnreadableError(f"not UTF-8, behind {self.place()}; expected JSON in UTF-8") from None
        self._at = 0
        return bool(piece)
