"""Answers that are kept, so that a request which is sent again is not executed again. Pure.

An id may be used again once its answer has come, as JSON-RPC allows. So a kept answer is given only to a request that
is marked as sent before and has the same method and parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import NamedTuple

from ..protocol import jsonrpc, wire

MAX_ANSWERS = 4096
MAX_ANSWER_BYTES = 16 * 1024 * 1024
# One that is longer would leave no room for others; it is a history or a list, which may be requested again.
MAX_KEPT_ANSWER_BYTES = 4 * 1024 * 1024


class Answer(NamedTuple):
    """Answer to a request. `thread_id` is the thread that it loaded here, `digest` that of the request.

    `line` is b"" for one that is in a stream of its session, which keeps it.
    """

    ok: bool
    line: bytes
    thread_id: str | None = None
    digest: bytes = b""


class AnswerCache:
    """The latest answers, by session and request id (in JSON); the oldest are dropped first."""

    def __init__(self, *, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._answers: OrderedDict[tuple[wire.SessionId, bytes], Answer] = OrderedDict()
        self._bytes = 0

    def find(self, session: wire.SessionId, request_id: bytes) -> Answer | None:
        """The answer to this request, if it is kept."""
        return self._answers.get((session, request_id))

    def put(self, session: wire.SessionId, request_id: bytes, answer: Answer) -> None:
        """Keep an answer, unless it is too long; it replaces one of the same id."""
        key = (session, request_id)
        before = self._answers.pop(key, None)
        self._bytes -= len(before.line) if before is not None else 0
        if len(answer.line) > min(MAX_KEPT_ANSWER_BYTES, self._max_bytes):
            return
        self._bytes += len(answer.line)
        self._answers[key] = answer
        while len(self._answers) > self._max_answers or self._bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= len(oldest.line)

    def forget(self, session: wire.SessionId) -> None:
        """Drop the answers of a session that is over."""
        for key in [key for key in self._answers if key[0] == session]:
            self._bytes -= len(self._answers.pop(key).line)

    @property
    def calls(self) -> list[wire.KnownCall]:
        """The requests whose answers are kept."""
        return [wire.KnownCall(session, id.decode()) for session, id in self._answers]


def digest_of(line: jsonrpc.RequestLine) -> bytes:
    """Return a digest of method and parameters, in whatever order they are given."""
    digest = blake2b(jsonrpc.encode(line.method), digest_size=16)
    for name, value in sorted((line.params or {}).items()):
        digest.update(jsonrpc.encode(name))
        digest.update(value)
    return digest.digest()
