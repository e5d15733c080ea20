"""Marks on the messages of users, by which a turn is found again whose worker has died. Pure.

`turn/start` may name its message (`clientUserMessageId`), and the name comes back as `clientId` of the item: in
notifications, and in the history. A pool names a message that its client has not named; the client sees none.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from ..protocol import jsonrpc
from .request import Request
from .turn_stream import Turn

# Of the notifications that have them.
METHODS = frozenset({"item/started", "item/completed"})
_PREFIX = "codex-pool:"
_BEGINNING = b'"clientId":"codex-pool:'
_MARK = re.compile(rb'"clientId":"codex-pool:[0-9a-f]{40}"')
_NONE = b'"clientId":null'


def mark_of(request: Request) -> str:
    """The mark of a request, the same when it is sent again: of its principal, session, id and digest."""
    key = jsonrpc.encode([*(request.session or ()), request.line.id, request.digest.hex()])
    return _PREFIX + blake2b(key, digest_size=20).hexdigest()


def without(line: bytes) -> bytes:
    """A line of the app-server without marks."""
    return _MARK.sub(_NONE, line) if _BEGINNING in line else line


def taken_out(turn: Turn, lines: list[bytes], methods: list[str]) -> list[bytes]:
    """The lines of a turn without the marks of its messages, which come with the beginning and the end of each."""
    found = list(lines)
    for place, method in enumerate(methods):
        if method in METHODS:
            line = without(lines[place])
            if line is not lines[place]:
                found[place] = line
                turn.marks -= method == "item/completed"
    return found
