"""Requests that every app-server must have been given and that no file keeps. Pure; they may hold credentials."""

from __future__ import annotations

from collections.abc import Iterable

from codex_pool.broker import kinds

MAX_KEPT = 256
MAX_KEPT_BYTES = 1024 * 1024


class Kept:
    """The last request under each key, in their order, as of the time `at`."""

    def __init__(self) -> None:
        self._lines: dict[str, bytes] = {}
        self.at = 0.0

    @property
    def lines(self) -> list[bytes]:
        return list(self._lines.values())

    @property
    def tokens(self) -> bytes | None:
        """The log-in with external tokens that is in force."""
        return self._lines.get(kinds.TOKENS)

    def keep(self, key: str, line: bytes, now: float) -> None:
        self._lines.pop(key, None)
        self._lines[key] = line
        self.at = now

    def forget(self, key: str, now: float) -> None:
        self._lines.pop(key, None)
        self.at = now

    def adopt(self, lines: Iterable[bytes], at: float) -> None:
        """What a worker has from the broker before this one, if that is newer."""
        if at > self.at:
            self._lines = {kinds.key_of(line): line for line in lines}
            self.at = at

    def why_full(self, key: str, line: bytes) -> str:
        """Why this cannot be kept; "" when it can."""
        if not key or key in self._lines:
            return ""
        size = sum(map(len, self._lines.values())) + len(line)
        if len(self._lines) < MAX_KEPT and size <= MAX_KEPT_BYTES:
            return ""
        limit = f"{MAX_KEPT} settings or {MAX_KEPT_BYTES} bytes"
        return f"what the pool keeps for workers to come is at its limit of {limit}"
