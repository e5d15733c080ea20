"""Transports to a pool against a scripted broker: real sockets, connections that break, brokers that stop."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from codex_app_server import TransportClosedError
from codex_app_server._protocol.framing import LongLine
from codex_app_server.transport import TurnLines
from codex_pool.client import connections, session_io
from codex_pool.client.transport import PoolTransport
from codex_pool.client.unix_transport import UnixTransport
from codex_pool.protocol import sockets, wire

LIMIT_S = 20.0

Entry = bytes | LongLine | TurnLines


class Inbox:
    """A receiver that a test reads from. `threads`: which ones gave it what it has."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.entries: queue.Queue[Entry] = queue.Queue()
        self.closed: queue.Queue[TransportClosedError] = queue.Queue()

    def on_batch(self, batch: list[Entry]) -> None:
        self.threads.append(threading.get_ident())
        for entry in batch:
            self.entries.put(entry)

    def on_closed(self, error: TransportClosedError) -> None:
        self.closed.put(error)

    def next(self) -> Entry:
        return self.entries.get(timeout=LIMIT_S)


class Broker:
    """A ROUTER that does what the test says; beats to whoever said Hello unless it is `silent`."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"ipc://{path}"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = sockets.router(self._context, self.endpoint)
        self.identities: list[bytes] = []
        self.silent = False
        self._beat_at = 0.0

    def read(self, kind: type, timeout_s: float = LIMIT_S) -> tuple[bytes, Any, list[bytes]]:
        """The next message of this kind; others are passed over."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if time.monotonic() - self._beat_at > 0.5 and not self.silent:
                self._beat_at = time.monotonic()
                for identity in self.identities[-1:]:
                    self.send(identity, wire.Beat())
            if self._socket.poll(100):
                identity, frame, *bodies = self._socket.recv_multipart()
                head = wire.decode_from_client(frame)
                if isinstance(head, wire.Hello):
                    self.identities.append(identity)
                if isinstance(head, kind):
                    return identity, head, bodies
        raise AssertionError(f"no {kind.__name__} within {timeout_s} s")

    def welcome(self, *, resumed: bool = False) -> tuple[bytes, wire.Hello, list[bytes]]:
        """Let the next client in."""
        identity, hello, bodies = self.read(wire.Hello)
        self.send(identity, wire.Welcome(1, resumed), b"{}")
        return identity, hello, bodies

    def send(self, identity: bytes, head: wire.Head, *bodies: bytes) -> None:
        try:
            self._socket.send_multipart([identity, wire.encode(head), *bodies], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            assert error.errno == zmq.EHOSTUNREACH

    def close(self) -> None:
        self._socket.close(linger=200)
        self._context.term()


@pytest.fixture
def path(runtime_directory: Path) -> Path:
    return runtime_directory / "s.sock"


@contextmanager
def broker_at(path: Path) -> Iterator[Broker]:
    broker = Broker(path)
    try:
        yield broker
    finally:
        broker.close()
        path.unlink(missing_ok=True)


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.01)


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT_S)
        loop.close()


