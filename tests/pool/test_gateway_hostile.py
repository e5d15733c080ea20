"""A hostile client with a limited key, and messages that are none, through the gateway of a pool on null app-servers.

Whatever is sent, gateway, broker and workers are the same processes afterwards, and a polite client is served.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from websocket_client import Refused, WebSocketClient, frame

from codex_app_server.testing import null_app_server
from codex_pool import Pool
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity
from codex_pool.runtime import processes

ASK = {"method": "item/commandExecution/requestApproval", "params": {"itemId": "i", "startedAtMs": 1, "command": "ls"}}
NOT_ALLOWED = -32012
HELLO = {"id": 1, "method": "initialize", "params": {"clientInfo": {"name": "raw", "title": None, "version": "1"}}}


class House:
    """A pool that lets the owner in over a Unix socket, and keys over WebSocket."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.path, self.port = root, path, free_port()
        self.store = KeyStore(root / "keys")
        self.tokens = {name: self._new(name) for name in ("mallory", "alice")}
        config = null_app_server(ask={**ASK, "when": "ask me"}, deltas=3, hold=str(root / "gate"), when="wait")
        config.env, config.cwd = {"CODEX_HOME": str(root / "home")}, root
        self.pool = Pool(
            2,
            config,
            listen_unix=path,
            listen_ws=f"127.0.0.1:{self.port}",
            keys=self.store.directory,
            log_file=root / "log",
        )

    def _new(self, name: str) -> str:
        identity = Identity(name=name, cwd_roots=("/",), max_sessions=4)
        token = self.store.new(identity, self.root / f"{name}.key").token
        assert token
        return f"Authorization: Bearer {token}"

    def owner(self) -> WebSocketClient:
        return WebSocketClient(self.path, name="owner")

    def key(self, name: str = "mallory", **given: Any) -> WebSocketClient:
        return WebSocketClient(self.port, self.tokens[name], name=name, **given)

    @property
    def processes(self) -> set[int]:
        assert self.pool.supervisor_pid is not None
        return {process.pid for process in processes.descendants(self.pool.supervisor_pid)}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("hostile")
    short = Path(f"/tmp/gh-{os.getpid()}")
    short.mkdir(mode=0o700)
    house = House(root, short / "g.sock")
    try:
        with house.pool:
            yield house
    finally:
        print((root / "log").read_text(errors="replace")[-8000:])
        short.rmdir()


def call(id: object, method: object = "model/list", params: object = None) -> bytes:
    return json.dumps({"id": id, "method": method, "params": params or {}}).encode()


def raw(id: str = "7", method: str = '"model/list"', params: str = "{}", more: str = "") -> bytes:
    return f'{{"id":{id},"method":{method},"params":{params}{more}}}'.encode()


def deep(levels: int) -> str:
    return '{"a":' + "[" * levels + "]" * levels + "}"


