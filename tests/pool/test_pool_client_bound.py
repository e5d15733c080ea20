"""Commands, processes, watches and searches in a client's session: their streams come as lines, each once, in order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_pool_client_session import NOTHING_HELD, RESUMED, WELCOME, Bench, line, lines

from codex_app_server.transport import TurnLines
from codex_pool.protocol import wire


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.get(WELCOME)
    return bench


def stream(name: str, after: int, *each: bytes, ended: bool = False) -> list[bytes]:
    """A message of a stream of worker w1."""
    runs = [wire.Run(len(each), "kept")] if each else []
    head = wire.Events("", name, after, after + len(each), runs, ended, "w1")
    return [wire.encode(head), *([b"\n".join(each)] if each else [])]


def output(number: int) -> bytes:
    return line(method="command/exec/outputDelta", params={"processId": "p", "number": number})


def exited(handle: str) -> bytes:
    return line(method="process/exited", params={"processHandle": handle, "exitCode": 0})


def answered(bench: Bench, method: str, request_id: int, params: dict[str, Any]) -> None:
    bench.put(line(id=request_id, method=method, params=params))
    bench.get(lines(line(id=request_id, result={})))


def test_a_stream_is_lines_and_its_last_one_may_answer(bench: Bench) -> None:
    bench.put(line(id=1, method="command/exec", params={"processId": "p"}))
    answer = line(id=1, result={"exitCode": 0})
    bench.get(stream("w1/1", 0, output(1), output(2)), stream("w1/1", 2, answer, ended=True))
    assert bench.delivered == [output(1), output(2), answer]
    assert not [each for each in bench.delivered if isinstance(each, TurnLines)]
    ((ack, _),) = bench.of(wire.Ack)
    assert ack == wire.Ack("w1", [wire.Position("w1/1", 3)])
    assert bench.session.held == NOTHING_HELD


def test_what_comes_again_after_a_reconnect_is_left_out(bench: Bench) -> None:
    bench.put(line(id=1, method="command/exec", params={"processId": "p"}))
    bench.get(stream("w1/1", 0, output(1), output(2)))
    bench.come_back()
    ((_, bodies),) = bench.of(wire.Hello)
    assert wire.decode_positions(bodies[0]) == [wire.Position("w1/1", 2, "")]
    bench.get(stream("w1/1", 0, output(1), output(2), output(3)), stream("w1/1", 3, line(id=1, result=1), ended=True))
    assert bench.delivered == [output(1), output(2), output(3), line(id=1, result=1)]
    assert bench.session.held == NOTHING_HELD


def test_the_streams_of_a_dead_worker_end_with_what_the_broker_reports(bench: Bench) -> None:
    answered(bench, "process/spawn", 1, {"processHandle": "h"})
    bench.get(stream("w1/1", 0, output(1)), stream("w1/2", 0, output(2)), stream("w10/1", 0, output(3)))
    assert bench.session.held["turns"] == 3 and bench.session.held["bound"] == 1
    bench.get([wire.encode(wire.Ended("", "w1")), exited("h")])
    assert bench.delivered[-1] == exited("h") and bench.session.held["turns"] == 1
    bench.get([wire.encode(wire.Ended("", "w10"))])
    assert bench.session.held == NOTHING_HELD


def test_a_session_that_the_pool_has_let_go_reports_what_has_ended_and_begins_nothing_twice(bench: Bench) -> None:
    answered(bench, "process/spawn", 1, {"processHandle": "running"})
    answered(bench, "process/spawn", 2, {"processHandle": "over"})
    answered(bench, "fs/watch", 3, {"watchId": "w", "path": "/p"})
    answered(bench, "fs/watch", 4, {"watchId": "x", "path": "/p"})
    answered(bench, "fs/unwatch", 5, {"watchId": "x"})
    bench.get(stream("w1/2", 0, exited("over"), ended=True))
    bench.put(line(id=6, method="command/exec", params={"processId": "p"}))
    bench.get(stream("w1/5", 0, output(1)))
    bench.delivered.clear()
    bench.come_back(WELCOME)
    exit_, warning, error = [json.loads(each) for each in bench.delivered if isinstance(each, bytes)]
    assert exit_["method"] == "process/exited" and exit_["params"]["processHandle"] == "running"
    assert exit_["params"]["exitCode"] == 137 and "let its session go" in exit_["params"]["stderr"]
    assert warning["method"] == "warning" and warning["params"]["message"].startswith("watch 'w' has ended")
    assert error["id"] == 6 and error["error"]["data"] == {"kind": "lost", "safeToRetry": False}
    assert not bench.of(wire.Call), "the command is not sent again"
    assert bench.session.held == NOTHING_HELD


def test_initialize_is_sent_again_as_such(bench: Bench) -> None:
    bench.put(line(id=1, method="initialize", params={}))
    bench.get(lines(line(id=1, result={})))
    assert [head.again for head, _ in bench.of(wire.Call)] == [False]
    bench.come_back(RESUMED)
    assert [head.again for head, _ in bench.of(wire.Call)] == [True]
