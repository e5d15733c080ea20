"""Long answers: they are walked and copied once, come in parts, and take nobody's place."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import zmq
from session_ids import sid
from worker_bench import Bench

from codex_app_server import AppServerConfig, Codex
from codex_app_server._core.router import MessageRouter
from codex_app_server._protocol import envelope
from codex_app_server.operations import Operation, thread_resume
from codex_pool import Pool
from codex_pool.client.effects import Deliver
from codex_pool.client.session import Session
from codex_pool.protocol import jsonrpc, sockets, wire
from codex_pool.protocol.answer_parts import PART_BYTES, parts_of
from codex_pool.worker import dedupe
from codex_pool.worker.broker_connection import BrokerConnection
from codex_pool.worker.effects import BulkToBroker

TEXT = "a word, " * 200_000


def long_line(id: int = 7, **more: Any) -> bytes:
    return json.dumps({"id": id, "result": {"thread": {"id": "t1", "turns": [TEXT]}, **more}}).encode()


# The header.


def test_a_long_response_is_known_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    line = long_line()
    monkeypatch.setattr(envelope, "_decode", None)
    assert envelope.scan(line) == envelope.Envelope(7, None, None, None, False)
    error = b'{"id":"x","error":{"code":1,"message":"%s"}}' % TEXT.encode()
    assert envelope.scan(error) == envelope.Envelope("x", None, None, None, True)


def test_a_long_response_is_looked_into_once(monkeypatch: pytest.MonkeyPatch) -> None:
    router = MessageRouter()
    router.expect(7, "token")
    monkeypatch.setattr(router._scanner, "scan", router._scanner.scan)
    looked: list[int] = []
    scan = envelope.scan
    monkeypatch.setattr(envelope, "scan", lambda line: looked.append(len(line)) or scan(line))
    (reply,) = router.receive([long_line()])
    assert reply.token == "token" and len(looked) == 1  # type: ignore[union-attr]


def test_an_id_is_exchanged_without_a_look_at_the_rest() -> None:
    line = long_line(trace={"of": "more"})
    assert json.loads(jsonrpc.with_id(line, b'"x"')) == {**json.loads(line), "id": "x"}


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
def test_parts_are_the_line(size: int) -> None:
    line = b'{"id":7,"result":"%s"}' % (b"x" * size)
    parts = [*parts_of(line, b'"a"')]
    assert b"".join(bytes(body) for _, body in parts) == jsonrpc.with_id(line, b'"a"')
    assert [part.number for part, _ in parts] == [*range(len(parts))]
    assert [part.last for part, _ in parts] == [False] * (len(parts) - 1) + [True]
    assert all(len(body) <= PART_BYTES + 64 for _, body in parts)


# What the worker keeps.


def test_a_long_answer_pushes_out_no_other() -> None:
    kept = dedupe.AnswerCache(max_answers=10, max_bytes=dedupe.MAX_ANSWER_BYTES)
    for number, line in enumerate([b"short", b"x" * (dedupe.MAX_KEPT_ANSWER_BYTES + 1)]):
        kept.put(sid("s"), b"%d" % number, dedupe.Answer(True, line))
    assert isinstance(kept.find(sid("s"), b"0"), dedupe.Answer) and kept.find(sid("s"), b"1") is None


# The worker's side.


def answered(bench: Bench, line: bytes, *, accepts_parts: bool, method: str = "thread/resume") -> list[Any]:
    request = jsonrpc.encode({"id": "c1", "method": method, "params": {"threadId": "t1"}})
    bench.apply(
        bench.core.broker_message(wire.Dispatch(5, sid("s1"), accepts_parts=accepts_parts), [request], bench.now)
    )
    return bench.core.lines([line.replace(b'"id": 7', b'"id":%d' % bench.request(method), 1)], bench.now)


def test_the_thread_is_told_of_before_its_long_answer() -> None:
    bench = Bench().start()
    effects = answered(bench, long_line(model="m"), accepts_parts=True)
    (held,) = [wire.decode_from_worker(each.frames[0]) for each in effects if not isinstance(each, BulkToBroker)]
    assert isinstance(held, wire.ThreadLoaded) and (held.call, held.record.thread_id, held.record.model) == (
        5,
        "t1",
        "m",
    )
    bulk = [each for each in effects if isinstance(each, BulkToBroker)]
    routes = [wire.decode_from_worker(bytes(each.frames[0])) for each in bulk]
    assert {type(route) for route in routes[:-1]} == {wire.ToSessions} and routes[-1] == wire.Answered(5, True)
    whole = b"".join(bytes(each.frames[2]) for each in bulk)
    assert json.loads(whole)["id"] == "c1" and len(json.loads(whole)["result"]["thread"]["turns"][0]) == len(TEXT)


@pytest.mark.parametrize(("accepts_parts", "method"), [(False, "thread/resume"), (True, "thread/fork")])
def test_it_comes_whole_to_clients_that_accept_no_parts_and_where_the_owner_is_recorded(
    accepts_parts: bool, method: str
) -> None:
    effects = answered(Bench().start(), long_line(), accepts_parts=accepts_parts, method=method)
    assert not [each for each in effects if isinstance(each, BulkToBroker)]
    assert isinstance(wire.decode_from_worker(effects[-1].frames[0]), wire.Answered)


def test_short_messages_pass_between_parts(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    endpoint = f"ipc://{tmp_path}/x"
    broker = sockets.router(context, endpoint)
    connection = BrokerConnection(context, endpoint, "w0", lambda: wire.Progress("w0", 0, 0, 0))
    try:
        for number in range(3):
            connection.send_bulk([b"part", b"%d" % number])
        connection.flush()
        connection.send([b"short"])
        while connection.has_unsent:
            connection.flush()
        assert broker.poll(10_000)
        got = [broker.recv_multipart()[1:] for _ in range(4)]
        assert got == [[b"part", b"0"], [b"short"], [b"part", b"1"], [b"part", b"2"]] and connection.unsent_bytes == 0
    finally:
        connection.close()
        broker.close(linger=0)
        context.term()


# The client's side.


def session() -> Session:
    session = Session("s", "test", endpoint="ipc://x", no_pool=str, jitter=lambda: 0.5)
    session.start(0.0)
    session.messages([[wire.encode(wire.Welcome(1)), b"{}"]], 0.0)
    session.line(b'{"id":1,"method":"thread/read"}', "full")
    return session


def part(number: int, body: bytes, last: bool = False) -> list[bytes]:
    return [wire.encode(wire.AnswerPart("1", number, last)), body]


def delivered(session: Session, *messages: list[bytes]) -> list[Any]:
    return [line for each in session.messages([*messages], 0.0) if isinstance(each, Deliver) for line in each.batch]


def test_parts_become_one_answer() -> None:
    client = session()
    assert delivered(client, part(0, b'{"id":1,'), part(1, b'"result"')) == []
    assert delivered(client, part(2, b":{}}", last=True)) == [b'{"id":1,"result":{}}']
    assert client.held["calls"] == client.held["held"] == 0


def test_an_answer_that_was_begun_twice_is_the_second_one() -> None:
    client = session()
    assert delivered(client, part(0, b'{"id":1,'), part(0, b'{"id":1,"result":'), part(1, b"2}", last=True)) == [
        b'{"id":1,"result":2}'
    ]


def test_the_rest_of_an_answer_is_passed_over() -> None:
    client = session()
    assert delivered(client, part(0, b'{"id":1,')) == []
    client.lost("gone", 0.0)
    client.tick(5.0)
    client.messages([[wire.encode(wire.Welcome(1, True)), b"{}"]], 5.0)
    assert delivered(client, part(3, b"junk"), part(4, b"junk}", last=True)) == []
    assert delivered(client, part(0, b'{"id":1,"result":2}', last=True)) == [b'{"id":1,"result":2}']


def test_an_error_ends_what_had_begun() -> None:
    client = session()
    error = jsonrpc.error_line(b"1", -32011, "its worker died")
    assert delivered(client, part(0, b'{"id":1,'), [wire.encode(wire.Lines()), error]) == [error]
    assert client.held["calls"] == client.held["held"] == 0


# The whole way.


@pytest.fixture
def histories(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    return importlib.import_module("histories")


@pytest.mark.real
def test_a_long_history_comes_in_parts_and_the_pool_begins_with_what_the_home_knows_of_it(
    histories: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    history = histories.begin(tmp_path / "home")
    histories.lengthen(history, 40, 200_000)
    thread_id = histories.thread_of(history)
    asked = thread_resume(thread_id, {})
    operation = Operation(asked.method, asked.params, json.loads, asked.thread_id)
    config: AppServerConfig = histories.config_of(tmp_path / "home")
    with Codex(config) as alone:
        expected = alone.client.perform(operation)
    largest: list[int] = []
    receive = Session.messages

    def measured(self: Session, messages: list[list[bytes]], now: float) -> Any:
        largest.extend(len(frame) for message in messages for frame in message)
        return receive(self, messages, now)

    monkeypatch.setattr(Session, "messages", measured)
    with Pool(1, config, log_file=tmp_path / "log") as pool, pool.connect() as codex:
        # What the app-server of this home knows of the history is what the pool's begins with.
        slot = tmp_path / "home" / "codex-pool" / "sqlite" / "0"
        assert (slot / "thread_history_1.sqlite").stat().st_size > 4_000_000
        answer = codex.client.perform(operation)
        assert answer["thread"]["turns"] == expected["thread"]["turns"] and len(expected["thread"]["turns"]) == 40
        assert sum(largest) > 7_500_000 and max(largest) < 2 * PART_BYTES
