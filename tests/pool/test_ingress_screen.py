"""Rate limits of a key, and checks of long requests, without sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ingress_core import MIB, Bench

from codex_pool.auth.principal import MAX_ID_CHARS, MAX_VALUES, Identity
from codex_pool.ingress import limits
from codex_pool.ingress.screening import SCREENED_BYTES, InvalidRequest, screen, screened
from codex_pool.ingress.token_bucket import TokenBucket
from codex_pool.protocol import ingress_frames, jsonrpc, wire

CALL = wire.encode(wire.Call())
LONG = "x" * (SCREENED_BYTES + 1)


def request(**members: Any) -> bytes:
    return json.dumps({"id": 1, "method": "turn/start", "params": {"text": LONG}, **members}).encode()


def test_one_key_that_sends_too_much_is_read_again_once_time_has_passed() -> None:
    bench = Bench("alice", "bob")
    numbers = [bench.join("alice")[0] for _ in range(2)]
    one, alice = bench.join("alice")
    other, _ = bench.join("bob")
    for _ in range(limits.BURST_MESSAGES + 1):
        bench.core.received(one, alice.message(b"x"), bench.now)
        bench.frames()
    reads = {number: bench.core.may_read(bench.core.connections[number]) for number in (*numbers, one, other)}
    assert reads == {numbers[0]: False, numbers[1]: False, one: False, other: True}
    assert bench.core.resumed >= {*numbers, one}, "what the loop listens to has changed"
    bench.core.resumed.clear()
    bench.tick(limits.TICK_S)
    assert all(bench.core.may_read(bench.core.connections[number]) for number in numbers)
    assert bench.core.resumed >= {*numbers, one}


def test_a_key_does_not_get_a_new_allowance_with_a_new_connection() -> None:
    bench = Bench("alice", max_message_bytes=32 * MIB)
    one, alice = bench.join("alice")
    bench.core.received(one, alice.message(bytes(20 * MIB)), bench.now)
    bench.frames()
    bench.core.gone(one)
    bench.frames()
    two, _ = bench.join("alice")
    assert not bench.core.may_read(bench.core.connections[two])
    bench.core.gone(two)
    bench.frames()
    bench.tick(limits.BURST_BYTES / limits.RATE_BYTES + 3)
    assert bench.core.held["principals"] == 0


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 100)), max_size=50))
def test_an_allowance_lets_through_its_rate_and_one_burst(events: list[tuple[float, int]]) -> None:
    allowance, now, taken, most = TokenBucket(10, 50, 0.0), 0.0, 0.0, 0.0
    for pause, count in events:
        now += pause
        allowance.take(0, now)
        if allowance.left >= 0:
            allowance.take(count, now)
            taken, most = taken + count, max(most, count)
    assert taken <= 50 + 10 * now + most + 1e-6


def test_a_long_request_is_written_anew_and_a_short_one_is_not_touched() -> None:
    identity = Identity(name="a", principal="p")
    twice = b'{"id":1,"method":"a","params":{"x":"%s","cwd":"/a","cwd":"/b"}}' % LONG.encode()
    message = screened([CALL, twice], identity)
    assert isinstance(message, list) and json.loads(message[1])["params"]["cwd"] == "/b"
    assert message[1].count(b'"cwd"') == 1
    assert screened([CALL, twice], Identity(name="a", principal="p", admin=True)) == [CALL, twice]
    for frames in (
        [CALL, b'{"a":1,"a":2}'],
        [CALL, LONG.encode(), b""],
        [wire.encode(wire.Hello("s", "c")), bytes(99999)],
    ):
        assert screened(frames, identity) is frames
    # The broker refuses the head, and has no use for the rest.
    assert screened([b"\xff", LONG.encode()], identity) == [b"\xff"]


@pytest.mark.parametrize(
    ("line", "id_json", "problem"),
    [
        (
            request(id="i" * (MAX_ID_CHARS + 1)),
            b'"%s"' % (b"i" * (MAX_ID_CHARS + 1)),
            "a request id of 1025 characters",
        ),
        (request(id=7, params={"text": LONG, "more": [{}] * MAX_VALUES}), b"7", "more than 50000 values"),
        (request(id="mine", params=json.loads("[" * 300 + "]" * 300)), b"null", "levels deep"),
        (request() + b"\n", b"null", "one line"),
        (request()[:-1], b"null", "not a request"),
        (b'["%s"]' % LONG.encode(), b"null", "not a JSON object"),
        (b'{"id":1,"method":"a","x":"' + LONG.encode() + b'\xff"}', b"null", "not a request"),
        (request(id=3, params="y" * 9 * MIB), b"3", "allows 8388608 bytes"),
    ],
)
def test_what_is_not_passed_on(line: bytes, id_json: bytes, problem: str) -> None:
    refusal = screen(line, Identity(name="a", principal="p"))
    assert isinstance(refusal, InvalidRequest) and refusal.id_json == id_json
    assert problem in refusal.message and len(refusal.message) < 300


def test_what_is_refused_is_answered_and_the_broker_hears_only_of_the_count() -> None:
    bench = Bench("alice")
    one, alice = bench.join("alice")
    bench.frames()
    for body in (b'{"id":1,"method":"a"}', request(id="i" * 1100), b'{"id":2,"method":"b"}'):
        bench.core.received(one, alice.message(CALL, more=True) + alice.message(body), bench.now)
    assert [frame.frames[1] for frame in bench.frames() if isinstance(frame, ingress_frames.Message)] == [
        b'{"id":1,"method":"a"}',
        b'{"id":2,"method":"b"}',
    ]
    assert bench.core.refusals.unreported() == {"message": 1}
    assert sum(map(len, bench.core.connections[one].outgoing)) > 300
    refusal = screen(request(id="i" * 1100), bench.identities["alice"])
    assert isinstance(refusal, InvalidRequest)
    head, line = refusal.frames
    assert isinstance(wire.decode_to_client(head), wire.Lines)
    assert json.loads(line)["error"]["data"] == {"kind": "refused", "what": "message"}


def test_what_the_broker_would_write_is_what_was_screened() -> None:
    line = screen(request(), Identity(name="a", principal="p"))
    assert line == jsonrpc.encode(json.loads(request()))
