"""The event loop of the gateway: the reader that it calls directly, beside all that it does as any loop."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from codex_pool.gateway import direct_loop
from codex_pool.gateway.direct_loop import DirectLoop
from codex_pool.protocol import ingress_frames

LIMIT_S = 10.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_what_a_reader_schedules_runs_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    got: list[bytes] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, DirectLoop)
        over = loop.create_future()

        def read() -> None:
            got.append(ours.recv(1))
            if got[-1] == b"a":
                loop.call_soon(theirs.send, b"b")
            elif got[-1] == b"b":
                loop.call_later(0.01, theirs.send, b"c")
            else:
                over.set_result(None)

        loop.add_reader(ours, read)
        loop.read_directly(ours.fileno(), read)
        theirs.send(b"a")
        began = time.monotonic()
        await asyncio.wait_for(over, LIMIT_S)
        assert time.monotonic() - began < LIMIT_S / 2
        loop.remove_reader(ours)
        loop.read_no_more()

    direct_loop.run(main())
    assert got == [b"a", b"b", b"c"]


def test_timers_and_other_descriptors_are_not_held_up(pair: tuple[socket.socket, socket.socket]) -> None:
    """The direct reader always has something to read."""
    ours, theirs = pair
    other, its_writer = os.pipe()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, DirectLoop)
        spoke, came = loop.create_future(), loop.create_future()

        def read() -> None:
            ours.recv(1)
            theirs.send(b"x")

        loop.add_reader(ours, read)
        loop.read_directly(ours.fileno(), read)
        loop.add_reader(other, lambda: spoke.done() or spoke.set_result(os.read(other, 1)))
        theirs.send(b"x")
        await asyncio.wait_for(asyncio.sleep(0.02), LIMIT_S)
        os.write(its_writer, b"y")
        assert await asyncio.wait_for(spoke, LIMIT_S) == b"y"
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(came.set_result, 1))
        thread.start()
        assert await asyncio.wait_for(came, LIMIT_S) == 1
        thread.join()
        loop.remove_reader(other)

    try:
        direct_loop.run(main())
    finally:
        os.close(other)
        os.close(its_writer)


def test_an_error_of_the_reader_is_reported_and_ends_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    reported: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, DirectLoop)
        over = loop.create_future()

        def report(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
            reported.append(str(context["exception"]))

        def read() -> None:
            if ours.recv(1) == b"a":
                theirs.send(b"b")
                raise ValueError("the first one")
            over.set_result(None)

        loop.set_exception_handler(report)
        loop.add_reader(ours, read)
        loop.read_directly(ours.fileno(), read)
        theirs.send(b"a")
        await asyncio.wait_for(over, LIMIT_S)

    direct_loop.run(main())
    assert reported == ["the first one"]


def test_tasks_that_are_left_are_cancelled() -> None:
    ended: list[str] = []

    async def left() -> None:
        try:
            await asyncio.sleep(LIMIT_S)
        finally:
            ended.append("left")

    async def main() -> None:
        tasks.append(asyncio.get_running_loop().create_task(left()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    direct_loop.run(main())
    assert ended == ["left"]


def test_a_frame_alone_is_decoded_without_the_buffer() -> None:
    send = ingress_frames.Send(7, [b"head", b"body"])
    whole = ingress_frames.encode(send)
    decoder = ingress_frames.Decoder(ingress_frames.FromBroker)
    assert decoder.only(whole) == send
    # What is none, or more than one, stays for `feed`.
    for data in (b"", whole[:2], whole[:-1], whole + whole[:1]):
        assert decoder.only(data) is None
    decoder.feed(whole[:5])
    assert decoder.only(whole) is None
    decoder.feed(whole[5:])
    assert decoder.next() == send and decoder.only(whole) == send
    with pytest.raises(ingress_frames.FrameError, match="does not fit"):
        decoder.only(b"\0\0\0\1\x00")
