"""LineClient: JSON-RPC by lines over a transport, for a command that does one thing at a time.

It knows no types of the protocol: a command that runs for a second is over sooner than they are loaded. All but
`on_batch` and `on_closed` are called from one thread.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from codex_app_server._core.params import encode_plain
from codex_app_server._protocol import runtime_version
from codex_app_server._protocol.framing import LongLine
from codex_app_server._protocol.rpc_errors import map_jsonrpc_error
from codex_app_server._protocol.turn_lines import DEFAULT_TIMEOUT_S, TurnLines
from codex_app_server._runtime.client_name import CLIENT_NAME, CLIENT_TITLE
from codex_app_server.errors import RequestTimeoutError, TransportClosedError
from codex_app_server.generated.routing import RUNTIME_VERSION

if TYPE_CHECKING:
    from codex_app_server.transport import Transport

Id = int | str


class _Line(msgspec.Struct):
    id: Id | None = None
    method: str = ""
    params: Any = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None


class Notice(NamedTuple):
    """A notification, its parameters as plain JSON; they are empty where they are no object."""

    method: str
    params: dict[str, Any]


class Answer:
    """The answer to a request. `error` is the exception for one that is an error; `result` is JSON."""

    __slots__ = ("error", "is_there", "method", "result")

    def __init__(self, method: str) -> None:
        self.method = method
        self.is_there = False
        self.result = b"null"
        self.error: Exception | None = None

    def value(self) -> bytes:
        """The result. Raises the error that was answered."""
        if self.error is not None:
            raise self.error
        return self.result


class _Initialized(msgspec.Struct):
    userAgent: str | None = None


_decode = msgspec.json.Decoder(_Line).decode
_decode_initialized = msgspec.json.Decoder(_Initialized).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class LineClient:
    """See the module's docstring.

    `on_queue(ahead)` is called when a request waits in a queue of the pool behind `ahead` others, None when that is not
    known, and `on_queue(-1)` when it waits no longer; `on_problem(text)` for what the user should know.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        on_queue: Callable[[int | None], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._transport = transport
        self._on_queue = on_queue
        self._on_problem = on_problem
        self._inbox: queue.SimpleQueue[list[bytes | LongLine | TurnLines] | TransportClosedError] = queue.SimpleQueue()
        self._notices: deque[Notice] = deque()
        self._answers: dict[Id, Answer] = {}
        self._queued: set[Id] = set()
        # The user knows that the pool is paused.
        self._is_paused = False
        self._number = 0
        self._initialized: Answer | None = None
        self._error: TransportClosedError | None = None

    def start(self) -> None:
        """Connect, and introduce this client as the SDK does. Raises what the transport raises."""
        self._transport.start(self)
        info = {"name": CLIENT_NAME, "title": CLIENT_TITLE, "version": RUNTIME_VERSION}
        params = {"clientInfo": info, "capabilities": {"experimentalApi": True}}
        answer = self._initialized = self.request("initialize", params)
        if not self._transport.shared:
            # A pool keeps what comes meanwhile; an app-server need not.
            self.wait(answer)
        self._transport.send(b'{"method":"initialized"}')

    @property
    def runtime_version(self) -> str | None:
        """The version of codex, once `initialize` is answered, as it is before any other request; else None."""
        answer = self._initialized
        if answer is None or not answer.is_there or answer.error is not None:
            return None
        try:
            return runtime_version.version_of(_decode_initialized(answer.result).userAgent)
        except _UNREADABLE:
            return None

    def close(self) -> None:
        self._transport.close()

    # Requests.

    def request(self, method: str, params: dict[str, Any], *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> Answer:
        """Send a request. Raises TransportClosedError, and InvalidInputError for text that is not UTF-8."""
        self._number += 1
        answer = Answer(method)
        line = encode_plain(method, {"id": self._number, "method": method, "params": params})
        self._answers[self._number] = answer
        self._transport.send(line, timeout_s=timeout_s)
        return answer

    def wait(self, answer: Answer, timeout_s: float = DEFAULT_TIMEOUT_S) -> bytes:
        """The result of a request, as JSON. What waits in a queue of the pool has no timeout there.

        Raises the error that was answered, RequestTimeoutError, TransportClosedError.
        """
        deadline = time.monotonic() + timeout_s
        while not answer.is_there:
            left_s = deadline - time.monotonic()
            if self._queued:
                deadline, left_s = time.monotonic() + timeout_s, timeout_s
            if left_s <= 0:
                self._give_up(answer)
                raise RequestTimeoutError(f"no answer to {answer.method} within {timeout_s:g} s")
            self._receive(left_s)
        return answer.value()

    def call(self, method: str, params: dict[str, Any], timeout_s: float = DEFAULT_TIMEOUT_S) -> bytes:
        """Send a request and wait for its result, as `wait` does."""
        return self.wait(self.request(method, params, timeout_s=timeout_s), timeout_s)

    def _give_up(self, answer: Answer) -> None:
        for number, each in list(self._answers.items()):
            if each is answer:
                del self._answers[number]
                self._transport.cancel(number)

    # Notifications.

    def next(self, timeout_s: float) -> Notice | None:
        """The next notification; None if none comes within `timeout_s` seconds. Raises TransportClosedError."""
        if not self._notices:
            self._receive(timeout_s)
        return self._notices.popleft() if self._notices else None

    # In.

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        """Take what came in one read. Called by the transport."""
        self._inbox.put(batch)

    def on_closed(self, error: TransportClosedError) -> None:
        """Note that the connection is closed. Called by the transport."""
        self._inbox.put(error)

    def _receive(self, timeout_s: float) -> None:
        if self._error is not None:
            raise self._error
        try:
            batch = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return
        if isinstance(batch, TransportClosedError):
            self._error = batch
            raise batch
        for entry in batch:
            if isinstance(entry, TurnLines):
                for line in entry.lines:
                    self._on_line(line)
            elif isinstance(entry, LongLine):
                self._on_problem("the app-server has sent a line that is too long to be read; it is left out")
            else:
                self._on_line(entry)

    def _on_line(self, line: bytes) -> None:
        try:
            message = _decode(line)
        except _UNREADABLE as error:
            self._on_problem(f"the app-server has sent a line that cannot be read: {error}")
            return
        params = message.params if isinstance(message.params, dict) else {}
        if not message.method:
            self._on_answer(message)
        elif message.id is not None:
            self._decline(message)
        elif message.method == "pool/queued":
            self._queued.add(params.get("requestId", 0))
            if params.get("paused") is True and not self._is_paused:
                self._is_paused = True
                self._on_problem("the pool is paused: this waits until it is resumed")
            ahead = params.get("ahead")
            self._on_queue(ahead if isinstance(ahead, int) else None)
        elif message.method == "pool/dequeued":
            self._queued.discard(params.get("requestId", 0))
            self._is_paused = False
            self._on_queue(-1)
        else:
            self._notices.append(Notice(message.method, params))

    def _on_answer(self, message: _Line) -> None:
        answer = self._answers.pop(message.id, None) if message.id is not None else None
        if answer is None:
            return
        if message.error is not None:
            error = message.error if isinstance(message.error, dict) else {"message": str(message.error)}
            code = error.get("code")
            answer.error = map_jsonrpc_error(
                code if isinstance(code, int) else -32603, str(error.get("message")), error.get("data")
            )
        answer.result = bytes(message.result)
        answer.is_there = True

    def _decline(self, message: _Line) -> None:
        # Imported when needed: nothing asks for approval unless its server of MCP, or another client, has it do so.
        from codex_app_server._core.approvals import declined

        self._on_problem(f"{message.method} is declined: this command has nobody to ask")
        self._transport.send(msgspec.json.encode({"id": message.id, **declined(message.method)}))
