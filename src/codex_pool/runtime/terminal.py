"""Text that others have written, as a terminal may get it: without sequences that would control it. Pure.

An agent, a scorer, a dataset or a client can name anything in its text: a title of the window, a colour, a place of the
cursor, keys to be typed. Nothing is imported here: `codex-pool --help` must be fast.
"""

from __future__ import annotations


def _escapes(*ranges: tuple[int, int]) -> dict[int, str]:
    return {code: ascii(chr(code))[1:-1] for first, last in ranges for code in range(first, last + 1)}


# Control characters but newline and tab, of C1 as well; what changes the direction of text and hides what stands there.
_CONTROL = _escapes((0, 8), (0xB, 0x1F), (0x7F, 0x9F), (0x61C, 0x61C), (0x200E, 0x200F), (0x2028, 0x202E))
_CONTROL |= _escapes((0x2066, 0x2069))
# Lone surrogates of bytes that are C1 controls where the terminal's encoding has one byte a character.
_CONTROL_OR_BYTE = _CONTROL | _escapes((0xDC80, 0xDC9F))


def plain(text: str, *, paths: bool = False) -> str:
    """The text with control characters as escapes such as `\\x1b`; newlines and tabs stay, a `\\r\\n` becomes a `\\n`.

    `paths`: bytes of paths that are no text stay as lone surrogates, unless they are UTF-8 of a control character.
    """
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    if not paths:
        return text.translate(_CONTROL_OR_BYTE)
    try:
        decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeError:
        return text.translate(_CONTROL)
    escaped = decoded.translate(_CONTROL)
    return text if escaped == decoded else escaped
