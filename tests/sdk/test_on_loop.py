"""OnLoop: what the loop has found to do before it is closed or let go of is not done after."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from codex_pool.client.on_loop import OnLoop


@pytest.mark.parametrize("end", [OnLoop.close, OnLoop.let_go])
def test_a_reader_found_readable_is_not_called_after_the_end(
    end: Callable[[OnLoop], None],
) -> None:
    called: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        on_loop = OnLoop(loop, lambda: called.append("work"))
        left, right = socket.socketpair()
        done = asyncio.Event()

        def read() -> None:
            called.append("read")
            end(on_loop)
            done.set()

        with left, right, left.dup() as same:
            on_loop.watch(left, {left.fileno(): read, same.fileno(): read})
            on_loop.soon()
            # The loop finds all three in one turn.
            right.send(b"x")
            await done.wait()
            await asyncio.sleep(0)
        on_loop.unwatch()

    asyncio.run(main())
    assert called == ["work", "read"]
