"""Numbers as people and models write them: signs, currencies, separators, percent, fractions, powers of ten, LaTeX.

Pure. Every pattern is bounded or consumes what it looks at, so the time is linear in the length of the text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_NARROW = "\u00a0\u2007\u2009\u202f"
_CURRENCY = "\u00a2-\u00a5\u058f\u060b\u09f2\u09f3\u0e3f\u17db\u20a0-\u20c0\ufdfc\uffe0\uffe1\uffe5\uffe6"
_CODES = "AUD|BRL|CAD|CHF|CNY|DKK|EUR|GBP|INR|JPY|KRW|MXN|NOK|NZD|PLN|RUB|SEK|SGD|TRY|USD|ZAR"
_LATEX = {
    r"\$": "$",
    r"\%": "%",
    r"\!": "",
    r"\,": "\u2009",
    r"\;": "\u2009",
    r"\:": "\u2009",
    r"\ ": "\u2009",
    "{,}": ",",
    "{.}": ".",
    r"\times": "\u00d7",
    r"\cdot": "\u00d7",
    "\u2212": "-",
    "\ufe63": "-",
    "\uff0d": "-",
    "\uff0b": "+",
    "\u2013": "-",
    "\uff05": "%",
    "\uff04": "$",
}
_REPLACED = re.compile("|".join(map(re.escape, sorted(_LATEX, key=len, reverse=True))))
_FRAC = re.compile(r"\\[dtc]?frac\s?(?:\{\s?([-+]?[\d.,]{1,40})\s?\}|(\d))\s?(?:\{\s?([-+]?[\d.,]{1,40})\s?\}|(\d))")
_POWER = re.compile("10([\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,4})")
_SUPERSCRIPT = str.maketrans("\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "+-0123456789")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_TEN = r"10\s?(?:\^|\*\*)\s?\{?\s?"
_NUMERAL = re.compile(
    rf"""
    (?P<sign>(?<![\w.)\]}}%])[-+])?
    (?:(?:(?:[A-Z]{{1,3}})?(?P<dollar>\$)|(?P<currency>[{_CURRENCY}]|(?<!\w)(?:{_CODES})(?=[\s\d{_NARROW}])))\s?)?
    (?P<inner>(?<![\w.)\]}}%])[-+])?
    (?:
        (?<![\d.,]){_TEN}(?P<power>[-+]?\d{{1,4}})(?!\d)
        |(?P<body>
            \d{{1,2}}(?:,\d{{2}}){{1,20}},\d{{3}}(?![\d,])(?:\.\d+)?
            |\d{{1,3}}(?:,\d{{3}}){{1,99}}(?!\d)(?:\.\d+)?
            |(?P<swiss>\d{{1,3}}(?:['\u2019_{_NARROW}]\d{{3}}){{1,99}}(?!\d)(?:[.,]\d+)?)
            |(?P<european>
                [1-9]\d{{0,2}}(?:\.\d{{3}}){{1,99}},\d+(?![\d,.])
                |[1-9]\d{{0,2}}(?:\.\d{{3}}){{2,99}}(?![\d.])
                |\d{{1,3}}(?:\ \d{{3}}){{1,9}},\d\d?(?!\d)
                |\d{{1,15}},\d\d?(?!\d|[,.]\d)(?(currency)|(?=\s?(?:[%{_CURRENCY}]|(?:{_CODES})\b)))
            )
            |\d+(?:\.\d+)?
            |\.\d+
        )
        (?:[eE](?P<exponent>[-+]?\d{{1,9}})(?!\d)|\s?[x*\u00d7\u00b7\u22c5]\s?{_TEN}(?P<times>[-+]?\d{{1,9}})(?!\d)\}}?)?
    )
    (?P<percent>\s?(?:%|percent\b|per\ cent\b))?
    """,
    re.VERBOSE,
)
_DIGIT = re.compile("[\\d\u00bc-\u00be\u2150-\u215e]")
# Characters read at once, and how many of them at a cut may belong to a number that is not there as a whole.
_WINDOW, _CUT = 64 * 1024, 4096
_GAP = re.compile(r"\s?[/\u2044\u2215]\s?")


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number and where it stands in the readable text; 12 % has the value 12 and `percent`."""

    value: float
    percent: bool
    start: int
    end: int
    plain: bool = False
    """Nothing but digits, with or without a sign."""


def readable(text: str) -> str:
    """The text with LaTeX, fractions and signs of other kinds written as ordinary ones."""
    text = _REPLACED.sub(lambda match: _LATEX[match[0]], text)
    text = _POWER.sub(lambda match: "10^" + match[1].translate(_SUPERSCRIPT), text)
    text = _FRAC.sub(lambda match: _apart(match, f"{match[1] or match[2]}/{match[3] or match[4]}"), text)
    return _VULGAR.sub(lambda match: _apart(match, unicodedata.normalize("NFKC", match[0])), text)


def _apart(match: re.Match[str], fraction: str) -> str:
    """A fraction, apart from a whole number before it."""
    before = match.start()
    return f" {fraction}" if before and match.string[before - 1].isdigit() else fraction


def read(text: str) -> list[Numeral]:
    """The numbers in a readable text, in their order, as far as a float holds them."""
    return [found for found in _joined(text, list(_single(text))) if math.isfinite(found.value)]


def at_end(text: str, *, last: bool) -> Numeral | None:
    """The last number in a text, or the first; of a long text only as much is read as it takes."""
    if _DIGIT.search(text) is None:
        return None
    size = _WINDOW
    while size < len(text):
        part = readable(text[-size:] if last else text[:size])
        # What may have been cut is not believed.
        whole = [each for each in read(part) if (each.start > _CUT if last else each.end < len(part) - _CUT)]
        if whole:
            return whole[-1] if last else whole[0]
        size *= 4
    found = read(readable(text))
    return None if not found else found[-1 if last else 0]


def numbers(text: str) -> list[float]:
    """The values of the numbers in a text, in their order; 12 % is 12."""
    return [found.value for found in read(readable(text))]


def only(text: str) -> Numeral | None:
    """The number that the whole text is."""
    text = readable(text.strip())
    found = read(text)
    rest = text[: found[0].start] + text[found[0].end :] if len(found) == 1 else "?"
    # A unit of currency may stand behind it, LaTeX delimiters around it.
    rest = re.sub(rf"[{_CURRENCY}$\s]|\b(?:{_CODES})\b", "", rest)
    return None if rest else found[0]


def _single(text: str) -> Iterator[Numeral]:
    for match in _NUMERAL.finditer(text):
        value = _value(match)
        if match["sign"] == "-" or match["inner"] == "-":
            value = -value
        body = match["body"] or ""
        yield Numeral(
            value, bool(match["percent"]), match.start(), match.end(), match[0].lstrip("-+") == body and body.isdigit()
        )


def _value(match: re.Match[str]) -> float:
    if match["power"]:
        return _float(f"1e{match['power']}")
    body = match["body"]
    if match["european"]:
        body = body.replace(".", "").replace(" ", "").replace(",", ".")
    elif match["swiss"]:
        body = re.sub(rf"['\u2019_{_NARROW}]", "", body).replace(",", ".")
    else:
        body = body.replace(",", "")
    exponent = match["exponent"] or match["times"]
    return _float(f"{body}e{exponent}" if exponent else body)


def _float(text: str) -> float:
    try:
        return float(text)
    except (ValueError, OverflowError):
        return math.nan


def _joined(text: str, found: list[Numeral]) -> Iterator[Numeral]:
    """Fractions `3/4` and mixed numbers `1 3/4` out of their numbers. Dates and paths have more slashes."""
    slashed = [_GAP.fullmatch(text, first.end, second.start) is not None for first, second in pairwise(found)]
    slashed.append(False)
    place = 0
    while place < len(found):
        one = found[place]
        if (
            place + 2 < len(found)
            and slashed[place + 1]
            and one.plain
            and text[one.end : found[place + 1].start] == " "
        ):
            fraction = _fraction(text, found, slashed, place + 1)
            if fraction is not None and 0 < fraction.value < 1 and found[place + 1].plain:
                value = math.copysign(abs(one.value) + fraction.value, one.value)
                yield Numeral(value, fraction.percent, one.start, fraction.end)
                place += 3
                continue
        fraction = _fraction(text, found, slashed, place) if slashed[place] else None
        yield one if fraction is None else fraction
        place += 1 if fraction is None else 2


def _fraction(text: str, found: list[Numeral], slashed: list[bool], place: int) -> Numeral | None:
    above, below = found[place], found[place + 1]
    more = (place > 0 and slashed[place - 1]) or slashed[place + 1]
    before, after = text[above.start - 1 : above.start], text[below.end : below.end + 1]
    if more or before == "/" or after == "/" or above.percent or not below.value:
        return None
    return Numeral(above.value / below.value, below.percent, above.start, below.end)
