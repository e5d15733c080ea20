"""Requests of app-servers that a client has received: each is delivered once, and its answer kept. Pure.

A worker sends a request again when a session reconnects, because it does not know whether it, or its answer, arrived.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from codex_app_server._protocol.envelope import RequestId

MAX_REQUESTS = 4096


class _Received(msgspec.Struct):
    thread_id: str | None
    turn_id: str | None
    answer: bytes | None = None


class _Resolved(msgspec.Struct):
    requestId: RequestId


class _ResolvedLine(msgspec.Struct):
    params: _Resolved


_decode_resolved = msgspec.json.Decoder(_ResolvedLine).decode


class ReceivedRequests:
    """See the module's docstring. Bounded: the oldest is forgotten first."""

    def __init__(self) -> None:
        self._requests: OrderedDict[RequestId, _Received] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    @property
    def answers(self) -> list[bytes]:
        """The answers that were given, which may not have arrived."""
        return [each.answer for each in self._requests.values() if each.answer is not None]

    def add(self, request_id: RequestId, thread_id: str | None, turn_id: str | None) -> None:
        """Note a request that is delivered."""
        self._requests[request_id] = _Received(thread_id, turn_id)
        if len(self._requests) > MAX_REQUESTS:
            self._requests.popitem(last=False)

    def answer_of(self, request_id: RequestId) -> bytes | None:
        """The answer to a request, if it was given."""
        return self._requests[request_id].answer

    def answered(self, request_id: RequestId | None, line: bytes) -> bool:
        """Keep the answer to a request. False if there is no such request."""
        found = self._requests.get(request_id) if request_id is not None else None
        if found is not None:
            found.answer = line
        return found is not None

    def resolved(self, line: bytes) -> None:
        """Forget the request in a serverRequest/resolved line."""
        try:
            self._requests.pop(_decode_resolved(line).params.requestId, None)
        except msgspec.DecodeError:
            return

    def thread_left(self, thread_id: str | None) -> None:
        """Forget the requests of a thread that have no answer: one that comes again is delivered again."""
        open_ones = [key for key, each in self._requests.items() if each.thread_id == thread_id and each.answer is None]
        for request_id in open_ones:
            del self._requests[request_id]

    def turn_ended(self, turn_id: str | None) -> None:
        """Forget the requests of a turn that is over."""
        if not self._requests:
            return
        for request_id in [key for key, each in self._requests.items() if each.turn_id == turn_id]:
            del self._requests[request_id]

    def clear(self) -> None:
        self._requests.clear()
