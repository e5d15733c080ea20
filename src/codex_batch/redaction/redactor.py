"""Redactor: takes secrets that are known out of what is kept of a run. Pure.

A secret is found as it is, as it stands in JSON (also in JSON within JSON), quoted for a URL, and in base64, alone or
amid other data. `[redacted NAME]` takes its place, NAME being where the value is known from. Values shorter than
MIN_CHARACTERS are left alone: they would be found in words that have nothing to do with them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any
from urllib.parse import quote, quote_plus

import msgspec

MIN_CHARACTERS = 8
# A line of a secret of several lines, such as a private key, is a secret itself from this length on.
MIN_LINE_CHARACTERS = 16
MARK = "[redacted "
_CHUNK_BYTES = 1 << 20
_ESCAPE = re.compile("%[0-9A-F]{2}")
_encode = msgspec.json.Encoder().encode
_ODD = re.compile(r"[^A-Za-z0-9_.-]+")


class Redactor:
    """Redacts the values of `secrets`, by name. May be used from any thread; `add` makes others known."""

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self._names: dict[str, str] = {}
        self._texts: tuple[str, ...] = ()
        self._bytes: tuple[bytes, ...] = ()
        self._of_bytes: dict[bytes, bytes] = {}
        self._of_texts: dict[str, str] = {}
        self._pattern = re.compile(rb"(?!)")
        self._text_pattern = re.compile(r"(?!)")
        self.longest = 0
        """Bytes of the longest form of a secret."""
        self.add(secrets or {})

    def __bool__(self) -> bool:
        return bool(self._texts)

    def add(self, secrets: Mapping[str, str]) -> None:
        """Make more secrets known."""
        new = {value: name for name, value in secrets.items() if value not in self._names}
        if not new:
            return
        self._names = {**self._names, **new}
        marks: dict[str, str] = {}
        for value, name in self._names.items():
            for form in _forms(value):
                marks.setdefault(form, f"{MARK}{_ODD.sub('_', name)}]")
        # One may be the beginning of another.
        texts = sorted(marks, key=len, reverse=True)
        of_bytes = {text.encode("utf-8", "surrogatepass"): marks[text].encode() for text in texts}
        if texts:
            self._pattern = re.compile(b"|".join(map(re.escape, of_bytes)))
            self._text_pattern = re.compile("|".join(map(re.escape, texts)))
        self._of_texts, self._of_bytes = marks, of_bytes
        self.longest = max(map(len, of_bytes), default=0)
        self._texts, self._bytes = tuple(texts), tuple(of_bytes)

    def text(self, text: str) -> str:
        """The text without secrets."""
        # To look for each is many times as fast as the pattern, and mostly there is none.
        for form in self._texts:
            if form in text:
                return self._text_pattern.sub(lambda found: self._of_texts[found[0]], text)
        return text

    def data(self, data: bytes) -> bytes:
        """The data without secrets."""
        return self._pattern.sub(lambda found: self._of_bytes[found[0]], data) if self.finds(data) else data

    def finds(self, data: bytes) -> bool:
        """True if there is a secret in the data."""
        return any(form in data for form in self._bytes)

    def value(self, value: Any) -> Any:
        """A value as JSON has it, without secrets in its texts and names."""
        if value is None or not self._texts:
            return value
        try:
            is_clean = not self.finds(_encode(value))
        except (TypeError, ValueError):
            # What is no JSON to it: NaN, lone surrogates.
            is_clean = False
        return value if is_clean else json.loads(self.text(json.dumps(value)))

    def places(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Begin and end of each secret in the data."""
        if self.finds(data):
            yield from (found.span() for found in self._pattern.finditer(data))

    def copy(self, source: IO[bytes], target: IO[bytes]) -> bool:
        """Copy a file without its secrets; True if there were any. Holds a part of it at a time."""
        rest, found_any = b"", False
        while True:
            chunk = source.read(_CHUNK_BYTES)
            data = rest + chunk
            # What begins before `end` is there as a whole.
            end = len(data) if not chunk else max(0, len(data) - self.longest)
            written = 0
            for begin, stop in self.places(data):
                if begin >= end:
                    break
                target.write(data[written:begin])
                target.write(self._of_bytes[data[begin:stop]])
                written, found_any = stop, True
            end = max(end, written)
            target.write(data[written:end])
            rest = data[end:]
            if not chunk:
                return found_any


NOTHING = Redactor()
"""Redacts nothing."""


def is_redacted(text: str) -> bool:
    """True if something was taken out of the text."""
    return MARK in text


def _forms(value: str) -> Iterator[str]:
    """Yield the forms in which a secret may be written."""
    if len(value) < MIN_CHARACTERS:
        return
    yield from _written(value)
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        for line in lines:
            if len(line) >= MIN_LINE_CHARACTERS and not line.startswith("-----"):
                yield from _written(line)


def _written(value: str) -> Iterator[str]:
    yield value
    escaped = value
    for _ in range(2):
        again = json.dumps(escaped, ensure_ascii=False)[1:-1]
        in_ascii = json.dumps(escaped)[1:-1]
        if again == escaped and in_ascii == escaped:
            break
        yield again
        yield in_ascii
        # As serde and Go write it, too.
        yield again.replace("/", "\\/")
        escaped = again
    if "/" in value:
        yield value.replace("/", "\\/")
    with_surrogates = value.encode("utf-8", "surrogatepass")
    for quoted in (quote(with_surrogates, safe=""), quote(with_surrogates, safe="/"), quote_plus(with_surrogates)):
        yield quoted
        yield _ESCAPE.sub(lambda found: found[0].lower(), quoted)
    for before in range(3):
        # Of data that begins elsewhere, the characters that this value alone decides on.
        encoded = base64.b64encode(b"\0" * before + with_surrogates).decode()
        core = encoded[(0, 2, 3)[before] : (before + len(with_surrogates)) * 8 // 6]
        if len(core) >= MIN_CHARACTERS:
            yield core
            yield core.replace("+", "-").replace("/", "_")
