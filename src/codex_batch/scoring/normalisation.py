"""Texts made comparable: the same characters (NFC), and as asked the same case, no punctuation, equal numbers. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .numerals import read, readable

# Unicode calls these punctuation; readers take them for a part of the word.
_KEPT = frozenset("%#&@")
_DROPPED = frozenset("'\u2019\u02bc")


@dataclass(frozen=True, slots=True)
class Normal:
    """Normalization of compared texts; call it with each. Canonically equivalent texts (NFC) are always equal."""

    ignore_case: bool = False
    ignore_punctuation: bool = False
    equal_numbers: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Normal:
        """Create one from the options of a scorer."""
        return cls(
            bool(options.get("ignore_case")),
            bool(options.get("ignore_punctuation")),
            bool(options.get("equal_numbers")),
        )

    def __call__(self, text: str) -> str:
        # Of a text that is nothing but punctuation that is what counts.
        return self._made(text) or unicodedata.normalize("NFC", text)

    def _made(self, text: str) -> str:
        made = text = unicodedata.normalize("NFC", text)
        if self.ignore_case:
            made = unicodedata.normalize("NFC", made.casefold())
        if self.equal_numbers:
            # Read before case is folded: 1E3, USD.
            parts = self._parts(text)
        elif self.ignore_punctuation:
            parts = [_plain(made)]
        else:
            return made
        made = "".join(parts)
        return " ".join(made.split()) if self.ignore_punctuation else made

    def _parts(self, text: str) -> list[str]:
        """Numbers in one way of writing, marked off, so that 5 does not stand in 15; and what is between them."""
        text, place, parts = readable(text), 0, []
        for found in read(text):
            parts += [self._words(text[place : found.start]), f"\0{found.value + 0.0:.15g}{'%' * found.percent}\0"]
            place = found.end
        return [*parts, self._words(text[place:])]

    def _words(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text.casefold()) if self.ignore_case else text
        return _plain(text) if self.ignore_punctuation else text


def _plain(text: str) -> str:
    """Without punctuation: apostrophes closed up, the rest as spaces; what stands in a number or before it stays."""
    made = []
    for place, character in enumerate(text):
        if character in _DROPPED:
            continue
        if unicodedata.category(character)[0] != "P" or character in _KEPT:
            made.append(character)
            continue
        after = text[place + 1 : place + 2]
        before = text[place - 1 : place] if place else ""
        in_number = after.isdigit() and (
            (character in ".," and before.isdigit()) or (character in "-." and not before.isalnum())
        )
        made.append(character if in_number else " ")
    return "".join(made)
