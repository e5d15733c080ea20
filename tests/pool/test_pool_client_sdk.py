"""Requests of the SDK to a shared transport: to join turns of other clients, to cancel what nobody waits for."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from codex_app_server import (
    AppServerClient,
    AsyncAppServerClient,
    RequestTimeoutError,
    Thread,
    TransportClosedError,
    UnknownTurnError,
)
from codex_app_server._async.api import AsyncThread
from codex_app_server.operations import request, turn_start
from codex_app_server.transport import Interest, Receiver, TurnLines

LIMIT_S = 20.0


class Shared:
    """A transport whose other side is the test: `on(method)` says what comes after a request."""

    def __init__(self, *, shared: bool = True) -> None:
        self.shared = shared
        self.sent: list[dict[str, Any]] = []
        self.cancelled: list[Any] = []
        self.on: dict[str, Callable[[dict[str, Any]], list[Any]]] = {}
        self._receiver: Receiver | None = None

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def send(self, line: bytes, *, interest: Interest = "full", timeout_s: float | None = 60.0) -> None:
        found = json.loads(line)
        self.sent.append(found)
        if found["method"] in self.on:
            batch = self.on[found["method"]](found)
            # As every transport: from a thread of its own.
            thread = threading.Thread(target=self.get, args=batch)
            thread.start()
            thread.join()

    def get(self, *batch: Any) -> None:
        assert self._receiver is not None
        self._receiver.on_batch([*batch])

    def cancel(self, request_id: Any) -> None:
        self.cancelled.append(request_id)

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.on_closed(TransportClosedError("closed"))


def line(**members: Any) -> bytes:
    return json.dumps(members).encode()


def delta(text: str) -> bytes:
    params = {"threadId": "th", "turnId": "tu", "itemId": "i", "delta": text}
    return line(method="item/agentMessage/delta", params=params)


END = line(method="turn/completed", params={"threadId": "th", "turn": {"id": "tu", "status": "completed", "items": []}})


def joins(found: dict[str, Any]) -> list[Any]:
    assert found["params"] == {"threadId": "th", "turnId": "tu", "interest": "full"}
    return [
        line(id=found["id"], result={}),
        TurnLines("th", "tu", [delta("a"), delta("b")], False),
        TurnLines("th", "tu", [END], True),
    ]


def does_not_run(found: dict[str, Any]) -> list[Any]:
    return [line(id=found["id"], error={"code": -32600, "message": "turn tu of thread th does not run here"})]


def test_a_turn_of_another_client_is_joined() -> None:
    transport = Shared()
    transport.on["pool/turn/follow"] = joins
    with AppServerClient(transport=transport) as client:
        assert "".join(Thread(client, "th").follow("tu").text()) == "ab"
        assert not any(client.held.values())


def test_a_turn_that_does_not_run_is_said_so_each_time() -> None:
    transport = Shared()
    transport.on["pool/turn/follow"] = does_not_run
    with AppServerClient(transport=transport) as client:
        for _ in range(2):
            handle = Thread(client, "th").follow("tu")
            with pytest.raises(UnknownTurnError, match="turn tu is not known"):
                handle.run()
        assert len(transport.sent) == 2 and not any(client.held.values())


def test_a_transport_that_is_not_shared_is_not_asked() -> None:
    transport = Shared(shared=False)
    with AppServerClient(transport=transport) as client:
        with pytest.raises(UnknownTurnError):
            Thread(client, "th").follow("tu")
        with pytest.raises(UnknownTurnError):
            client.follow_turn("tu")
    assert transport.sent == []


def test_asyncio_joins_too() -> None:
    async def main() -> None:
        transport = Shared()
        async with AsyncAppServerClient(transport=transport) as client:
            transport.on["pool/turn/follow"] = joins
            assert "".join([text async for text in AsyncThread(client, "th").follow("tu").text()]) == "ab"
            transport.on["pool/turn/follow"] = does_not_run
            handle = AsyncThread(client, "other").follow("t2")
            with pytest.raises(UnknownTurnError, match="turn t2 is not known"):
                await handle.run()

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_a_turn_that_was_joined_ends_with_the_client() -> None:
    transport = Shared()
    with AppServerClient(transport=transport) as client:
        handle = Thread(client, "th").follow("tu")
    with pytest.raises(TransportClosedError, match="closed"):
        handle.run()


def test_what_nobody_waits_for_any_more_is_cancelled_unless_it_is_detached() -> None:
    transport = Shared()
    start = turn_start("th", "hello", {}, "full")
    with AppServerClient(transport=transport) as client:
        with pytest.raises(RequestTimeoutError):
            client.start_turn(start, timeout_s=0.01)
        with pytest.raises(RequestTimeoutError):
            client.start_turn(start, timeout_s=0.01, detach=True)
        with pytest.raises(RequestTimeoutError):
            client.perform(request("thread/list"), timeout_s=0.01)
    first, detached, third = (found["id"] for found in transport.sent)
    assert transport.cancelled == [first, third] and detached not in transport.cancelled


def test_a_cancelled_task_cancels_its_request() -> None:
    async def main() -> None:
        transport = Shared()
        async with AsyncAppServerClient(transport=transport) as client:
            task = asyncio.create_task(client.perform(request("thread/list")))
            while not transport.sent:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert transport.cancelled == [transport.sent[0]["id"]]

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))