PAD = '{"p":"' + "x" * 20_000 + '"'
NO_REQUESTS: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "a byte order mark": b"\xef\xbb\xbf" + call(7),
    "half of one": call(7)[:-4],
    "two of them": call(7) + call(8),
    "two lines": call(7) + b"\n" + call(8),
    "newlines inside": json.dumps({"id": 7, "method": "model/list", "params": {}}, indent=3).encode(),
    "a newline in a string": b'{"id":7,"method":"model\nlist","params":{}}',
    "NUL": call(7).replace(b"model", b"mo\0el"),
    "bad UTF-8 in a value": raw(params='{"a":"$"}').replace(b"$", b"\xff\xfe"),
    "bad UTF-8 in the method": raw(method='"$"').replace(b"$", b"\xc3"),
    "bad UTF-8 in the id": raw(id='"$"').replace(b"$", b"\xf5"),
    "bad UTF-8, long": (PAD.replace("x", "$", 1)).encode().replace(b"$", b"\xff").join([b'{"id":7,"params":', b"}}"]),
    "half a surrogate": raw(params=r'{"a":"\ud800"}'),
    "half a surrogate, long": raw(params=PAD + r',"a":"\udc00"}'),
    "half a surrogate as id": raw(id=r'"\ud800"'),
    "half a surrogate as method": raw(method=r'"\ud800"'),
    "90 levels": raw(params=deep(90)),
    "110 levels": raw(params=deep(110)),
    "7,000 levels": raw(params=deep(7000)),
    "100,000 levels": raw(params=deep(100_000)),
    "500,000 open levels": b'{"id":7,"method":"model/list","params":' + b"[" * 500_000,
    "levels as id": raw(id="[" * 900 + "]" * 900),
    "levels as an answer": b'{"id":"w/1","result":' + deep(7000).encode() + b"}",
    "levels as an error": b'{"id":"w/1","error":' + deep(7000).encode() + b"}",
    "levels in a trace": raw(more=f',"trace":{deep(3000)}'),
    "levels over lines": raw(params=deep(100_000)).replace(b",", b",\n"),
    "a large number as id": raw(id="1" + "0" * 30),
    "a negative one": raw(id="-1" + "0" * 30),
    "4,000 digits as id": raw(id="1" * 4000),
    "5,000 digits as id": raw(id="1" * 5000),
    "numbers beyond all": raw(params='{"a":1e999,"b":-1e999,"c":' + "9" * 4000 + "}"),
    "numbers beyond all, long": raw(params=PAD + ',"a":1e308,"c":' + "9" * 4000 + "}"),
    "a fraction as id": raw(id="1.5"),
    "an object as id": raw(id='{"a":1}'),
    "true as id": raw(id="true"),
    "null as id": raw(id="null"),
    "a long id": call("i" * 5000),
    "a long id, long": call("i" * 50_000),
    "ids that are two": b'{"id":7,"id":"w/1","method":"model/list","params":{}}',
    "methods that are two": raw(more=',"method":"config/value/write"'),
    "parameters that are two": raw(more=',"params":{"threadId":"x"}'),
    "a number as method": raw(method="7"),
    "a long method": call(7, "m" * 15_000),
    "control characters as method": call(7, "\x1b[2J\r\n" * 40),
    "a list as parameters": raw(params="[1,2]"),
    "a number as parameters": raw(params="3"),
    "a number as thread": call(7, "turn/start", {"threadId": 5}),
    "an object as thread": call(7, "thread/read", {"threadId": {"a": 1}}),
    "an answer to nothing": b'{"id":7,"result":{}}',
    "an answer that is two": b'{"id":"w/1","result":{},"error":{}}',
    "an answer without either": b'{"id":"w/1"}',
    "a cancel of nothing": b'{"method":"pool/cancel","params":{"requestId":[[[1]]]}}',
    "a notification of ours": b'{"method":"pool/turn/ended","params":{"kind":"overflow"}}',
    "initialize again": json.dumps(HELLO).encode(),
    "follow of nothing": call(7, "pool/turn/follow", {"threadId": "x", "turnId": "y", "interest": "none"}),
    "follow of no turn": call(7, "pool/turn/follow", {"threadId": "x"}),
    "unsubscribe of nothing": call(7, "thread/unsubscribe", {"threadId": "x" * 9000}),
    "50,000 values": raw(params='{"a":[' + "1," * 60_000 + "1]}"),
}


@pytest.mark.parametrize("who", ["owner", "key"])
def test_what_is_no_request_ends_at_most_its_own_connection(house: House, who: str) -> None:
    before = house.processes
    with house.owner() as polite:
        for name, sent in NO_REQUESTS.items():
            with house.owner() if who == "owner" else house.key() as client:
                client.write(frame(sent))
                # The next request is answered, if its connection lives.
                try:
                    client.answer(client.begin("pool/status"))
                except ConnectionResetError:
                    assert who == "key", name
            assert house.processes == before, name
        assert polite.call("pool/status")["workers"]
    log = (house.root / "log").read_text(errors="replace")
    assert "has failed" not in log and "Traceback" not in log


@pytest.mark.parametrize(
    "info",
    [
        b'{"name":"\\ud800","version":"1"}',
        b'{"name":"' + b"n" * 100_000 + b'","version":"' + b"v" * 100_000 + b'"}',
        b'{"name":"\\u001b[2J\\u0000\\n","version":"1"}',
        b'{"name":7,"version":null}',
        b"[" * 3000 + b"]" * 3000,
        b"null",
    ],
    ids=["surrogate", "long", "control", "types", "levels", "null"],
)
def test_odd_clients(house: House, info: bytes) -> None:
    before = house.processes
    with house.key(initialize=False) as client:
        client.write(frame(b'{"id":1,"method":"initialize","params":{"clientInfo":' + info + b"}}"))
        client.write(frame(call(2, "pool/status")))
        assert client.answer(2)
    assert house.processes == before
    assert b"\x1b" not in (house.root / "log").read_bytes()


