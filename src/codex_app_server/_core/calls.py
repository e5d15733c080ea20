"""Calls: requests under way, and what becomes of their answers."""

from __future__ import annotations

import time
from typing import Any, Protocol

import msgspec

from .._protocol.rpc_errors import map_jsonrpc_error
from ..errors import InternalRpcError, InvalidInputError, RequestTimeoutError
from ..trace_context import trace_member
from .deadlines import QUEUE_POLL_S
from .mailbox import Mailbox


class Future(Protocol):
    """The part that `Answer` and `asyncio.Future` have in common."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class Call:
    """A request under way. Its deadlines are on the monotonic clock.

    `deadline` is what `timeout_s` sets, None while the request waits in a queue of the pool; `limit` is the caller's,
    who waits no longer in a queue either.
    """

    __slots__ = (
        "deadline",
        "detach",
        "future",
        "given_up",
        "id",
        "limit",
        "mailbox",
        "method",
        "thread_id",
        "timeout_s",
    )

    def __init__(
        self,
        id: int,
        method: str,
        future: Future,
        mailbox: Mailbox | None,
        timeout_s: float | None,
        thread_id: str | None = None,
        detach: bool = False,
        limit: float | None = None,
    ) -> None:
        self.id = id
        self.limit = limit
        self.thread_id = thread_id
        self.detach = detach
        self.given_up = False
        self.method = method
        self.future = future
        self.mailbox = mailbox
        self.timeout_s = timeout_s
        self.deadline: float | None = None
        self.restart_deadline()

    def restart_deadline(self) -> None:
        self.deadline = None if self.timeout_s is None else time.monotonic() + self.timeout_s

    @property
    def end(self) -> float | None:
        """The earlier one of both deadlines; None without any."""
        if self.deadline is None or self.limit is None:
            return self.limit if self.deadline is None else self.deadline
        return min(self.deadline, self.limit)

    def check_at(self, now: float) -> float | None:
        """Return when to check the deadlines next, None if never. A queued call gets its deadline later."""
        end = self.end
        if self.timeout_s is None or self.deadline is not None:
            return end
        return now + QUEUE_POLL_S if end is None else min(end, now + QUEUE_POLL_S)

    def is_overdue(self, now: float) -> bool:
        end = self.end
        return end is not None and end <= now

    @property
    def overdue_error(self) -> RequestTimeoutError:
        return RequestTimeoutError(f"no answer to {self.method} within {self.timeout_s} s")

    def resolve(self, line: bytes, is_error: bool) -> None:
        """Resolve the future by the line of the answer: with the raw bytes of its result, or its error."""
        if self.future.done():
            return
        try:
            response = _decode_response(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as why:
            self.future.set_exception(InternalRpcError(-32603, f"the answer to {self.method} is unreadable: {why}"))
            return
        if not is_error:
            self.future.set_result(bytes(response.result))
            return
        error = response.error if isinstance(response.error, dict) else {"message": str(response.error)}
        code, message = error.get("code"), error.get("message")
        self.future.set_exception(
            map_jsonrpc_error(code if isinstance(code, int) else -32603, str(message), error.get("data"))
        )

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Response(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None


_decode_response = msgspec.json.Decoder(_Response).decode


def request_line(id: int, method: str, params: bytes | None) -> bytes:
    """A request without its newline. Raises InvalidInputError."""
    return b'{"id":%d,"method":%s%s%s}' % (id, _encode_method(method), _params(params), trace_member())


def notification_line(method: str, params: bytes | None) -> bytes:
    """A notification without its newline. Raises InvalidInputError."""
    return b'{"method":%s%s}' % (_encode_method(method), _params(params))


def _params(params: bytes | None) -> bytes:
    return b"" if params is None else b',"params":' + params


def _encode_method(method: str) -> bytes:
    try:
        return msgspec.json.encode(method)
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"method {method!r} cannot be sent as UTF-8: {error}") from None
