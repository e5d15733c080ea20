"""Lines of clients that know only the app-server's protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest

from codex_pool.protocol import turn_ends
from codex_pool.protocol.plain_client import PlainClient, Received, to_client

INITIALIZE = {"id": "initialize", "method": "initialize", "params": {"clientInfo": {"name": "c", "version": "1"}}}

SANDBOX = {"sandbox_mode": "read-only"}
BOTH = {**SANDBOX, "model": "m"}


def line(**members: Any) -> bytes:
    return json.dumps(members).encode()


@pytest.fixture
def client() -> PlainClient:
    """A client that has not initialized, in /work."""
    return PlainClient("/work", start_config={"model": "m"}, thread_config={"sandbox_mode": "read-only"})


@pytest.fixture
def initialized(client: PlainClient) -> PlainClient:
    client.receive(line(**INITIALIZE))
    return client


def error_of(received: Received) -> Any:
    assert received.to_pool is None and received.to_client is not None
    return json.loads(received.to_client)


def params_of(received: Received) -> Any:
    assert received.to_client is None and received.to_pool is not None
    return json.loads(received.to_pool)["params"]


def test_before_initialize_requests_are_refused_and_all_else_is_dropped(client: PlainClient) -> None:
    refused = {"error": {"code": -32600, "message": "Not initialized"}, "id": 1}
    assert error_of(client.receive(line(id=1, method="model/list", params={}))) == refused
    assert client.receive(line(method="initialized")) == Received()
    assert client.receive(line(id=1, result={})) == Received()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "missing field `params`"),
        ({}, "missing field `clientInfo`"),
        ({"clientInfo": {"version": "1"}}, "missing field `name`"),
        ({"clientInfo": {"name": "c"}}, "missing field `version`"),
    ],
)
def test_an_initialize_that_says_too_little_is_refused(client: PlainClient, params: Any, message: str) -> None:
    refusal = error_of(client.receive(line(id=2, method="initialize", params=params)))
    assert refusal == {"error": {"code": -32600, "message": f"Invalid request: {message}"}, "id": 2}
    assert client.receive(line(**INITIALIZE)).to_pool == line(**INITIALIZE)


def test_a_second_initialize_is_refused(initialized: PlainClient) -> None:
    refusal = error_of(initialized.receive(line(**INITIALIZE)))
    assert refusal == {"error": {"code": -32600, "message": "Already initialized"}, "id": "initialize"}


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense",
        b"[1]",
        b'{"id":1,"method":5}',
        b'{"id":null,"method":"model/list"}',
        b'{"id":1.5,"method":"model/list"}',
        b'{"id":true,"method":"model/list"}',
        b'{"id":{"a":1},"method":"model/list"}',
        b'{"id":9223372036854775808,"method":"model/list"}',
        b'{"params":{}}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_message_is_dropped(initialized: PlainClient, sent: bytes) -> None:
    assert initialized.receive(sent) == Received()


@pytest.mark.parametrize("request_id", ["", "a/b", "x" * 60, -1, 0, 2**63 - 1])
def test_messages_pass_as_they_are(initialized: PlainClient, request_id: Any) -> None:
    sent = json.dumps({"method": "no/such", "id": request_id, "params": {"b": 1}, "trace": {}}).encode()
    assert initialized.receive(sent) == Received(sent)
    assert initialized.receive(line(id=request_id, result=1)).to_pool == line(id=request_id, result=1)
    assert initialized.receive(line(method="pool/cancel")).to_pool == line(method="pool/cancel")


@pytest.mark.parametrize(
    ("method", "given", "sent"),
    [
        ("thread/start", {}, {"cwd": "/work", "config": BOTH}),
        ("thread/start", {"cwd": None, "config": None}, {"cwd": "/work", "config": BOTH}),
        (
            "thread/start",
            {"cwd": "/a", "config": {"model": "n", "x": 1}},
            {"cwd": "/a", "config": {**BOTH, "model": "n", "x": 1}},
        ),
        ("thread/start", {"cwd": "sub/../sub", "config": 7}, {"cwd": "/work/sub", "config": 7}),
        ("thread/resume", {"threadId": "t"}, {"threadId": "t", "config": SANDBOX}),
        ("thread/fork", {"threadId": "t", "cwd": "a"}, {"threadId": "t", "cwd": "/work/a", "config": SANDBOX}),
        ("turn/start", {"threadId": "t"}, {"threadId": "t"}),
        ("command/exec", {"command": ["ls"]}, {"command": ["ls"], "cwd": "/work"}),
        ("config/read", {}, {}),
        ("config/read", {"cwd": "."}, {"cwd": "/work"}),
        ("skills/list", {}, {"cwds": ["/work"]}),
        ("skills/list", {"cwds": ["/a"]}, {"cwds": ["/a"]}),
        ("hooks/list", {"cwds": []}, {"cwds": ["/work"]}),
        ("thread/list", {"cwd": None}, {"cwd": None}),
    ],
)
def test_what_an_app_server_takes_from_its_process_is_that_of_the_client(
    initialized: PlainClient, method: str, given: Any, sent: Any
) -> None:
    assert params_of(initialized.receive(line(id=1, method=method, params=given))) == sent


@pytest.mark.parametrize("params", [b"", b',"params":null', b',"params":[1]', b',"params":3'])
def test_parameters_that_are_none_pass_as_they_are(initialized: PlainClient, params: bytes) -> None:
    sent = b'{"id":1,"method":"thread/start"' + params + b"}"
    received = initialized.receive(sent)
    # Without parameters there is a directory to add, or not: the app-server says that they are missing.
    assert received.to_pool == sent


def test_a_pool_elsewhere_gets_no_directories() -> None:
    client = PlainClient()
    client.receive(line(**INITIALIZE))
    sent = line(id=1, method="thread/start", params={})
    assert client.receive(sent) == Received(sent)


def test_notifications_of_pools_are_left_out() -> None:
    for method in ("pool/queued", "pool/dequeued", "pool/turn/assigned", "sdk/deltas/dropped"):
        assert to_client(b'{"method":"%s","params":{}}' % method.encode()) is None
    for sent in (b'{"method":"turn/started","params":{}}', b'{"id":1,"result":{}}', b'{"method":"pools","params":{}}'):
        assert to_client(sent) is sent


def test_a_turn_that_the_pool_ends_is_an_error_and_a_failed_turn() -> None:
    ended, completed = turn_ends.ended_lines("t", "u", "lost", "its worker died", safe_to_retry=False)
    error = json.loads(to_client(ended) or b"")
    assert error["method"] == "error" and error["params"]["willRetry"] is False
    assert error["params"]["error"] == {
        "message": "its worker died",
        "codexErrorInfo": "other",
        "additionalDetails": "lost",
    }
    assert (error["params"]["threadId"], error["params"]["turnId"]) == ("t", "u")
    assert to_client(completed) == completed
