"""Requests that every app-server must have been given and that no file keeps. Pure; they may hold credentials."""

from __future__ import annotations

import math
from collections.abc import Iterable

from . import change_kinds

MAX_KEPT = 256
MAX_KEPT_BYTES = 1024 * 1024


class ReplayedRequests:
    """The last request under each key, in their order, as of the time `at`."""

    def __init__(self) -> None:
        # With each, since when it is kept.
        self._lines: dict[str, tuple[bytes, float]] = {}
        self.at = 0.0

    @property
    def lines(self) -> list[bytes]:
        return [line for line, _ in self._lines.values()]

    def since(self, at: float) -> list[bytes]:
        """Settings made after this time."""
        return [line for line, kept_at in self._lines.values() if kept_at > at]

    @property
    def tokens(self) -> bytes | None:
        """The log-in with external tokens that is in force."""
        line, _ = self._lines.get(change_kinds.TOKENS, (None, 0.0))
        return line

    def keep(self, key: str, line: bytes, now: float) -> None:
        """Keep this line as the last request under this key."""
        self.forget(key, now)
        self._lines[key] = line, self.at

    def forget(self, key: str, now: float) -> None:
        """Drop the request that is kept under this key."""
        self._lines.pop(key, None)
        self.at = max(now, math.nextafter(self.at, math.inf))

    def adopt(self, lines: Iterable[bytes], at: float) -> None:
        """Take over what a worker holds from an earlier broker, if it is newer."""
        if at > self.at:
            self._lines = {change_kinds.key_of(line): (line, at) for line in lines}
            self.at = at

    def why_full(self, key: str, line: bytes) -> str:
        """Return why this cannot be kept; "" when it can."""
        if not key or key in self._lines:
            return ""
        size = sum(map(len, self.lines)) + len(line)
        if len(self._lines) < MAX_KEPT and size <= MAX_KEPT_BYTES:
            return ""
        limit = f"{MAX_KEPT} settings or {MAX_KEPT_BYTES} bytes"
        return f"what the pool keeps for workers to come is at its limit of {limit}"
