"""An async client belongs to one event loop: from another one, or from none, all it does is say so, at once."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import (
    AppServerError,
    AsyncAppServerClient,
    AsyncCodex,
    AsyncThread,
    AsyncTurnHandle,
    Codex,
    StartError,
    TransportClosedError,
    WrongEventLoopError,
    astream_text,
)
from codex_app_server._runtime import threads
from codex_app_server.login import AsyncChatgptLoginHandle, AsyncDeviceCodeLoginHandle
from codex_app_server.testing import LoopbackModel, null_app_server
from codex_pool.client.transport import PoolTransport
from codex_pool.pool import Pool

LIMIT_S = 5.0

# What each public method is called with.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "thread_resume": ("t",),
    "thread_fork": ("t",),
    "thread_archive": ("t",),
    "thread_unarchive": ("t",),
    "thread_delete": ("t",),
    "login_api_key": ("k",),
    "run": ("x",),
    "turn": ("x",),
    "set_name": ("n",),
    "set_goal": ("g",),
    "follow": ("u",),
    "steer": ("x",),
    "request": ("thread/list",),
    "notify": ("x",),
    "turn_notifications": ("u",),
    "follow_turn": ("u",),
    "wait_for_turn_completed": ("u",),
    "wait_for_login_completed": ("l",),
    "stream_text": ("t", "x"),
    "interrupt_turn": ("t", "u", lambda: True),
}
# Operations are made by the SDK; `abandon` waits for nothing and raises nothing; `close` has tests of its own.
NOT_BY_USERS = {"perform", "start_turn", "spawn", "running_turn", "_interrupt_soon", "abandon", "close"}


def uses(codex: AsyncCodex, thread: AsyncThread, turn: AsyncTurnHandle) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every public method of every async object."""
    logins = [AsyncChatgptLoginHandle(codex.client, "l", "u"), AsyncDeviceCodeLoginHandle(codex.client, "l", "u", "c")]
    for thing in (codex, codex.client, thread, turn, *logins):
        for name, _ in inspect.getmembers(type(thing), inspect.isfunction):
            if name.startswith("_") or name in NOT_BY_USERS:
                continue
            arguments = () if isinstance(thing, AsyncTurnHandle) and name == "run" else ARGUMENTS.get(name, ())
            yield (
                f"{type(thing).__name__}.{name}",
                lambda thing=thing, name=name, args=arguments: getattr(thing, name)(*args),
            )
    yield "astream_text", lambda: astream_text(thread, "x")


async def first_of(result: Any) -> Any:
    """Await what a method gave; of an iterator the first."""
    if hasattr(result, "__anext__"):
        return await result.__anext__()
    return await result if inspect.isawaitable(result) else result


async def refuse_all(codex: AsyncCodex, thread: AsyncThread, turn: AsyncTurnHandle) -> list[str]:
    """Names of the uses that are not refused at once with what to do."""
    wrong = []
    for name, use in uses(codex, thread, turn):
        began_at = time.monotonic()
        try:
            result = use()
            # To make a stream does nothing yet.
            await asyncio.wait_for(first_of(result), LIMIT_S)
            wrong.append(f"{name}: not refused")
        except WrongEventLoopError as error:
            if not isinstance(error, RuntimeError) or "asyncio.run" not in str(error):
                wrong.append(f"{name}: {error}")
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
        if time.monotonic() - began_at > LIMIT_S / 2:
            wrong.append(f"{name}: late")
    return wrong


@contextlib.contextmanager
def made_elsewhere(codex: AsyncCodex) -> Iterator[tuple[AsyncThread, AsyncTurnHandle, asyncio.AbstractEventLoop]]:
    """A client that is used in an event loop which runs in another thread."""
    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever)
    runner.start()

    async def make() -> tuple[AsyncThread, AsyncTurnHandle]:
        thread = await codex.thread_start()
        return thread, await thread.turn("x")

    try:
        thread, turn = asyncio.run_coroutine_threadsafe(make(), loop).result(LIMIT_S * 4)
        yield thread, turn, loop
    finally:
        asyncio.run_coroutine_threadsafe(codex.close(), loop).result(LIMIT_S * 4)
        loop.call_soon_threadsafe(loop.stop)
        runner.join()
        loop.close()


def test_from_a_loop_beside_a_running_one_everything_is_refused_at_once() -> None:
    codex = AsyncCodex(null_app_server(hold="/nowhere"))
    with made_elsewhere(codex) as (thread, turn, loop):
        assert asyncio.run(refuse_all(codex, thread, turn)) == []

        async def close() -> None:
            for closing in (codex, codex.client):
                with pytest.raises(WrongEventLoopError, match="run_coroutine_threadsafe"):
                    await closing.close()

        asyncio.run(close())
        # In its own loop it goes on; what gives up may be said from anywhere.
        turn.abandon()
        result = asyncio.run_coroutine_threadsafe(turn.run(timeout=10), loop).result(15)
        assert result.status.value == "interrupted"