def on(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function on a running loop; what it returns."""

    async def call() -> Any:
        return function(*args)

    return asyncio.run_coroutine_threadsafe(call(), loop).result(LIMIT_S)


AnyTransport = PoolTransport | UnixTransport
SessionAt = Callable[..., AbstractContextManager[tuple[AnyTransport, Inbox]]]


@contextmanager
def started(
    broker: Broker, loop: asyncio.AbstractEventLoop | None, kind: type[AnyTransport] = PoolTransport
) -> Iterator[tuple[AnyTransport, Inbox]]:
    """A client that has been let in, and works on `loop` if there is one."""
    transport, inbox = kind(broker.endpoint, client="test"), Inbox()
    starter = threading.Thread(target=transport.start, args=(inbox,))
    starter.start()
    try:
        broker.welcome()
        starter.join(LIMIT_S)
        if isinstance(transport, UnixTransport):
            wait_until(lambda: transport._session.open, "it is welcomed")
        elif loop is not None:
            on(loop, transport.move_to, loop)
            wait_until(lambda: transport._delegated, "the loop works")
        yield transport, inbox
    finally:
        starter.join(LIMIT_S)
        if isinstance(transport, PoolTransport) and loop is not None and not loop.is_closed():
            on(loop, transport.move_to, None)
        transport.close()
        assert inbox.closed.qsize() == 1


@pytest.fixture(params=["on its thread", "on a loop", "without libzmq"])
def session_at(request: pytest.FixtureRequest) -> Iterator[SessionAt]:
    if request.param == "on its thread":
        yield lambda broker: started(broker, None)
    elif request.param == "without libzmq":
        yield lambda broker: started(broker, None, UnixTransport)
    else:
        with running_loop() as loop:
            yield lambda broker: started(broker, loop)


def cut(path: Path) -> None:
    """Break this process's connections to the socket file, as a network would."""
    done = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            duplicate = os.dup(int(name))
        except OSError:
            continue
        with socket.socket(fileno=duplicate) as end:
            try:
                if end.family == socket.AF_UNIX and end.getpeername() == str(path):
                    end.shutdown(socket.SHUT_RDWR)
                    done += 1
            except OSError:
                continue
    assert done, "there was no connection to cut"


def events(turn: str, after: int, *texts: str, ended: bool = False) -> tuple[wire.Events, bytes]:
    run = wire.Run(len(texts), "kept")
    body = b"\n".join(text.encode() for text in texts)
    return wire.Events("th", turn, after, after + len(texts), [run], ended, "w1"), body


# The beginning.


@pytest.mark.parametrize("kind", [PoolTransport, UnixTransport])
def test_a_stale_socket_file_costs_nothing(path: Path, kind: type[AnyTransport]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    began = time.monotonic()
    transport = kind(f"ipc://{path}", client="test")
    with pytest.raises(TransportClosedError, match="nothing listens there; start one with: codex-pool serve"):
        transport.start(Inbox())
    path.unlink()
    with pytest.raises(TransportClosedError, match="nothing listens there"):
        transport.start(Inbox())
    assert time.monotonic() - began < 1.0
    transport.close()


def test_a_listener_that_takes_nobody_in_is_given_up_after_the_first_limit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "FIRST_LIMIT_S", 0.5)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        began = time.monotonic()
        with pytest.raises(TransportClosedError, match=r"no pool at ipc:///.*: no answer within 0.5 s"):
            PoolTransport(f"ipc://{path}").start(Inbox())
        assert time.monotonic() - began < 5.0
    path.unlink()


@pytest.mark.parametrize("nobody", ["nothing listens", "takes nobody in"])
def test_a_client_without_libzmq_gives_up_after_the_first_limit_as_well(
    path: Path, monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.setattr(connections, "FIRST_LIMIT_S", 0.5)
    # A supervisor that may start a broker.
    path.with_suffix(".lock").write_text(f"{os.getpid()}\n")
    with socket.socket(socket.AF_UNIX) as listener:
        if nobody == "takes nobody in":
            listener.bind(str(path))
            listener.listen(1)
        transport, inbox = UnixTransport(f"ipc://{path}", client="test"), Inbox()
        transport.start(inbox)
        error = inbox.closed.get(timeout=LIMIT_S)
        assert "no answer within 0.5 s" in str(error) and "start one with: codex-pool serve" in str(error)
        with pytest.raises(TransportClosedError, match=r"no answer within 0\.5 s"):
            transport.send(b'{"id":1,"method":"thread/list"}')
        transport.close()
    path.unlink(missing_ok=True)
    path.with_suffix(".lock").unlink()


def test_what_a_client_without_libzmq_sends_before_it_is_welcomed_goes_out_then(path: Path) -> None:
    with broker_at(path) as broker:
        transport, inbox = UnixTransport(broker.endpoint, client="test"), Inbox()
        transport.start(inbox)
        transport.send(b'{"id":1,"method":"initialize"}')
        transport.send(b'{"method":"initialized"}')
        identity, hello, _ = broker.welcome()
        assert hello.client == "test" and identity == f"{hello.session}/1".encode()
        lines = [broker.read(wire.Call)[2] for _ in range(2)]
        assert lines == [[b'{"id":1,"method":"initialize"}'], [b'{"method":"initialized"}']]
        transport.close()
        broker.read(wire.Bye)


def test_a_pool_whose_broker_is_on_its_way_is_waited_for(path: Path) -> None:
    path.with_suffix(".lock").write_text(f"{os.getpid()}\n")
    transport, inbox = PoolTransport(f"ipc://{path}"), Inbox()
    starter = threading.Thread(target=transport.start, args=(inbox,))
    starter.start()
    try:
        starter.join(0.3)
        assert starter.is_alive()
        with broker_at(path) as broker:
            broker.welcome()
            starter.join(LIMIT_S)
            transport.close()
    finally:
        starter.join(LIMIT_S)
        transport.close()


def test_the_options_of_a_session_are_said_in_its_hello(path: Path) -> None:
    with broker_at(path) as broker:
        transport, inbox = PoolTransport(broker.endpoint, client="c", priority="batch", when_gone="keep"), Inbox()
        starter = threading.Thread(target=transport.start, args=(inbox,))
        starter.start()
        identity, hello, bodies = broker.welcome()
        starter.join(LIMIT_S)
        transport.close()
        assert (hello.client, hello.priority, hello.when_gone) == ("c", "batch", "keep")
        assert identity == f"{hello.session}/1".encode() and bodies == []
        broker.read(wire.Bye)


# Coming back.


def is_cut(broker: Broker, path: Path) -> None:
    cut(path)


def is_silent(broker: Broker, path: Path) -> None:
    broker.silent = True


def is_unknown(broker: Broker, path: Path) -> None:
    broker.send(broker.identities[-1], wire.Closed("the pool does not know this session", again=True))


@pytest.mark.parametrize("lose", [is_cut, is_silent, is_unknown])
def test_a_lost_connection_is_made_anew_and_all_goes_on_where_it_was(
    path: Path, session_at: SessionAt, lose: Callable[[Broker, Path], None]
) -> None:
    with broker_at(path) as broker, session_at(broker) as (transport, inbox):
        (first,) = broker.identities
        transport.send(b'{"id":7,"method":"thread/list"}')
        broker.read(wire.Call)
        broker.send(first, *events("t", 0, "one", "two"))
        broker.read(wire.Ack)
        lose(broker, path)
        second, hello, (body,) = broker.read(wire.Hello)
        broker.silent = False
        assert second == f"{hello.session}/2".encode() != first
        assert wire.decode_positions(body) == [wire.Position("t", 2, "th")]
        broker.send(second, wire.Welcome(1, True), b"{}")
        _, call, (line,) = broker.read(wire.Call)
        assert call.again and json.loads(line)["id"] == 7
        broker.send(second, *events("t", 1, "two", "three", ended=True))
        for _ in range(2):
            broker.send(second, wire.Lines(), b'{"id":7,"result":{}}')
        broker.read(wire.Ack)
        assert [inbox.next() for _ in range(3)] == [
            TurnLines("th", "t", [b"one", b"two"], False),
            TurnLines("th", "t", [b"three"], True),
            b'{"id":7,"result":{}}',
        ]
        assert inbox.entries.empty() and inbox.closed.empty()


def test_a_broker_that_was_replaced_is_found_again(path: Path) -> None:
    with broker_at(path) as broker:
        transport, inbox = PoolTransport(broker.endpoint), Inbox()
        starter = threading.Thread(target=transport.start, args=(inbox,))
        starter.start()
        broker.welcome()
        starter.join(LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while transport._session.open:
        assert time.monotonic() < deadline, "the client has not noticed that the broker is gone"
        time.sleep(0.01)
    transport.send(b'{"id":1,"method":"thread/list"}')
    with broker_at(path) as broker:
        identity, _, bodies = broker.welcome(resumed=True)
        assert bodies == [wire.encode_positions([])]
        _, call, _ = broker.read(wire.Call)
        assert not call.again, "it was never sent before"
        broker.send(identity, wire.Lines(), b'{"id":1,"result":{}}')
        assert inbox.next() == b'{"id":1,"result":{}}'
        transport.close()
        broker.read(wire.Bye)


def test_the_last_words_of_a_pool_are_heard(path: Path, session_at: SessionAt) -> None:
    for _ in range(10):
        with broker_at(path) as broker, session_at(broker) as (transport, inbox):
            broker.send(broker.identities[-1], *events("t", 0, *map(str, range(1000))))
            broker.send(broker.identities[-1], wire.Closed("the pool was stopped"))
            broker.close()
            entry = inbox.next()
            assert isinstance(entry, TurnLines) and len(entry.lines) == 1000
            error = inbox.closed.get(timeout=LIMIT_S)
            assert str(error) == f"the pool at {broker.endpoint}: the pool was stopped"
            inbox.closed.put(error)
            with pytest.raises(TransportClosedError, match="the pool was stopped"):
                transport.send(b'{"id":1,"method":"thread/list"}')


def test_a_pool_that_does_not_come_back_is_given_up_with_the_reason(
    path: Path, session_at: SessionAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "RECONNECT_LIMIT_S", 1.0)
    with broker_at(path) as broker, session_at(broker) as (_, inbox):
        broker.close()
        path.unlink(missing_ok=True)
        error = inbox.closed.get(timeout=LIMIT_S)
        inbox.closed.put(error)
        assert "the connection was lost" in str(error) and "did not come back within 1 s" in str(error)
        assert "start one with: codex-pool serve --endpoint" in str(error)


def test_closing_does_not_wait_for_a_pool_that_is_gone(path: Path, session_at: SessionAt) -> None:
    with broker_at(path) as broker, session_at(broker) as (transport, _):
        broker.close()
        time.sleep(0.2)
        began = time.monotonic()
        transport.close()
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("works_on_loop", [False, True])
def test_what_was_sent_right_before_the_end_is_sent(path: Path, works_on_loop: bool) -> None:
    lines = [b'{"id":%d,"method":"turn/interrupt"}' % number for number in range(20)]
    with (
        running_loop() as loop,
        broker_at(path) as broker,
        started(broker, loop if works_on_loop else None) as (transport, _),
    ):

        def last_words() -> None:
            for line in lines:
                transport.send(line)
            transport.close()

        if works_on_loop:
            on(loop, last_words)
        else:
            last_words()
        assert [broker.read(wire.Call)[2] for _ in lines] == [[line] for line in lines]
        broker.read(wire.Bye)


def test_a_cancel_follows_its_call(path: Path, session_at: SessionAt) -> None:
    with broker_at(path) as broker, session_at(broker) as (transport, _):
        transport.send(b'{"id":"x","method":"turn/start"}')
        transport.cancel("x")
        broker.read(wire.Call)
        _, _, (line,) = broker.read(wire.Call)
        assert json.loads(line) == {"method": "pool/cancel", "params": {"requestId": "x"}}


def test_a_thousand_messages_have_few_acks(path: Path, session_at: SessionAt) -> None:
    with broker_at(path) as broker, session_at(broker) as (_, inbox):
        for number in range(1000):
            broker.send(broker.identities[-1], *events("t", number, str(number)))
        acks, last = 0, 0
        while last < 1000:
            _, ack, _ = broker.read(wire.Ack)
            acks += 1
            (position,) = ack.positions
            assert ack.worker == "w1" and position.turn_id == "t" and position.last > last
            last = position.last
        lines: list[bytes] = []
        while len(lines) < 1000:
            entry = inbox.next()
            assert isinstance(entry, TurnLines)
            lines += entry.lines
        assert lines == [str(number).encode() for number in range(1000)]
        assert acks < 500
        assert session_io.MESSAGES_PER_BATCH == 500


# On an event loop.


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with running_loop() as loop:
        yield loop


def test_what_comes_is_given_on_the_loop_and_what_goes_leaves_from_any_thread(
    path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    with broker_at(path) as broker, started(broker, loop) as (transport, inbox):
        (identity,) = broker.identities
        for number, send in enumerate([transport.send, lambda line: on(loop, transport.send, line)]):
            send(b'{"id":%d,"method":"thread/list"}' % number)
            _, _, (line,) = broker.read(wire.Call)
            assert json.loads(line)["id"] == number
            broker.send(identity, wire.Lines(), b'{"id":%d,"result":{}}' % number)
            assert json.loads(inbox.next())["id"] == number  # type: ignore[arg-type]
        assert set(inbox.threads) == {on(loop, threading.get_ident)}
        on(loop, transport.move_to, None)
        broker.send(identity, wire.Lines(), b'{"method":"x"}')
        inbox.next()
        assert transport._thread is not None and inbox.threads[-1] == transport._thread.ident


def test_many_messages_at_once_do_not_keep_the_loop_from_others(path: Path, loop: asyncio.AbstractEventLoop) -> None:
    with broker_at(path) as broker, started(broker, loop) as (_, inbox):
        busy, go_on = threading.Event(), threading.Event()
        done = threading.Event()
        # How many batches others have seen come.
        between: list[int] = []
        loop.call_soon_threadsafe(lambda: (busy.set(), go_on.wait(LIMIT_S)))
        assert busy.wait(LIMIT_S)
        for number in range(1200):
            broker.send(broker.identities[-1], *events("t", number, str(number)))

        def look() -> None:
            between.append(len(inbox.threads))
            if not done.is_set():
                loop.call_soon(look)

        loop.call_soon_threadsafe(look)
        go_on.set()
        lines: list[bytes] = []
        while len(lines) < 1200:
            entry = inbox.next()
            assert isinstance(entry, TurnLines)
            lines += entry.lines
        assert lines == [str(number).encode() for number in range(1200)]
        done.set()
        assert any(0 < batches < len(inbox.threads) for batches in between)


def test_a_loop_that_is_blocked_costs_no_beat_and_nothing_that_comes(
    path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    with broker_at(path) as broker, started(broker, loop) as (transport, inbox):
        blocked, go_on = threading.Event(), threading.Event()
        loop.call_soon_threadsafe(lambda: (blocked.set(), go_on.wait(LIMIT_S)))
        assert blocked.wait(LIMIT_S)
        try:
            broker.send(broker.identities[-1], *events("t", 0, "one"))
            transport.send(b'{"id":1,"method":"thread/list"}')
            # Longer than the client would be patient with a broker that it does not hear.
            for _ in range(4):
                broker.read(wire.Beat)
            assert inbox.next() == TurnLines("th", "t", [b"one"], False)
            broker.send(broker.identities[-1], *events("t", 1, "two"))
        finally:
            go_on.set()
        assert inbox.next() == TurnLines("th", "t", [b"two"], False)
        wait_until(lambda: transport._delegated, "the loop works again")
        broker.send(broker.identities[-1], wire.Lines(), b'{"method":"x"}')
        assert inbox.next() == b'{"method":"x"}'
        assert len(broker.identities) == 1


def test_a_loop_that_was_closed_without_a_word_leaves_the_work_to_the_thread(path: Path) -> None:
    with broker_at(path) as broker:
        with running_loop() as loop:
            client = started(broker, loop)
            transport, inbox = client.__enter__()
        try:
            transport.send(b'{"id":1,"method":"thread/list"}')
            broker.read(wire.Call)
            broker.send(broker.identities[-1], wire.Lines(), b'{"id":1,"result":{}}')
            assert inbox.next() == b'{"id":1,"result":{}}'
        finally:
            client.__exit__(None, None, None)
        broker.read(wire.Bye)


def test_a_client_of_asyncio_is_closed_whatever_its_loop_did(path: Path) -> None:
    """Closed by hand on the loop's own thread, without being moved away from it first."""
    with broker_at(path) as broker, running_loop() as loop:
        with started(broker, loop) as (transport, _):
            on(loop, transport.close)
        broker.read(wire.Bye)
