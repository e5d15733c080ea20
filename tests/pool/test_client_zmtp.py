"""ZMTP without encryption, the client's side: in any pieces, and against what no server of ours would send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_pool.client.zmtp import ClientConnection, ZmtpError, encode

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0"
MAX_BYTES = 1000


def client() -> ClientConnection:
    return ClientConnection(b"s1/1", MAX_BYTES)


def ready() -> ClientConnection:
    found = client()
    assert found.receive(GREETING + READY) == [] and found.is_ready
    return found


def test_its_part_of_the_handshake_names_a_dealer_and_its_routing_id() -> None:
    said = client().greeting
    assert said[:12] == b"\xff" + bytes(8) + b"\x7f\x03\x00" and said[12:32] == b"NULL".ljust(20, b"\0")
    assert said[64:65] == b"\x06" and int.from_bytes(said[65:73], "big") == len(said) - 73
    assert said[73:].startswith(b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x04s1/1")


@given(
    st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=4), max_size=5),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_messages_are_read_in_any_pieces(messages: list[list[bytes]], sizes: list[int]) -> None:
    data = GREETING + READY + b"".join(map(encode, messages))
    connection, found, at, number = client(), [], 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        found += connection.receive(data[at : at + size])
        at, number = at + size, number + 1
    assert found == messages and connection.is_ready


def test_commands_between_messages_are_passed_over() -> None:
    assert ready().receive(encode([b"a"]) + b"\x04\x07\x04PING\0\0" + encode([b"b"])) == [[b"a"], [b"b"]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"HTTP/1.1 400 Bad Request".ljust(64), "its greeting is b'HTTP"),
        (GREETING[:10] + b"\x01" + GREETING[11:], "expected ZMTP 3"),
        (GREETING[:12] + b"CURVE".ljust(20, b"\0") + GREETING[32:], "without encryption"),
        (GREETING + encode([b"early"]), "a message before the end of its handshake"),
        (GREETING + b"\x04\x0d\x05ERROR\x06no way", "it refuses the connection: no way"),
        (GREETING + READY + b"\x02" + (MAX_BYTES + 1).to_bytes(8, "big"), "a frame of 1001 bytes; the limit is 1000"),
        (GREETING + READY + b"\x06" + (1 << 40).to_bytes(8, "big"), "a frame of 1099511627776 bytes"),
    ],
)
def test_what_is_not_of_the_protocol_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ZmtpError, match=words):
        client().receive(data)
