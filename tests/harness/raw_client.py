"""A client that writes and reads lines of the app-server's protocol, over any transport."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from typing import Any

from codex_app_server._protocol.framing import LongLine
from codex_app_server.transport import Transport, TurnLines

LIMIT_S = 30.0


class RawClient:
    """`messages` are all that has come, in order. `error` is why the transport ended, None while it has not."""

    def __init__(self, transport: Transport, name: str = "raw client", version: str = "1.2") -> None:
        self.transport = transport
        self.messages: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self._came = threading.Condition()
        self._ids = itertools.count(1)
        transport.start(self)
        info = {"name": name, "title": None, "version": version}
        self.initialized = self.call("initialize", clientInfo=info, capabilities={"experimentalApi": True})
        self.notify("initialized")

    # Of the transport.

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        lines = [line for each in batch for line in (each.lines if isinstance(each, TurnLines) else [each])]
        with self._came:
            self.messages += [json.loads(line) for line in lines if isinstance(line, bytes)]
            self._came.notify_all()

    def on_closed(self, error: BaseException) -> None:
        with self._came:
            self.error = error
            self._came.notify_all()

    # Of the tests.

    def send(self, message: dict[str, Any]) -> None:
        self.transport.send(json.dumps(message).encode(), timeout_s=None)

    def notify(self, method: str, **params: Any) -> None:
        self.send({"method": method, "params": params})

    def begin(self, method: str, **params: Any) -> int:
        """Send a request; its id."""
        request_id = next(self._ids)
        self.send({"id": request_id, "method": method, "params": params})
        return request_id

    def call(self, method: str, **params: Any) -> Any:
        return self.answer(self.begin(method, **params))

    def answer(self, request_id: int, limit_s: float = LIMIT_S) -> Any:
        """The result of a request, or its error."""
        (message,) = self.wait(lambda each: each.get("id") == request_id and "method" not in each, limit_s=limit_s)
        return message.get("result", message.get("error"))

    def wait(self, wanted: Any, count: int = 1, limit_s: float = LIMIT_S) -> list[dict[str, Any]]:
        """The messages that are wanted, once there are so many."""
        deadline = time.monotonic() + limit_s
        with self._came:
            while len(found := [each for each in self.messages if wanted(each)]) < count:
                assert self.error is None, self.error
                left = deadline - time.monotonic()
                assert left > 0, f"not within {limit_s} s; came: {str(self.messages)[-3000:]}"
                self._came.wait(left)
        return found

    def notifications(self, method: str, count: int = 1) -> list[dict[str, Any]]:
        """The parameters of the notifications of a method, once there are so many."""
        return [each["params"] for each in self.wait(lambda each: each.get("method") == method, count)]

    def output(self, of: str, *, until: bytes = b"", field: str = "processId") -> bytes:
        """The output of a command or process, once it ends like this."""
        method = "command/exec/outputDelta" if field == "processId" else "process/outputDelta"

        def written() -> bytes:
            deltas = [each["params"] for each in self.messages if each.get("method") == method]
            return b"".join(base64.b64decode(each["deltaBase64"]) for each in deltas if each[field] == of)

        self.wait(lambda _: until in written())
        return written()

    def close(self) -> None:
        self.transport.close()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
