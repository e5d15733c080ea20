"""Who may finish the handshake of a TCP connection (ZeroMQ's ZAP, RFC 27). Pure.

Without a handler CURVE lets in everybody who knows the server's public key. The answer's User-Id is the client's own
public key: whoever reads a message looks it up in the allow-list of that moment, so that a key which is made anew under
an old name does not revive the connections of the old one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

import zmq.utils.z85

ENDPOINT = "inproc://zeromq.zap.01"
LOG_EVERY_S = 10.0

_VERSION = b"1.0"


def decide(request: list[bytes], allowed: Container[str]) -> tuple[list[bytes], str | None]:
    """The answer to one request of the handshake, and why it is no, if it is. `allowed`: public keys as in Z85."""
    if len(request) < 6 or request[0] != _VERSION:
        request_id = request[1] if len(request) > 1 else b""
        return _answer(request_id, b"500", b"not a request of ZAP 1.0"), "malformed"
    _, request_id, _, _, _, mechanism, *credentials = request
    if mechanism != b"CURVE":
        return _answer(request_id, b"400", b"only CURVE is let in"), "no key"
    if len(credentials) != 1 or len(credentials[0]) != 32:
        return _answer(request_id, b"400", b"not a CURVE key"), "malformed"
    key = zmq.utils.z85.encode(credentials[0]).decode()
    if key not in allowed:
        return _answer(request_id, b"400", b"this key is not on the allow-list"), "unknown key"
    return _answer(request_id, b"200", b"OK", key.encode()), None


def _answer(request_id: bytes, code: bytes, text: bytes, user_id: bytes = b"") -> list[bytes]:
    return [_VERSION, request_id, code, text, user_id, b""]


class Refusals:
    """Counts refusals by reason, in `counts` where others may count too; now and then it has a line for the log."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self._told: Counter[str] = Counter()
        self._told_at: dict[str, float] = {}

    def add(self, reason: str) -> None:
        self.counts[reason] += 1

    def news(self, now: float) -> list[str]:
        """What to log: the first of a kind at once, then at most one line of a kind every LOG_EVERY_S."""
        lines = []
        for reason, count in self.counts.items():
            new = count - self._told[reason]
            if new and now - self._told_at.get(reason, now - LOG_EVERY_S) >= LOG_EVERY_S:
                self._told[reason], self._told_at[reason] = count, now
                lines.append(f"refused over TCP, {reason}: {new} ({count} in all)")
        return lines
