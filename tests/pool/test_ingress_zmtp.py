"""ZMTP with CURVE, the server's side: against libzmq, in any pieces, and against what no client of ours would send."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest
import zmq
import zmq.utils.z85
from curve_client import GREETING, METADATA, CurveClient, command, long_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_pool.auth import z85
from codex_pool.ingress import zmtp
from codex_pool.ingress.zmtp import MAX_INITIATE_BYTES, MAX_PARTS, MESSAGE_OVERHEAD, ServerConnection, ZmtpError

SERVER = tuple(map(zmq.utils.z85.decode, zmq.curve_keypair()))
CLIENT = tuple(map(zmq.utils.z85.decode, zmq.curve_keypair()))
MAX_BYTES = 1000


def server(allow: Callable[[bytes], int | None] = lambda key: MAX_BYTES) -> ServerConnection:
    return ServerConnection(*SERVER, allow)


def client() -> CurveClient:
    return CurveClient(*CLIENT, SERVER[0])


def output(connection: ServerConnection) -> bytes:
    said = bytes(connection.output)
    connection.output.clear()
    return said


def joined() -> tuple[ServerConnection, CurveClient]:
    """Both sides after the handshake."""
    one, other = server(), client()
    one.receive(GREETING + other.hello())
    other.welcome(output(one)[66:])
    one.receive(other.initiate())
    assert one.is_open and output(one)[2:].startswith(b"\x05READY")
    return one, other


def fault(connection: ServerConnection, data: bytes) -> str:
    with pytest.raises(ZmtpError) as caught:
        connection.receive(data)
    return caught.value.reason


def held(connection: ServerConnection) -> int:
    return len(connection._buffer) + sum(map(len, connection._parts))


# As it should be.


def test_keys_are_written_as_zeromq_writes_them() -> None:
    for key in (*SERVER, *CLIENT, bytes(32), b"\xff" * 32):
        text = zmq.utils.z85.encode(key).decode()
        assert z85.encode(key) == text and z85.decode(text) == key
    for wrong in ("x", "x" * 39, "é" * 40, "~" * 40, "#" * 40):
        with pytest.raises(ValueError):
            z85.decode(wrong)
    with pytest.raises(ValueError):
        z85.encode(b"abc")


@pytest.mark.parametrize("routing_id", [b"", b"same", b"\0\xff" * 127])
def test_a_dealer_of_libzmq(routing_id: bytes) -> None:
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    messages = [[b""], [b"head", b"body"], [b"h", b"x" * 254], [b"h", b"x" * 255], [b"h", b"y" * 500_000]]

    def serve() -> None:
        accepted, _ = listener.accept()
        with accepted:
            one = server(lambda key: seen.append(key) or 1_000_000)  # type: ignore[func-returns-value]
            left = len(messages)
            while left:
                accepted.sendall(output(one))
                for frames in one.receive(accepted.recv(65536)):
                    accepted.sendall(b"".join(one.send(frames)))
                    left -= 1
            # Until the client has read it all.
            while accepted.recv(65536):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, 20)
        # By default as long as the interval: on a busy machine the answer may take more.
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10_000)
        dealer.setsockopt(zmq.IDENTITY, routing_id) if routing_id else None
        for option, key in ((zmq.CURVE_PUBLICKEY, CLIENT[0]), (zmq.CURVE_SECRETKEY, CLIENT[1])):
            dealer.setsockopt(option, key)
        dealer.setsockopt(zmq.CURVE_SERVERKEY, SERVER[0])
        dealer.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        for message in messages:
            dealer.send_multipart(message)
            assert dealer.poll(10_000) and dealer.recv_multipart() == message
    finally:
        dealer.close()
        context.term()
        thread.join(10)
        listener.close()
    assert seen == [CLIENT[0]] and not thread.is_alive()


def test_a_key_that_is_refused_gets_the_error_that_libzmq_sends() -> None:
    one, other = server(lambda key: None), client()
    one.receive(GREETING + other.hello())
    other.welcome(output(one)[66:])
    assert fault(one, other.initiate()) == "unknown key"
    assert output(one) == b"\x04\x0a\x05ERROR\x03400" and not one.is_open


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=3), max_size=5),
    st.lists(st.integers(1, 200), min_size=1, max_size=50),
)
def test_in_whatever_pieces_it_comes(messages: list[list[bytes]], sizes: list[int]) -> None:
    one, other = joined()
    wire = b"".join(
        other.message(part, more=number < len(parts) - 1) for parts in messages for number, part in enumerate(parts)
    )
    got: list[list[bytes]] = []
    at = turn = 0
    while at < len(wire):
        size = sizes[turn % len(sizes)]
        got += one.receive(wire[at : at + size])
        at, turn = at + size, turn + 1
        assert held(one) <= MAX_BYTES + MESSAGE_OVERHEAD + 9
    assert got == messages and one.expects == 0


def test_a_ping_is_answered_and_many_at_once_are_answered_once() -> None:
    one, other = joined()
    ping = b"\x04PING\0\x0acontext"
    assert one.receive(b"".join(other.message(ping, flags=2) for _ in range(50))) == []
    assert other.open(output(one)[2:]) == b"\x02\x04PONGcontext"
    assert one.receive(other.message(b"\x04PONG", flags=2)) == [] and output(one) == b""


# As it should not be.


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_garbage_at_any_point_is_refused_and_not_kept(data: st.DataObject) -> None:
    """Whatever comes: nothing but ZmtpError is raised, and no more is kept than may be."""
    step = data.draw(st.integers(0, 3))
    one, other = server(), client()
    if step >= 1:
        one.receive(GREETING)
    if step >= 2:
        one.receive(other.hello())
    if step >= 3:
        one, other = joined()
    garbage = st.one_of(
        st.binary(max_size=300),
        st.sampled_from([GREETING, b"\xff", command(b"\x05HELLO\x01\0"), b"\x06" + b"\xff" * 8, b"\x04\xff"]),
        st.builds(lambda body: command(b"\x08INITIATE" + body), st.binary(max_size=400)),
        st.builds(lambda body: long_frame(b"\x07MESSAGE" + body), st.binary(max_size=400)),
    )
    for piece in data.draw(st.lists(garbage, max_size=6)):
        try:
            assert one.receive(piece) == []
        except ZmtpError:
            return
        assert held(one) <= max(MAX_BYTES, MAX_INITIATE_BYTES) + MESSAGE_OVERHEAD + 9


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_byte_of_the_handshake_lets_nobody_in(at: int, change: int) -> None:
    """Bytes that nobody looks at are excepted: padding, and how the greeting fills up."""
    one, other = server(), client()
    hello = bytearray(other.hello())
    position = at % len(hello)
    hello[position] ^= change
    if 10 <= position < 82:
        return
    one.receive(GREETING)
    try:
        one.receive(bytes(hello))
        assert not one.is_open
    except ZmtpError as error:
        assert error.reason in ("bad handshake", "bad message")


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "bad handshake"),
        (b"\x16\x03\x01\x02\x00", "bad handshake"),
        (b"\xff" * 64, "bad handshake"),
        (GREETING[:10] + b"\x02" + GREETING[11:], "bad handshake"),
        (GREETING[:12] + b"NULL".ljust(20, b"\0") + bytes(32), "no key"),
        (GREETING[:12] + b"PLAIN".ljust(20, b"\0") + bytes(32), "no key"),
        (GREETING[:12] + b"curve".ljust(20, b"\0") + bytes(32), "no key"),
    ],
)
def test_other_protocols_and_mechanisms(greeting: bytes, reason: str) -> None:
    assert fault(server(), greeting) == reason


def test_the_key_of_another_server() -> None:
    other = CurveClient(*CLIENT, CLIENT[0])
    assert fault(server(), GREETING + other.hello()) == "bad handshake"


def test_a_vouch_for_a_key_that_the_client_does_not_have() -> None:
    one, other = server(), client()
    one.receive(GREETING + other.hello())
    other.welcome(output(one)[66:])
    other.public_key = SERVER[0]
    assert fault(one, other.initiate()) == "bad handshake"


def test_a_handshake_that_is_played_back() -> None:
    one, other = server(), client()
    hello = other.hello()
    one.receive(GREETING + hello)
    other.welcome(output(one)[66:])
    initiate = other.initiate()
    one.receive(initiate)
    assert one.is_open
    again = server()
    again.receive(GREETING + hello)
    assert fault(again, initiate) == "bad handshake"


def test_nonces_must_grow() -> None:
    one, other = joined()
    message = other.message(b"once")
    assert one.receive(message) == [[b"once"]]
    assert fault(one, message) == "bad message"
    one, other = joined()
    other.nonce = 100
    one.receive(other.message(b"x"))
    other.nonce = 50
    assert fault(one, other.message(b"x")) == "bad message"


def test_parts_and_bytes_of_a_message_are_bounded() -> None:
    one, other = joined()
    for _ in range(MAX_PARTS - 1):
        one.receive(other.message(b"", more=True))
    assert fault(one, other.message(b"", more=True)) == "too many parts"
    one, other = joined()
    assert one.receive(other.message(b"x" * MAX_BYTES)) == [[b"x" * MAX_BYTES]]
    one.receive(other.message(b"x" * 600, more=True))
    with pytest.raises(ZmtpError) as caught:
        # Its header is enough.
        one.receive(other.message(b"x" * 401)[:9])
    assert caught.value.reason == "oversized message" and caught.value.size == 1001


@pytest.mark.parametrize("data", [b"\x06" + bytes(6) + b"\x10\0", b"\x04\xff" + bytes(255), b"\x07\0", b"\x00\xc8"])
def test_commands_of_the_handshake_are_bounded(data: bytes) -> None:
    one = server()
    one.receive(GREETING)
    assert fault(one, data) == "bad handshake"
    assert zmtp.HELLO_BYTES < 255


@pytest.mark.parametrize("flags", [3, 4, 8, 255])
def test_flags_that_are_none(flags: int) -> None:
    one, other = joined()
    assert fault(one, other.message(b"x", flags=flags)) == "bad message"


@pytest.mark.parametrize(
    "body", [b"", b"\x09SUBSCRIBE", b"\x04PING", b"\x04PING" + bytes(500), b"\x04PONG" + bytes(500)]
)
def test_commands_that_are_none(body: bytes) -> None:
    one, other = joined()
    assert fault(one, other.message(body, flags=2)) == "bad message"


def test_what_is_said_without_encryption_is_not_listened_to() -> None:
    for data in (command(b"\x05READY" + METADATA), b"\0\x05hello", command(b"\x04PING\0\0"), long_frame(bytes(40))):
        assert fault(joined()[0], data) == "bad message"