def test_after_the_end_of_its_loop_everything_is_refused_at_once_and_close_ends_the_process() -> None:
    kept: list[Any] = []

    async def first() -> None:
        codex = AsyncCodex(null_app_server(hold="/nowhere"))
        thread = await codex.thread_start()
        kept.extend((codex, thread, await thread.turn("x")))

    async def second() -> None:
        assert await refuse_all(*kept) == []
        began_at = time.monotonic()
        await kept[0].close()
        await kept[0].close()
        assert time.monotonic() - began_at < LIMIT_S
        # Closed and of another loop: either may be said.
        with pytest.raises((WrongEventLoopError, TransportClosedError)):
            await kept[0].models()

    asyncio.run(first())
    asyncio.run(second())
    # The check of what is left after each test sees that the process is gone.


def test_a_stream_and_its_rest_are_of_the_loop_that_began_it() -> None:
    async def begin() -> Any:
        codex = AsyncCodex(null_app_server(deltas=20))
        turn = await (await codex.thread_start()).turn("x")
        stream, text = turn.stream(), turn.text()
        await stream.__anext__()
        # Much is there already.
        await asyncio.sleep(0.3)
        return codex, stream, text

    async def go_on(codex: AsyncCodex, stream: Any, text: Any) -> None:
        for reader in (stream, text):
            with pytest.raises(WrongEventLoopError, match="is closed"):
                await reader.__anext__()
        # To give up raises nothing.
        await stream.aclose()
        async with text:
            pass
        await codex.close()

    asyncio.run(go_on(*asyncio.run(begin())))


@pytest.mark.real
def test_over_a_pool_it_is_the_same(config: Any, tmp_path: Path) -> None:
    with Pool(1, config, log_file=tmp_path / "log") as pool:
        codex = AsyncCodex(transport=PoolTransport(pool.endpoint))
        with made_elsewhere(codex) as (thread, turn, _):
            assert asyncio.run(refuse_all(codex, thread, turn)) == []
        kept: list[Any] = []

        async def first() -> None:
            codex = AsyncCodex(transport=PoolTransport(pool.endpoint))
            thread = await codex.thread_start()
            kept.extend((codex, thread, await thread.turn("[[hang]]")))

        async def second() -> None:
            assert await refuse_all(*kept) == []
            await asyncio.wait_for(kept[0].close(), LIMIT_S)

        asyncio.run(first())
        asyncio.run(second())


def test_without_a_loop_of_asyncio_it_is_said_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(awaitable: Any) -> None:
        """Await as another library's scheduler does: no loop of asyncio runs."""
        awaitable.__await__().send(None)

    def each() -> Iterator[Callable[[], Any]]:
        for name in ("start", "thread_start", "models", "close"):
            yield lambda name=name: getattr(AsyncCodex(null_app_server()), name)()
        yield lambda: AsyncCodex(null_app_server()).__aenter__()
        yield lambda: AsyncCodex(null_app_server()).notifications().__anext__()
        yield lambda: AsyncAppServerClient(null_app_server()).start()
        yield lambda: AsyncAppServerClient(null_app_server()).request("thread/list")

    for use in each():
        with pytest.raises(WrongEventLoopError, match=r"needs asyncio.*asyncio\.run"):
            step(use())
    monkeypatch.setitem(sys.modules, "trio", types.ModuleType("trio"))
    with pytest.raises(WrongEventLoopError, match=r"under trio use Codex in a thread \(trio\.to_thread\.run_sync\)"):
        step(AsyncCodex(null_app_server()).start())


def patched(*names: str) -> types.ModuleType:
    """A stand-in for gevent.monkey, or for eventlet.patcher, that has patched these modules."""
    module = types.ModuleType("patching")
    module.is_module_patched = module.is_monkey_patched = lambda name: name in names  # type: ignore[attr-defined]
    return module


def test_where_gevent_has_patched_a_part_it_is_said_what_does_not_work(
    monkeypatch: pytest.MonkeyPatch, runtime_directory: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched("subprocess"))
    with pytest.raises(StartError, match="patched subprocesses but not threads"):
        Codex(null_app_server())
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched("threading", "subprocess"))
    # All of it, or nothing: an app-server of its own works.
    threads.check_patches(blocks=False)
    with pytest.raises(StartError, match="a client of a pool waits in ZeroMQ, which would stop all greenlets"):
        Codex(transport=PoolTransport(f"ipc://{runtime_directory}/s.sock"))
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched())
    threads.check_patches(blocks=True)
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patched("thread"))
    with pytest.raises(StartError, match="eventlet has patched"):
        Codex(null_app_server())


def test_one_client_for_each_loop_works(model: LoopbackModel) -> None:
    async def once() -> None:
        async with AsyncCodex(null_app_server()) as codex:
            assert (await (await codex.thread_start()).run("x")).status.value == "completed"

    for _ in range(3):
        asyncio.run(once())


def test_closing_does_not_need_a_thread_of_the_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads of the loop's executor may be taken, and wait for what ends with the client."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        waiting = [loop.run_in_executor(None, release.wait) for _ in range(64)]
        try:
            async with AsyncCodex(null_app_server()) as codex:
                await asyncio.wait_for(codex.thread_start(), LIMIT_S)
        finally:
            release.set()
            await asyncio.gather(*waiting)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_the_errors_are_of_the_sdk() -> None:
    assert issubclass(WrongEventLoopError, AppServerError) and issubclass(WrongEventLoopError, RuntimeError)