def test_threads_turns_and_approvals_of_others(house: House) -> None:
    """Guessing ids, of threads, turns and requests, gives nothing away and changes nothing."""
    with house.owner() as owner, house.key("alice") as alice, house.key() as mallory:
        questions = []
        for client in (owner, alice):
            thread_id = client.call("thread/start", cwd=str(house.root))["thread"]["id"]
            answer = client.call("turn/start", threadId=thread_id, input=[{"type": "text", "text": "ask me"}])
            turn_id = answer["turn"]["id"]
            asked = client.line(lambda line: line.get("method") == ASK["method"], "a question")
            questions.append((client, thread_id, turn_id, asked["id"]))
        for _, thread_id, turn_id, _ in questions:
            for method, params in (
                ("thread/resume", {}),
                ("thread/fork", {}),
                ("thread/unsubscribe", {}),
                ("thread/read", {"includeTurns": True}),
                ("thread/turns/list", {}),
                ("thread/name/set", {"name": "mine"}),
                ("thread/archive", {}),
                ("turn/start", {"input": []}),
                ("turn/interrupt", {"turnId": turn_id}),
                ("turn/steer", {"expectedTurnId": turn_id, "input": []}),
                ("pool/turn/follow", {"turnId": turn_id}),
            ):
                refused = mallory.answer(mallory.begin(method, threadId=thread_id, **params))
                unknown = mallory.answer(mallory.begin(method, threadId="no-such-thread", **params))
                assert refused["error"]["code"] == NOT_ALLOWED, (method, refused)
                expected = refused["error"]["message"].replace(thread_id, "no-such-thread")
                assert unknown["error"]["message"] == expected, "it does not tell that the thread is there"
        own = mallory.call("thread/start", cwd=str(house.root))["thread"]["id"]
        for _, _, turn_id, request_id in questions:
            # Of a thread of its own, with a turn of another's.
            refused = mallory.answer(mallory.begin("pool/turn/follow", threadId=own, turnId=turn_id))
            assert "error" in refused
            for id in (request_id, request_id.replace("/", "//"), request_id.partition("/")[2]):
                mallory.send({"id": id, "result": {"decision": "accept"}})
                mallory.send({"id": id, "error": {"code": 1, "message": "no"}})
            mallory.send({"method": "serverRequest/resolved", "params": {"requestId": request_id}})
        assert mallory.call("pool/status")
        # Nothing of it has come to them, and their own answers count, once.
        for client, _, _, request_id in questions:
            client.send({"id": request_id, "result": {"decision": "decline"}})
            client.send({"id": request_id, "result": {"decision": "accept"}})
            item = client.line(lambda line: line.get("method") == "item/completed", "the answer")
            assert item["params"]["item"]["text"] == '{"decision": "decline"}'
            client.line(lambda line: line.get("method") == "turn/completed", "the end")
        secrets = {part for _, thread_id, turn_id, _ in questions for part in (thread_id, turn_id)}
        notified = [line for line in mallory.lines if "method" in line]
        assert not [line for line in notified if any(each in json.dumps(line) for each in secrets)]


def test_sessions_of_a_key_are_bounded_also_while_they_come_and_go(house: House) -> None:
    kept = [house.key() for _ in range(4)]
    with pytest.raises(Refused, match="429"):
        house.key()
    for client in kept:
        client.socket.close()
    with house.owner() as owner:
        # One that was closed counts until its end is known.
        for _ in range(40):
            try:
                house.key().socket.close()
            except Refused as refused:
                assert "429" in str(refused)
        for _ in range(200):
            found = [row for row in owner.call("pool/status")["sessions"] if row["identity"] == "mallory"]
            if not found:
                break
        assert not found


def test_turns_without_a_client_count_for_their_key(house: House) -> None:
    """Kept turns are its turns: it cannot have more by leaving them, and revoking ends them."""
    identity = Identity(name="eve", cwd_roots=("/",), max_turns=2)
    token = f"Authorization: Bearer {house.store.new(identity, house.root / 'eve.key').token}"

    def begin() -> dict[str, Any]:
        with WebSocketClient(house.port, token, name="eve") as client:
            thread = client.call("thread/start", cwd=str(house.root))["thread"]["id"]
            return client.answer(client.begin("turn/start", threadId=thread, input=[{"type": "text", "text": "wait"}]))

    assert "result" in begin() and "result" in begin()
    refused = begin()
    assert refused["error"]["code"] == -32001 and "2 turns running or waiting" in refused["error"]["message"]
    with house.owner() as owner:
        assert owner.call("pool/status")["turns"]["running"] == 2
        house.store.revoke("eve")
        for _ in range(2000):
            if not owner.call("pool/status")["turns"]["running"]:
                break
        assert owner.call("pool/status")["turns"]["running"] == 0
