"""Outcome of a caller's mistake: it works, or there is an error that says what to do."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import pydoc
import re
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import codex_pool
from codex_app_server import (
    AppServerConfig,
    AsyncCodex,
    AsyncThread,
    Codex,
    InvalidInputError,
    InvalidRequestError,
    LocalImageInput,
    Thread,
    TransportClosedError,
    astream_text,
    stream_text,
)
from codex_app_server._core.option_help import LINES, LINES_OF_CALL, line_of
from codex_app_server.generated.options import OPTION_NAMES
from codex_app_server.presets import PRESETS
from codex_app_server.testing import null_app_server
from codex_app_server.testing.loopback import LoopbackModel
from codex_pool import Pool

NULL = null_app_server()


@pytest.fixture(scope="module")
def codex() -> Iterator[Codex]:
    with Codex(NULL) as codex:
        yield codex


# Options.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout_s": 5}, "did you mean 'timeout'?"),
        ({"timout": 5}, "did you mean 'timeout'?"),
        ({"turn_service_tier": "x"}, "did you mean 'service_tier'?"),
        ({"reasoning_effort": "low"}, "did you mean 'effort'?"),
        ({"working_directory": "/"}, "did you mean 'cwd'?"),
        ({"zzz": 1}, "it takes additional_context, approval_mode, .* timeout"),
    ],
)
def test_an_option_that_is_not_known(codex: Codex, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=f"unknown option .*{words}"):
        codex.thread_start().run("hello", **options)


def test_an_option_of_run_is_none_of_turn(codex: Codex) -> None:
    with pytest.raises(TypeError, match="unknown option 'timeout'; it is an option of run alone"):
        codex.thread_start().turn("hello", timeout=5)  # type: ignore[call-arg]


@pytest.mark.parametrize("timeout", ["5", -1, float("nan"), True, [1]])
def test_a_timeout_that_is_none(codex: Codex, timeout: Any) -> None:
    thread = codex.thread_start()
    for call in (lambda: thread.run("hello", timeout=timeout), lambda: thread.turn("hello").run(timeout=timeout)):
        with pytest.raises(InvalidInputError, match=r"timeout is .*; expected a number of seconds from 0 on, or None"):
            call()

    async def run() -> None:
        async with AsyncCodex(NULL) as acodex:
            athread = await acodex.thread_start()
            with pytest.raises(InvalidInputError, match="timeout is "):
                await athread.run("hello", timeout=timeout)
            with pytest.raises(InvalidInputError, match="timeout is "):
                await (await athread.turn("hello")).run(timeout=timeout)

    asyncio.run(run())


SHOWN: list[tuple[Any, str]] = [
    *((getattr(cls, f"thread_{name}"), f"Thread{name.title()}Options") for cls in (Codex, AsyncCodex)
      for name in ("start", "resume", "fork", "list")),
    *((getattr(cls, name), "TurnStartOptions") for cls in (Thread, AsyncThread) for name in ("run", "turn")),
    (stream_text, "TurnStartOptions"),
    (astream_text, "TurnStartOptions"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "call"), SHOWN, ids=lambda value: getattr(value, "__qualname__", ""))
def test_signature_and_help_show_every_option(function: Any, call: str) -> None:
    options = OPTION_NAMES[call] | PRESETS.get(call, frozenset())
    parameters = inspect.signature(function).parameters
    assert options <= parameters.keys() and not any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in options)
    text = pydoc.plain(pydoc.render_doc(function))
    for name in options:
        assert re.search(rf"^\s+{name}: \w.+$", text, re.MULTILINE), name
    assert "**options" not in text


@pytest.mark.parametrize("function", [Codex.threads, AsyncCodex.threads])
def test_the_options_of_an_iterator_are_without_a_cursor(function: Any) -> None:
    shown = inspect.signature(function).parameters.keys() - {"self"}
    assert shown == OPTION_NAMES["ThreadListOptions"] - {"cursor"} and "cursor:" not in function.__doc__


def test_every_option_has_its_line_and_no_other_has() -> None:
    known = {(call, name) for call, names in OPTION_NAMES.items() for name in names | PRESETS.get(call, frozenset())}
    assert not [each for each in known if not line_of(*each)]
    assert not LINES.keys() - {name for _, name in known}
    assert not {(call, name) for call, names in LINES_OF_CALL.items() for name in names} - known


# Paths, configurations, handlers.


@pytest.mark.real
def test_paths_are_taken_as_such(tmp_path: Path, model: LoopbackModel, home: Path) -> None:
    config = AppServerConfig(env={"CODEX_HOME": home}, cwd=tmp_path)  # type: ignore[dict-item]
    work = tmp_path / "work"
    work.mkdir()
    (work / "dot.png").write_bytes(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000002000001"
            "e221bc330000000049454e44ae426082"
        )
    )
    with Codex(config) as codex:
        thread = codex.thread_start(cwd=work, runtime_workspace_roots=[work])
        assert thread.run("hello", cwd=work).status == "completed"
        assert thread.run(["look", LocalImageInput(work / "dot.png")]).status == "completed"
        assert [each.id for each in codex.thread_list(cwd=work).data] == [thread.id]


def test_a_home_that_is_missing_is_made(tmp_path: Path, model: LoopbackModel) -> None:
    home = tmp_path / "not" / "there"
    with Codex(AppServerConfig(env={"CODEX_HOME": str(home)})):
        assert home.is_dir() and home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("given", [{"cwd": "/"}, "codex", 5])
def test_a_configuration_that_is_none(given: Any) -> None:
    remedy = r"AppServerConfig\(\*\*config\)" if isinstance(given, dict) else r"AppServerConfig\(codex_bin=\.\.\."
    for make in (Codex, AsyncCodex, lambda config: Pool(1, config)):
        with pytest.raises(InvalidInputError, match=f"config is a .*; expected an AppServerConfig: write {remedy}"):
            make(given)


def test_fields_of_a_configuration() -> None:
    with pytest.raises(InvalidInputError, match="env: DEPTH is 5; expected a string, such as '5'"):
        AppServerConfig(env={"DEPTH": 5})  # type: ignore[dict-item]
    for given in ("model=x", {"model": "x"}):
        with pytest.raises(InvalidInputError, match=r"config_overrides is .*; give a tuple of strings 'key=value'"):
            AppServerConfig(config_overrides=given)  # type: ignore[arg-type]
    for workers in ("2", 1.5, None):
        with pytest.raises(InvalidInputError, match=r"workers is .*; expected a whole number"):
            Pool(workers)  # type: ignore[arg-type]


async def coroutine(method: str, params: Any) -> None:
    pass


def test_an_approval_handler_that_cannot_be_one() -> None:
    for make in (Codex, AsyncCodex):
        with pytest.raises(InvalidInputError, match="approval_handler is 'yes'; expected a function"):
            make(NULL, approval_handler="yes")  # type: ignore[operator]
    with pytest.raises(InvalidInputError, match="a coroutine function, which a synchronous client cannot await"):
        Codex(NULL, approval_handler=coroutine)
    AsyncCodex(NULL, approval_handler=coroutine)


@pytest.mark.parametrize("given", [None, 5, b"x", Path("/tmp/x"), {"type": "text"}])
def test_an_input_that_is_none(codex: Codex, given: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected text, an input item such as TextInput or LocalImageInput"):
        codex.thread_start().run(given)


# Threads.


@pytest.mark.real
@pytest.mark.parametrize("over", ["app-server", "pool"])
def test_the_id_of_a_thread_that_is_not_there(config: AppServerConfig, over: str) -> None:
    with contextlib.ExitStack() as stack:
        if over == "pool":
            codex = stack.enter_context(stack.enter_context(Pool(1, config)).connect())
        else:
            codex = stack.enter_context(Codex(config))
        for thread_id in ("abc", "", "01a22739-b4a6-7160-b54e-2c78be5e6574"):
            calls: list[Callable[[], Any]] = [
                lambda: codex.thread_resume(thread_id),  # noqa: B023
                lambda: codex.thread_fork(thread_id),  # noqa: B023
                lambda: Thread(codex.client, thread_id).run("hello"),  # noqa: B023
                lambda: Thread(codex.client, thread_id).read(),  # noqa: B023
            ]
            for call in calls:
                with pytest.raises(InvalidRequestError, match=r"check the id: thread_list\(\) has those"):
                    call()
        thread = codex.thread_start()
        with pytest.raises(InvalidInputError, match=r"thread_id is a Thread; expected its id: give its \.id"):
            codex.thread_resume(thread)  # type: ignore[arg-type]


# Clients that are closed, and those of the other kind.


def test_a_client_that_is_closed() -> None:
    with Codex(NULL) as codex:
        thread = codex.thread_start()
    for call in (codex.thread_start, lambda: thread.run("hello"), thread.read, codex.models):
        with pytest.raises(TransportClosedError, match="the client was closed; make a new one"):
            call()

    async def run() -> None:
        async with AsyncCodex(NULL) as acodex:
            athread = await acodex.thread_start()
        acalls: tuple[Callable[[], Awaitable[Any]], ...] = (acodex.thread_start, lambda: athread.run("hello"))
        for acall in acalls:
            with pytest.raises(TransportClosedError, match="the client was closed; make a new one"):
                await acall()

    asyncio.run(run())


def test_a_pool_that_does_not_run() -> None:
    pool = Pool(1, NULL)
    with pytest.raises(TransportClosedError, match=r"the pool does not run: .* or start\(\) it"):
        pool.connect()
    with pool, pool.connect() as codex:
        codex.thread_start()
    with pytest.raises(TransportClosedError, match=r"the pool does not run: .* is closed"):
        pool.connect()
    with pytest.raises(TransportClosedError, match="the client was closed; make a new one"):
        codex.thread_start()


def test_a_client_for_threads_works_in_a_running_loop() -> None:
    async def run() -> str:
        with Codex(NULL) as codex:
            return str(codex.thread_start().run("hello").status)

    assert asyncio.run(run()) == "completed"


def test_with_is_not_async_with() -> None:
    remedy = "an AsyncCodex is for asyncio: write `async with`, or use Codex"
    with pytest.raises(TypeError, match=remedy), AsyncCodex(NULL):
        pass

    async def run() -> None:
        async with Codex(NULL):
            pass

    with pytest.raises(TypeError, match="a Codex is not for asyncio: write `with`, or use AsyncCodex"):
        asyncio.run(run())


# Forgotten awaits.


def forgotten(use: Callable[[AsyncCodex, AsyncThread], Any]) -> str:
    """The error of a function that forgets to await."""

    async def run() -> str:
        async with AsyncCodex(NULL) as codex:
            thread = await codex.thread_start()
            with warnings.catch_warnings():
                # As without this: the coroutine was never awaited.
                warnings.simplefilter("ignore", RuntimeWarning)
                try:
                    result = use(codex, thread)
                    if inspect.isawaitable(result):
                        await result
                except (AttributeError, TypeError) as error:
                    return str(error)
        raise AssertionError("it raised nothing")

    return asyncio.run(run())


async def over_run(codex: AsyncCodex, thread: AsyncThread) -> None:
    async for _ in thread.run("hello"):  # type: ignore[attr-defined]
        pass


USES: dict[str, Callable[[AsyncCodex, AsyncThread], Any]] = {
    "AsyncCodex.thread_start": lambda codex, thread: codex.thread_start().run("hello"),  # type: ignore[attr-defined]
    "AsyncCodex.thread_resume": lambda codex, thread: codex.thread_resume("x").id,  # type: ignore[attr-defined]
    "AsyncCodex.models": lambda codex, thread: codex.models().data,  # type: ignore[attr-defined]
    "AsyncThread.run": lambda codex, thread: thread.run("hello").final_response,  # type: ignore[attr-defined]
    "AsyncThread.turn": lambda codex, thread: thread.turn("hello").stream(),  # type: ignore[attr-defined]
    "AsyncThread.read": lambda codex, thread: thread.read().thread,  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("called", USES)
def test_a_forgotten_await_is_named(called: str) -> None:
    assert forgotten(USES[called]).startswith(f"{called}(...) was not awaited, so that it has no ")
    assert forgotten(USES[called]).endswith(": write `await` before the call")


def test_a_coroutine_is_not_iterated_over() -> None:
    assert forgotten(over_run).startswith("AsyncThread.run(...) was not awaited, and cannot be iterated over")


def test_what_is_awaited_is_a_coroutine_to_asyncio() -> None:
    async def run() -> None:
        async with AsyncCodex(NULL) as codex:
            thread = await asyncio.create_task(codex.thread_start())
            one, two = await asyncio.gather(thread.run("one"), codex.thread_start())
            assert one.status == "completed" and (await asyncio.wait_for(two.run("two"), 20)).status == "completed"
            started = codex.thread_start()
            assert asyncio.iscoroutine(started) and "not awaited" in repr(started)
            started.close()  # type: ignore[attr-defined]
            task = asyncio.ensure_future(thread.run("three"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


# Connecting.


def test_aconnect_is_awaited_or_entered() -> None:
    async def run() -> None:
        async with Pool(1, NULL) as pool:
            async with pool.aconnect() as codex:
                assert (await (await codex.thread_start()).run("hello")).status == "completed"
            with pytest.raises(TransportClosedError, match="the client was closed"):
                await codex.thread_start()
            async with codex_pool.aconnect(pool.endpoint, name="me") as codex:
                await codex.thread_start()
            async with await codex_pool.aconnect(Path(pool.endpoint.removeprefix("ipc://"))) as codex:
                await codex.thread_start()
            codex = await asyncio.create_task(pool.aconnect())
            await codex.close()
            waiting = pool.aconnect()
            with pytest.raises(
                AttributeError, match=r"Pool.aconnect\(...\) was not awaited, so that it has no 'thread_"
            ):
                waiting.thread_start()
            waiting.close()

    asyncio.run(run())


def test_an_endpoint_may_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(TransportClosedError, match=f"no pool at ipc://{tmp_path}/p.sock"):
        codex_pool.connect(tmp_path / "p.sock")
    with pytest.raises(InvalidInputError, match="endpoint is 5; expected an address such as ipc:///"):
        codex_pool.connect(5)  # type: ignore[arg-type]

    async def run() -> None:
        with pytest.raises(TransportClosedError, match="no pool at"):
            async with codex_pool.aconnect(tmp_path / "p.sock"):
                pass

    asyncio.run(run())
