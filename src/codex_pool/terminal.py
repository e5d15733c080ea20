"""Text that others have written, as a terminal may get it: without sequences that would control it. Pure.

An agent, a scorer, a dataset or a client can name anything in its text: a title of the window, a colour, a place of the
cursor, keys to be typed.
"""

from __future__ import annotations

import contextlib
import re

# Control characters but newline and tab, of C1 as well; what changes the direction of text and hides what stands there.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# Lone surrogates of bytes that are C1 controls where the terminal's encoding has one byte a character.
_CONTROL_OR_BYTE = re.compile(_CONTROL.pattern[:-1] + "\udc80-\udc9f]")


def plain(text: str, *, paths: bool = False) -> str:
    """The text with control characters as escapes such as `\\x1b`; newlines and tabs stay, a `\\r\\n` becomes a `\\n`.

    `paths`: bytes of paths that are no text stay, too, as lone surrogates, unless the text that they are holds controls.
    """
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    if not paths:
        return _CONTROL_OR_BYTE.sub(_escaped, text)
    with contextlib.suppress(UnicodeError):
        as_bytes = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        text = as_bytes if _CONTROL.search(as_bytes) else text
    return _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]
