"""Seen: which calls of which session this worker has taken, so that one sent again is not done twice. Pure.

An id may be used again once its answer has come, as JSON-RPC allows. So the kept answer is for a call that says it was
sent before, and asks for the same.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import NamedTuple

from codex_pool import rpc, wire
from codex_pool.worker.requests import Request

MAX_ANSWERS = 4096
MAX_ANSWER_BYTES = 16 * 1024 * 1024
# One that is longer would leave no room for others; it is a history or a list, which may be asked for again.
MAX_KEPT_ANSWER_BYTES = 4 * 1024 * 1024


# The session that sent it, and the request's id in JSON.
_Key = tuple[wire.SessionId | None, bytes]


class Answer(NamedTuple):
    """Answer to a call. `thread_id` is the thread that it brought here, `digest` says what it asked for."""

    ok: bool
    line: bytes
    thread_id: str | None = None
    digest: bytes = b""


class Seen:
    """Calls by session and request id (in JSON): those under way, and the latest answers, oldest forgotten first."""

    def __init__(self, *, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._under_way: dict[_Key, Request] = {}
        self._answers: OrderedDict[_Key, Answer] = OrderedDict()
        self._bytes = 0

    def find(self, session: wire.SessionId, request_id: bytes) -> Request | Answer | None:
        """What became of this call so far, if it was taken."""
        key = (session, request_id)
        return self._under_way.get(key) or self._answers.get(key)

    def take(self, request: Request) -> None:
        """It is under way from now on."""
        self._under_way[_key(request)] = request

    def answered(self, request: Request, answer: Answer) -> None:
        """It is under way no longer; unless its session is over, the answer is kept."""
        key = _key(request)
        self._under_way.pop(key, None)
        if request.gone:
            return
        before = self._answers.pop(key, None)
        self._bytes -= len(before.line) if before is not None else 0
        if len(answer.line) > min(MAX_KEPT_ANSWER_BYTES, self._max_bytes):
            return
        self._bytes += len(answer.line)
        self._answers[key] = answer
        while len(self._answers) > self._max_answers or self._bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= len(oldest.line)

    def under_way(self, session: wire.SessionId | None = None) -> list[Request]:
        """The calls under way, of one session or of all."""
        return [request for request in self._under_way.values() if session in (None, request.session)]

    def forget(self, session: wire.SessionId) -> None:
        """The session is over: nobody sends its calls again."""
        for key in [key for key in self._answers if key[0] == session]:
            self._bytes -= len(self._answers.pop(key).line)

    @property
    def calls(self) -> list[wire.CallSeen]:
        """All that are known."""
        keys = (*self._answers, *self._under_way)
        return [wire.CallSeen(session, id.decode()) for session, id in keys if session is not None]

    @property
    def held(self) -> dict[str, int]:
        return {"calls": len(self._under_way)}


def digest_of(line: rpc.RequestLine) -> bytes:
    """Return a digest of method and parameters, in whatever order they are given."""
    told = blake2b(rpc.encode(line.method), digest_size=16)
    for name, value in sorted((line.params or {}).items()):
        told.update(rpc.encode(name))
        told.update(value)
    return told.digest()


def _key(request: Request) -> _Key:
    return request.session, bytes(request.line.id)
