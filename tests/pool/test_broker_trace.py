"""The broker's log of events, and contradictions in its state: what is recorded, reported, and shown by status."""

from __future__ import annotations

import json
from typing import Any

import pytest
from broker_bench import Bench, encode, total_held
from session_ids import sid
from test_policy_broker import KeyedBench, identity

from codex_app_server._protocol import envelope
from codex_pool.broker import client_line, fault_report
from codex_pool.broker.event_log import MAX_EVENTS, MAX_ID_CHARS, EventLog
from codex_pool.broker.request import NEXT, Request
from codex_pool.daemon import status_text
from codex_pool.protocol import wire


@pytest.fixture
def bench() -> Bench:
    bench = Bench(slots=1, turns_per_worker=1)
    bench.register()
    bench.hello()
    return bench


def traced(bench: Bench, **options: Any) -> dict[str, Any]:
    call = bench.call("pool/status", {"trace": True}, **options)
    (answer,) = bench.answers[call]
    result: dict[str, Any] = answer["result"]
    return result


def test_events_are_bounded_in_number_and_in_the_length_of_ids() -> None:
    log = EventLog()
    for number in range(MAX_EVENTS + 10):
        log.record(float(number), "x" if number % 2 else "y", "s" * 1000, sid("s1"), "t" * 1000, "w0")
    rows = log.rows(float(MAX_EVENTS + 10))
    assert len(log) == len(rows) == MAX_EVENTS
    assert rows[0] == {
        "ageMs": 1000 * MAX_EVENTS,
        "kind": "y",
        "subject": "s" * MAX_ID_CHARS,
        "session": "s1",
        "thread": "t" * MAX_ID_CHARS,
        "worker": "w0",
    }
    assert log.lines(float(MAX_EVENTS + 10))[-1].startswith("-1.000 s x sss")


def test_a_trace_shows_requests_by_state_and_the_way_of_each_without_its_text(bench: Bench) -> None:
    bench.thread("t1")
    bench.turn("t1")
    waiting = bench.call("turn/start", {"threadId": "t1", "input": [{"type": "text", "text": "a secret"}]})
    assert "trace" not in bench.status()
    result = traced(bench)
    trace = result["trace"]
    assert trace["requests"] == {"held": 1, "dispatched": 0, "returned": 0, "executing": 0}
    assert trace["held"] == {"turn": 1} and trace["sessions"] == {"connected": 1} and trace["faults"] == []
    (held,) = [event for event in trace["events"] if event["kind"] == "held"]
    assert (held["subject"], held["session"], held["request"], held["thread"], held["worker"]) == (
        "turn/start",
        "s1",
        str(waiting[1]),
        "t1",
        "w0",
    )
    first = [event["kind"] for event in trace["events"] if event.get("subject") == "thread/start"]
    assert first == ["dispatched", "returned", "done"]
    assert "secret" not in json.dumps(result)
    text = status_text.trace(result)
    assert (
        text[0] == "requests: 1 held" and text[1] == "held: 1 turn" and any("held turn/start" in line for line in text)
    )
    assert status_text.trace({}) == ["no trace: the daemon is older than this command, or the key may not see it"]


def test_a_limited_key_gets_no_trace() -> None:
    bench = KeyedBench(identity("alice"))
    bench.register()
    bench.hello("alice-1")
    assert "trace" not in traced(bench, session="alice-1") and "trace" in status_of_owner(bench)


def status_of_owner(bench: KeyedBench) -> dict[str, Any]:
    bench.hello("own")
    return traced(bench, session="own")


def test_sessions_go_through_their_states(bench: Bench) -> None:
    session = bench.core.state.sessions[sid("s1")]
    bench.beat(4)
    assert session.state == "silent"
    bench.from_client(wire.Beat())
    assert session.state == "connected"
    bench.beat(4)
    bench.core.state.send_line(session.id, b"{}")
    assert session.state == "outdated"
    bench.from_client(wire.Beat())
    assert session.state == "disconnected" and bench.core.state.faults() == []
    bench.hello(connection="s1/2")
    assert session.state == "connected" and session.away_since is None
    bench.from_client(wire.Bye())
    assert session.state == "ended" and bench.core.state.faults() == []


def test_a_contradiction_is_logged_once_with_the_events_and_shown_until_it_is_gone(bench: Bench) -> None:
    bench.thread("t1")
    requests = bench.core.state.requests
    bench.tick(1.0)
    assert bench.notes == [] and bench.status()["problems"] == []
    requests.held += 1
    bench.beat(3, "s1")
    assert sum("is inconsistent" in note and "held requests: 1, expected 0" in note for note in bench.notes) == 1
    assert any("dispatched thread/start session s1" in note for note in bench.notes)
    (problem,) = bench.status()["problems"]
    assert problem["what"] == fault_report.WHAT and "held requests" in problem["message"]
    assert traced(bench)["trace"]["faults"]
    requests.held -= 1
    bench.tick(1.0)
    assert bench.status()["problems"] == [] and total_held(bench) == 0


def test_a_transition_that_is_not_in_the_table_is_a_fault(bench: Bench) -> None:
    state = bench.core.state
    request = Request(sid("s1"), 7, "thread/read", None, b"", "full", bench.now)
    state.requests.finish(request)
    state.requests.execute(request)
    found = state.faults()
    assert found == ["request 7 (thread/read) went from done to executing"]
    assert {after for follows in NEXT.values() for after in follows} | {"received"} == NEXT.keys()


@pytest.mark.parametrize(
    "message",
    [
        {"id": 1, "method": "turn/start", "params": {"threadId": "t", "turnId": "u", "input": [{"a": 1}]}},
        {"id": "x", "method": "no/such", "params": {"thread": {"id": "t"}, "turn": {"id": "u"}}},
        {"id": "x", "method": "no/such", "params": {"threadId": None, "thread": None, "turn": 7}},
        {"id": 1, "method": "thread/read", "params": {"threadId": 7}},
        {"id": 1, "method": "thread/read", "params": [1]},
        {"id": 1, "method": "thread/read", "params": None},
        {"method": "pool/cancel", "params": {"requestId": 5}},
        {"id": 3, "result": {}},
        {"id": 3, "error": {"code": 1}},
        {"id": None, "method": "initialized"},
    ],
)
def test_a_line_has_the_header_that_scanning_it_finds(message: dict[str, Any]) -> None:
    line = encode(message)
    header, decoded = client_line.read(line)
    assert header == envelope.scan(line)
    assert (decoded is not None) == ("method" in message and not isinstance(message.get("params"), list))


@pytest.mark.parametrize("line", [b"", b"[]", b"7", b"{", b'{"a":1}', b'{"id":1,"method":"x","params":{"a":"\xff"}'])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        client_line.read(line)
