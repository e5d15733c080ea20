"""AsyncCodex and AsyncAppServerClient: many turns on one event loop, cancellation, and the end of the process."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fake_app_server import completed, delta, message, started
from fake_app_server import config as fake

from codex_app_server import (
    AppServerConfig,
    AsyncAppServerClient,
    AsyncCodex,
    AsyncThread,
    AsyncTurnHandle,
    BinaryNotFoundError,
    InvalidInputError,
    InvalidRequestError,
    LineTooLongError,
    Notification,
    RequestTimeoutError,
    StdioTransport,
    ThreadBusyError,
    TransportClosedError,
    TurnEndedError,
    TurnFailedError,
    UnknownTurnError,
    astream_text,
    operations,
)
from codex_app_server import transport as transport_module
from codex_app_server._async.mailbox import AsyncMailbox
from codex_app_server.testing.loopback import LoopbackModel

T = TypeVar("T")
WAIT_S = 30.0
real = pytest.mark.real


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on a loop of its own, in a bounded time; what the loop complains of is an error."""

    async def bounded() -> T:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        try:
            result = await asyncio.wait_for(coroutine, WAIT_S)
        finally:
            gc.collect()
            await asyncio.sleep(0)
        assert complaints == []
        return result

    return asyncio.run(bounded())


@pytest.fixture(params=["poll", "threads"])
def pump(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "threads":
        monkeypatch.setattr(transport_module, "PollPump", transport_module.ThreadPump)
    return str(request.param)


@asynccontextmanager
async def connected(*steps: Any, handler: Any = None, **fields: Any) -> AsyncIterator[AsyncAppServerClient]:
    """A client of the scripted app-server, after the handshake."""
    async with AsyncAppServerClient(fake(*steps, **fields), approval_handler=handler) as client:
        await client.initialize()
        yield client


def pid_of(client: AsyncAppServerClient) -> int:
    assert isinstance(client._transport, StdioTransport)
    assert client._transport.pid is not None
    return client._transport.pid


def nothing_is_held(client: AsyncAppServerClient) -> bool:
    return not any(client.held.values())


async def start(client: AsyncAppServerClient, thread: str = "th") -> AsyncTurnHandle:
    response, mailbox = await client.start_turn(operations.turn_start(thread, "hi", {}, "full"))
    return AsyncTurnHandle(client, thread, response.turn.id, mailbox)


async def text_of(stream: AsyncIterator[Notification]) -> str:
    return "".join([n.payload.delta async for n in stream if n.method == "item/agentMessage/delta"])


async def next_of(client: AsyncAppServerClient, method: str) -> Notification:
    while True:
        notification = await client.next_notification()
        assert notification is not None
        if notification.method == method:
            return notification


async def streaming(turn: AsyncTurnHandle) -> AsyncIterator[Notification]:
    """The stream of a turn, read up to its first delta: then the turn is certainly under way."""
    stream = turn.stream()
    async for notification in stream:
        if notification.method == "item/agentMessage/delta":
            return stream
    raise AssertionError("the turn ended without a delta")


def scripted(name: str, pace_ms: int = 2) -> tuple[str, str]:
    """A prompt, and the text of its answer, which names it in every delta."""
    text = "".join(f"{name}.{number};" for number in range(8))
    return f'[[text "{text}" deltas=8 pace_ms={pace_ms}]]', text


# Requests.


def test_two_requests_overlap(pump: str) -> None:
    """Both are under way before either is answered, and the second is answered first."""

    async def main() -> None:
        steps = [["take", "fake/go"], ["answer", "fake/b", {"is": "b"}], ["answer", "fake/a", {"is": "a"}]]
        async with connected(*steps) as client:
            order: list[str] = []

            async def ask(name: str) -> None:
                order.append((await client.request(f"fake/{name}"))["is"])

            tasks = [asyncio.create_task(ask("a")), asyncio.create_task(ask("b"))]
            await asyncio.sleep(0)
            assert client.held["requests"] == 2
            client.notify("fake/go")
            await asyncio.gather(*tasks)
            assert order == ["b", "a"]
            assert nothing_is_held(client)

    run(main())


def test_the_loop_turns_while_a_request_waits() -> None:
    async def main() -> None:
        async with connected(["take", "fake/x"], ["take", "fake/go"], ["answer", "fake/y", {}]) as client:
            waiting = asyncio.create_task(client.request("fake/x"))
            client.notify("fake/go")
            assert await client.request("fake/y", timeout_s=None) == {}
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert nothing_is_held(client)

    run(main())


def test_a_request_has_a_deadline_and_its_late_answer_harms_nobody() -> None:
    async def main() -> None:
        steps = [["take", "fake/go"], ["answer", "fake/late", {}], ["answer", "fake/next", {"next": True}]]
        async with connected(*steps) as client:
            with pytest.raises(RequestTimeoutError, match=r"no answer to fake/late within 0\.05 s"):
                await client.request("fake/late", timeout_s=0.05)
            client.notify("fake/go")
            assert await client.request("fake/next") == {"next": True}
            assert nothing_is_held(client)

    run(main())


def test_each_of_several_requests_has_its_own_deadline() -> None:
    async def main() -> None:
        steps = [["take", "fake/go"], ["answer", "fake/long", {}], ["answer", "fake/after", {}]]
        async with connected(*steps) as client:
            began = time.monotonic()
            long = asyncio.create_task(client.request("fake/long", timeout_s=WAIT_S))
            await asyncio.sleep(0)
            ended = []

            async def short(timeout_s: float) -> None:
                with pytest.raises(RequestTimeoutError, match=f"within {timeout_s} s"):
                    await client.request("fake/never", timeout_s=timeout_s)
                assert time.monotonic() - began >= timeout_s
                ended.append(timeout_s)

            await asyncio.gather(*(short(timeout_s) for timeout_s in (0.3, 0.1, 0.2)))
            assert ended == [0.1, 0.2, 0.3] and not long.done()
            client.notify("fake/go")
            assert await long == {}
            assert await client.request("fake/after", timeout_s=None) == {}
            assert nothing_is_held(client)
            # Of calls that are over nothing is looked for.
            client._timer.stop()
            client._fail_overdue()
            assert not client._timer.is_set

    run(main())


def test_a_cancelled_start_is_interrupted_and_leaves_its_turn_to_everybody() -> None:
    async def main() -> None:
        interrupt = ["answer", "turn/interrupt", {}]
        steps = [["take", "fake/go"], delta("th", "tu", "a"), started("tu"), interrupt, completed("th", "tu")]
        async with connected(*steps) as client:
            starting = asyncio.create_task(start(client))
            await asyncio.sleep(0)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            client.notify("fake/go")
            await next_of(client, "turn/completed")
            assert nothing_is_held(client)
            with pytest.raises(TurnEndedError):
                client.turn_notifications("tu")

    run(main())


def test_time_in_a_queue_is_not_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codex_app_server._core.calls.QUEUE_POLL_S", 0.05)

    async def main() -> None:
        steps = [
            ["take", "fake/slow"],
            ["send", {"method": "pool/queued", "params": {"requestId": 2}}],
            ["take", "fake/go"],
            ["send", {"method": "pool/dequeued", "params": {"requestId": 2}}],
        ]
        async with connected(*steps) as client:
            waiting = asyncio.create_task(client.request("fake/slow", timeout_s=0.4))
            await next_of(client, "pool/queued")
            done, _ = await asyncio.wait([waiting], timeout=1.0)
            assert not done
            client.notify("fake/go")
            with pytest.raises(RequestTimeoutError):
                await waiting

    run(main())


def test_requests_that_cannot_be_sent_are_refused() -> None:
    async def main() -> None:
        async with connected(["answer", "fake/x", {"id": "$1"}]) as client:
            thread = AsyncThread(client, "th")
            for value in ("", "\ud800", [], 5):
                with pytest.raises(InvalidInputError):
                    await thread.run(value)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="did you mean 'model'"):
                await thread.run("x", modle="y")  # type: ignore[call-arg]
            with pytest.raises(InvalidInputError):
                await client.request("fake/x", {"x": "\ud800"})
            assert await client.request("fake/x") == {"id": "2"}

    run(main())


# Turns.


def test_a_turn_that_is_over_before_its_answer(pump: str) -> None:
    async def main() -> None:
        steps = [
            ["take", "fake/go"],
            ["at_once", [delta("th", "tu", "a"), delta("th", "x", "no"), completed("th", "tu"), started("tu")]],
        ]
        async with connected(*steps) as client:
            client.notify("fake/go")
            turn = await start(client)
            assert await text_of(turn.stream()) == "a"
            assert nothing_is_held(client)

    run(main())


def test_turns_started_by_plain_requests_are_read_by_their_id() -> None:
    async def main() -> None:
        steps = [started("tu"), delta("th", "tu", "a"), completed("th", "tu"), started("tv"), completed("th", "tv")]
        async with connected(*steps) as client:
            params = {"thread_id": "th", "input": [{"type": "text", "text": "x"}]}
            first = (await client.request("turn/start", params)).turn.id
            assert await text_of(client.turn_notifications(first)) == "a"
            second = (await client.request("turn/start", params)).turn.id
            assert (await client.wait_for_turn_completed(second)).turn.id == "tv"
            with pytest.raises(TurnEndedError):
                await client.wait_for_turn_completed(second)
            assert nothing_is_held(client)

    run(main())


def test_200_open_streams_need_no_threads() -> None:
    """All are open at once and read at once; two threads are the I/O thread and the one that started it."""
    count = 200

    async def main() -> None:
        before = threading.active_count()
        steps = [
            ["times", count, [started("tu$n"), delta("th$n", "tu$n", "first $n;")]],
            ["take", "fake/go"],
            ["times", count, [delta("th$n", "tu$n", "second $n"), completed("th$n", "tu$n")]],
        ]
        async with connected(*steps) as client:
            turns = [await start(client, f"th{number}") for number in range(count)]
            streams = [await streaming(turn) for turn in turns]
            reading = [asyncio.create_task(text_of(stream)) for stream in streams]
            await asyncio.sleep(0)
            assert client.held["turns"] == count
            assert threading.active_count() - before <= 2
            client.notify("fake/go")
            assert await asyncio.gather(*reading) == [f"second {number}" for number in range(count)]
            assert threading.active_count() - before <= 2
            assert nothing_is_held(client)

    run(main())


def test_the_loop_is_woken_once_per_read_not_per_line() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        wakes = 0
        original = loop.call_soon_threadsafe

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return original(*args, **kwargs)

        lines = [["times", 200, [delta("th", "tu", "x")]]]
        async with connected(started("tu"), ["at_once", [*lines, completed("th", "tu")]]) as client:
            loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
            turn = await start(client)
            assert await text_of(turn.stream()) == "x" * 200
            loop.call_soon_threadsafe = original  # type: ignore[method-assign]
            # One read for the answer and a few for 200 lines at once.
            assert wakes < 20

    run(main())


def test_dropped_handles_cost_nothing() -> None:
    async def main() -> None:
        steps = [
            ["times", 20, [started("tu$n"), delta("th", "tu$n", "x")]],
            ["take", "fake/go"],
            ["times", 20, [completed("th", "tu$n")]],
            ["answer", "fake/end", {}],
        ]
        async with connected(*steps) as client:
            mailboxes = []
            for _ in range(20):
                mailboxes.append(weakref.ref((await start(client))._mailbox))
            gc.collect()
            assert [ref() for ref in mailboxes] == [None] * 20
            client.notify("fake/go")
            await client.request("fake/end")
            assert nothing_is_held(client)

    run(main())


def test_a_cancelled_reader_loses_nothing() -> None:
    """The next reader goes on where it was."""

    async def main() -> None:
        steps = [
            started("tu"),
            ["take", "fake/go"],
            delta("th", "tu", "a"),
            delta("th", "tu", "b"),
            completed("th", "tu"),
        ]
        async with connected(*steps) as client:
            turn = await start(client)
            reading = asyncio.create_task(text_of(turn.stream()))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            client.notify("fake/go")
            assert await text_of(turn.stream()) == "ab"

    run(main())


INTERRUPTED = [["answer", "turn/interrupt", {}], completed("th", "tu", "interrupted")]


@pytest.mark.parametrize("how", ["aclose", "with", "cancelled", "unread"])
@pytest.mark.parametrize("lazy", [False, True], ids=["text", "astream_text"])
def test_text_that_is_closed_early_interrupts_its_turn(how: str, lazy: bool) -> None:
    async def main() -> None:
        async with connected(started("tu"), delta("th", "tu", "a"), *INTERRUPTED) as client:
            if lazy and how == "unread":
                await astream_text(AsyncThread(client, "th"), "hi").aclose()
                assert nothing_is_held(client)
                return
            turn = None if lazy else await AsyncThread(client, "th").turn("hi")
            text = astream_text(AsyncThread(client, "th"), "hi") if turn is None else turn.text()
            if how != "unread":
                assert await text.__anext__() == "a"
            if how == "with":
                async with text:
                    pass
            elif how == "cancelled":
                reading = asyncio.ensure_future(text.__anext__())
                await asyncio.sleep(0)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            else:
                await text.aclose()
            stream = (turn or text._turn).stream()  # type: ignore[union-attr]
            assert [n async for n in stream][-1].payload.turn.status == "interrupted"
            # The answer to the interrupt came before the end of the turn.
            await asyncio.sleep(0)
            assert nothing_is_held(client)

    run(main())


@pytest.mark.parametrize("how", ["detached", "dropped"])
def test_text_that_is_dropped_or_detached_leaves_its_turn_alone(how: str) -> None:
    async def main() -> None:
        later = [["take", "fake/go"], delta("th", "tu", "b"), completed("th", "tu")]
        async with connected(started("tu"), delta("th", "tu", "a"), *later) as client:
            turn = await AsyncThread(client, "th").turn("hi", detach=how == "detached")
            text = turn.text()
            async for piece in text:
                assert piece == "a"
                break
            if how == "detached":
                await text.aclose()
            del text
            gc.collect()
            await asyncio.sleep(0)
            assert client.held["requests"] == 0
            client.notify("fake/go")
            assert [piece async for piece in turn.text()] == ["b"]
            assert nothing_is_held(client)

    run(main())


def test_text_that_cannot_be_started_is_over() -> None:
    async def main() -> None:
        refusal = {"code": -32600, "message": "no"}
        async with connected(["error", "turn/start", refusal]) as client:
            text = astream_text(AsyncThread(client, "th"), "hi")
            with pytest.raises(InvalidRequestError):
                await text.__anext__()
            assert [piece async for piece in text] == []

    run(main())


def test_a_turn_that_nobody_knows_is_not_waited_for() -> None:
    async def main() -> None:
        steps = [delta("th", "foreign", "x"), ["take", "fake/go"], delta("th", "foreign", "y")]
        async with connected(*steps, completed("th", "foreign")) as client:
            thread = AsyncThread(client, "th")
            for ask in (client.turn_notifications, client.follow_turn, thread.follow):
                with pytest.raises(UnknownTurnError):
                    ask("nobody")
            with pytest.raises(UnknownTurnError):
                await client.wait_for_turn_completed("nobody")
            await next_of(client, "item/agentMessage/delta")
            followed = thread.follow("foreign")
            client.notify("fake/go")
            assert [piece async for piece in followed.text()] == ["y"]
            with pytest.raises(TurnEndedError):
                thread.follow("foreign")

    run(main())


@pytest.mark.parametrize("kind", ["lost", "stalled"])
def test_why_a_turn_in_a_pool_failed(kind: str) -> None:
    async def main() -> None:
        params = {"threadId": "th", "turnId": "tu", "kind": kind, "safeToRetry": True}
        ended = ["send", {"method": "pool/turn/ended", "params": params}]
        async with connected(started("tu"), ended, completed("th", "tu", "failed")) as client:
            with pytest.raises(TurnFailedError) as caught:
                await AsyncThread(client, "th").run("hi")
            assert (caught.value.kind, caught.value.safe_to_retry) == (kind, True)

    run(main())


def test_a_thread_whose_turn_is_being_started_is_busy() -> None:
    async def main() -> None:
        turns = [started("tu1"), ["answer", "turn/steer", {"turnId": "tu1"}], completed("th", "tu1")]
        async with connected(["take", "fake/go"], *turns, started("tu2"), completed("th", "tu2")) as client:
            thread = AsyncThread(client, "th")
            first = asyncio.ensure_future(thread.run("one"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(ThreadBusyError, match=r"\(being started\)"):
                await thread.run("two")
            steered = asyncio.ensure_future(thread.run("three", on_busy="steer"))
            second = asyncio.ensure_future(thread.run("two", on_busy="queue"))
            for _ in range(5):
                await asyncio.sleep(0)
            client.notify("fake/go")
            assert [(await each).id for each in (first, steered, second)] == ["tu1", "tu1", "tu2"]

    run(main())


def test_notifications_end_with_their_client() -> None:
    async def main() -> None:
        note = ["send", {"method": "warning", "params": {"message": "w"}}]
        codex = AsyncCodex(fake(note))
        notifications = codex.notifications()
        assert (await notifications.__anext__()).method == "warning"
        rest = asyncio.ensure_future(text_of(notifications))
        await asyncio.sleep(0)
        await codex.close()
        assert await rest == ""
        assert [n async for n in codex.notifications()] == []
        never = AsyncCodex(fake())
        await never.close()
        assert [n async for n in never.notifications()] == []
        async with AsyncCodex(fake(["take", "initialized"], note, ["exit", 3])) as dying:
            notifications = dying.notifications()
            assert (await notifications.__anext__()).method == "warning"
            with pytest.raises(TransportClosedError, match="3"):
                await notifications.__anext__()

    run(main())


def test_polling_a_quiet_mailbox_does_not_pile_up_waiters() -> None:
    async def main() -> None:
        mailbox = AsyncMailbox()
        for _ in range(50):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(mailbox.get(), 0.001)
        assert mailbox._waiters == []
        readers = [asyncio.create_task(mailbox.get()) for _ in range(3)]
        await asyncio.sleep(0)
        mailbox.put([b"one"])
        mailbox.put([b"two"])
        mailbox.close()
        got = [each.raw if each is not None else None for each in await asyncio.gather(*readers)]
        assert got == [b"one", b"two", None]

    run(main())


def test_a_long_line_and_a_broken_off_turn() -> None:
    async def main() -> None:
        config = fake(started("tu"), message("th", "tu", "$big"), ["answer", "turn/interrupt", {}])
        transport = StdioTransport(config, max_line_bytes=100_000)
        async with AsyncAppServerClient(config, transport=transport) as client:
            await client.initialize()
            turn = await start(client)
            with pytest.raises(LineTooLongError):
                await turn.run()
            await turn.interrupt()

    run(main())


def test_an_interrupt_is_repeated_until_the_turn_is_known_or_over() -> None:
    async def main() -> None:
        too_early = ["error", "turn/interrupt", {"code": -32600, "message": "no active turn to interrupt"}]
        async with connected(started("tu"), too_early, too_early, ["answer", "turn/interrupt", {}]) as client:
            await (await start(client)).interrupt()
        async with connected(started("tu"), too_early, completed("th", "tu"), too_early) as client:
            turn = await start(client)
            await turn.interrupt()
            assert (await turn.run()).status == "completed"
        refused = ["error", "turn/interrupt", {"code": -32600, "message": "thread not found"}]
        async with connected(started("tu"), refused) as client:
            with pytest.raises(InvalidRequestError, match="thread not found"):
                await (await start(client)).interrupt()

    run(main())


# Questions.

APPROVAL = ["send", {"id": 1, "method": "item/commandExecution/requestApproval", "params": {"threadId": "th"}}]


async def accepting(method: str, params: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"decision": "accept"}


async def raising(method: str, params: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError("handler broke")


async def nothing(method: str, params: dict[str, Any]) -> Any:
    return None


@pytest.mark.parametrize(
    ("handler", "decision"),
    [
        (None, "decline"),
        (accepting, "accept"),
        (lambda method, params: {"decision": "acceptForSession"}, "acceptForSession"),
        (raising, "decline"),
        (nothing, "decline"),
        (lambda method, params: {"x": object()}, "decline"),
        (lambda method, params: {"x": "\ud800"}, "decline"),
    ],
    ids=["none", "coroutine", "function", "raises", "returns none", "not json", "surrogate"],
)
def test_questions_are_answered(handler: Any, decision: str) -> None:
    async def main() -> None:
        async with connected(APPROVAL, ["told", 1], ["answer", "fake/x", {}], handler=handler) as client:
            answer = (await next_of(client, "fake/told")).params
            assert answer == {"id": 1, "result": {"decision": decision}}
            assert await client.request("fake/x") == {}

    run(main())


def test_an_unknown_question_is_answered_with_method_not_found() -> None:
    async def main() -> None:
        async with connected(["send", {"id": "q", "method": "some/thing"}], ["told", "q"]) as client:
            assert (await next_of(client, "fake/told")).params["error"]["code"] == -32601

    run(main())


def test_a_handler_still_at_work_when_the_client_closes() -> None:
    async def main() -> None:
        begun = asyncio.Event()
        ended: list[str] = []

        async def slow(method: str, params: dict[str, Any]) -> dict[str, Any]:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")
            return {}

        async with connected(APPROVAL, handler=slow):
            await begun.wait()
        await asyncio.sleep(0)
        assert ended == ["cancelled"]

    run(main())


# Starting and ending.


def counting_starts(tmp_path: Path) -> tuple[AppServerConfig, Path]:
    """The scripted app-server, which notes each of its starts and each initialize in a file."""
    log = tmp_path / "log"
    program = tmp_path / "app_server.py"
    program.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1] / 'harness')!r})\n"
        "import fake_app_server\n"
        f"log = open({str(log)!r}, 'a', buffering=1)\n"
        "print('started', file=log)\n"
        "class Server(fake_app_server.Server):\n"
        "    def send(self, message):\n"
        "        if 'userAgent' in message.get('result', {}): print('initialize', file=log)\n"
        "        super().send(message)\n"
        "Server().run([['times', 50, [['answer', 'model/list', {'data': []}]]]])\n"
        "sys.stdin.buffer.read()\n"
    )
    return AppServerConfig(launch_args_override=(sys.executable, "-S", "-E", str(program))), log


def test_many_first_uses_start_it_once(tmp_path: Path) -> None:
    async def main() -> None:
        config, log = counting_starts(tmp_path)
        codex = AsyncCodex(config)
        answers = await asyncio.gather(*(codex.models() for _ in range(20)), codex.start(), codex.__aenter__())
        assert len(answers) == 22
        await codex.close()
        assert log.read_text().split() == ["started", "initialize"]

    run(main())


def test_an_impatient_first_user_does_not_break_the_start_for_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        config, log = counting_starts(tmp_path)
        codex = AsyncCodex(config)
        impatient = asyncio.create_task(codex.models())
        patient = asyncio.create_task(codex.models())
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert (await patient).data == []
        await codex.close()
        assert log.read_text().split() == ["started", "initialize"]

    run(main())


def test_a_start_that_fails_fails_the_same_way_for_all() -> None:
    async def main() -> None:
        codex = AsyncCodex(AppServerConfig(launch_args_override=("/no/such/program",)))
        for outcome in await asyncio.gather(*(codex.models() for _ in range(5)), return_exceptions=True):
            assert isinstance(outcome, BinaryNotFoundError)
        with pytest.raises(BinaryNotFoundError):
            await codex.thread_start()
        with pytest.raises(BinaryNotFoundError):
            async with codex:
                raise AssertionError("entered")
        await codex.close()

    run(main())


def test_a_process_that_dies_at_once(pump: str) -> None:
    async def main() -> None:
        config = AppServerConfig(launch_args_override=("sh", "-c", "echo no database >&2; exit 70"))
        with pytest.raises(TransportClosedError, match=r"exit code 70\n  stderr: no database"):
            async with AsyncCodex(config):
                raise AssertionError("entered")

    run(main())


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.01, 0.03])
def test_a_cancelled_start_leaves_nothing(delay_s: float, pump: str) -> None:
    """Wherever it is cut off: the check after each test sees processes, threads and pipes."""

    async def main() -> None:
        async def use(kind: Any) -> None:
            # This one never answers the handshake.
            async with kind(AppServerConfig(launch_args_override=("sh", "-c", "cat >/dev/null"))) as entered:
                await entered.start() if isinstance(entered, AsyncCodex) else await entered.initialize()

        for kind in (AsyncCodex, AsyncAppServerClient):
            task = asyncio.create_task(use(kind))
            await asyncio.sleep(delay_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


def test_closing_while_it_starts() -> None:
    async def main() -> None:
        codex = AsyncCodex(AppServerConfig(launch_args_override=("sh", "-c", "cat >/dev/null")))
        using = asyncio.create_task(codex.models())
        await asyncio.sleep(0.01)
        await codex.close()
        with pytest.raises((TransportClosedError, asyncio.CancelledError)):
            await using
        with pytest.raises(TransportClosedError, match="was closed"):
            await codex.models()
        await codex.close()

    run(main())


def test_a_client_that_was_never_used_is_closed() -> None:
    async def main() -> None:
        codex = AsyncCodex(AppServerConfig(launch_args_override=("/no/such/program",)))
        await codex.close()
        with pytest.raises(TransportClosedError):
            await codex.thread_list()
        client = AsyncAppServerClient(fake())
        with pytest.raises(TransportClosedError):
            await client.request("fake/x")
        await client.close()

    run(main())


def test_a_killed_process_fails_every_waiter_and_every_later_call(pump: str) -> None:
    async def main() -> None:
        foreign = delta("th", "foreign", "x")
        steps = [["stderr", "last words"], started("tu"), foreign, ["take", "fake/never"], ["take", "fake/ready"]]
        async with connected(*steps) as client:
            turn = await start(client)
            await next_of(client, "item/agentMessage/delta")
            waiting = [
                asyncio.create_task(client.request("fake/never")),
                asyncio.create_task(text_of(turn.stream())),
                asyncio.create_task(text_of(client.turn_notifications("foreign"))),
                asyncio.create_task(next_of(client, "never")),
            ]
            await asyncio.sleep(0)
            os.kill(pid_of(client), signal.SIGKILL)
            for each in waiting:
                with pytest.raises(TransportClosedError, match="killed by SIGKILL") as caught:
                    await each
                assert caught.value.stderr_lines == ("last words",)
            assert nothing_is_held(client)
            for call in (client.request("fake/x"), client.next_notification(), turn.run(), turn.interrupt()):
                with pytest.raises(TransportClosedError, match="killed by SIGKILL"):
                    await call

    run(main())


def test_close_fails_who_still_waits() -> None:
    async def main() -> None:
        async with connected(started("tu")) as client:
            turn = await start(client)
            waiting = [asyncio.create_task(turn.run()), asyncio.create_task(client.request("fake/never"))]
            await asyncio.sleep(0)
            await client.close()
            for each in waiting:
                with pytest.raises(TransportClosedError, match="the client was closed"):
                    await each

    run(main())


def test_closing_does_not_block_the_loop() -> None:
    """A process that takes its time to end is nobody else's business."""

    async def main() -> None:
        script = """read line; echo '{"id":1,"result":{}}'; cat >/dev/null; sleep 0.5"""
        client = AsyncAppServerClient(AppServerConfig(launch_args_override=("sh", "-c", script)))
        await client.start()
        longest, last = 0.0, time.monotonic()
        closing = asyncio.create_task(client.close())
        while not closing.done():
            await asyncio.sleep(0.01)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        assert longest < 0.4

    run(main())


def test_types_are_loaded_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tenths of a second of importing and building, while the app-server comes up."""
    loaded_by: list[threading.Thread] = []
    load = operations.load_types
    monkeypatch.setattr(operations, "load_types", lambda: (loaded_by.append(threading.current_thread()), load()))

    async def main() -> None:
        async with connected():
            assert len(loaded_by) == 1
            assert loaded_by[0] is not threading.current_thread()
            from codex_app_server.generated import models

            assert models.TurnCompletedNotification.__pydantic_complete__

    run(main())


def test_a_loop_that_ends_before_its_client() -> None:
    """asyncio.run ends without close(): the process ends with the transport, nobody is left to complain."""
    codex = AsyncCodex(fake())

    async def main() -> None:
        await codex.start()

    run(main())
    codex.client._transport.close()


# The real app-server.


@real
def test_real_turns_side_by_side_hold_only_their_own(config: AppServerConfig) -> None:
    async def main() -> None:
        async with AsyncCodex(config) as codex:
            prompts = [scripted(f"side{number}", pace_ms=10) for number in range(8)]
            threads = await asyncio.gather(*(codex.thread_start(ephemeral=True) for _ in prompts))
            turns = await asyncio.gather(*(t.turn(p) for t, (p, _) in zip(threads, prompts, strict=True)))
            texts = await asyncio.gather(*(text_of(turn.stream()) for turn in turns))
            assert texts == [text for _, text in prompts]
            # While these ran, one loop and one I/O thread did everything.
            assert nothing_is_held(codex.client)

            pieces = [piece async for piece in astream_text(threads[0], scripted("again")[0])]
            assert "".join(pieces) == scripted("again")[1]
            lower = [each.delta async for each in codex.client.stream_text(threads[1].id, scripted("lower")[0])]
            assert "".join(lower) == scripted("lower")[1]
            with pytest.raises(TurnFailedError):
                async for _ in astream_text(threads[0], "[[http_error 500]]"):
                    pass

    run(main())


@real
def test_real_failure_interrupt_and_steering(config: AppServerConfig, model: LoopbackModel) -> None:
    async def main() -> None:
        async with AsyncCodex(config) as codex:
            thread = await codex.thread_start(ephemeral=True)
            with pytest.raises(TurnFailedError) as caught:
                await thread.run("[[failed server_is_overloaded]]")
            assert caught.value.codex_error_info == "serverOverloaded"

            turn = await thread.turn("interrupt-me [[hang 2]]")
            await streaming(turn)
            await turn.interrupt()
            assert (await turn.run()).status == "interrupted"
            await asyncio.to_thread(
                model.wait_for, lambda r: "interrupt-me" in r.prompt and r.outcome == "disconnected"
            )
            await turn.interrupt()

            async def at_once() -> str:
                turn = await (await codex.thread_start(ephemeral=True)).turn("[[hang 1]]")
                await turn.interrupt()
                return str((await turn.run()).status)

            assert set(await asyncio.gather(*(at_once() for _ in range(5)))) == {"interrupted"}

            turn = await thread.turn(scripted("before", pace_ms=60)[0])
            await streaming(turn)
            await turn.steer('steered-to [[text "as steered"]]')
            assert (await turn.run()).final_response == "as steered"
            assert model.wait_for(lambda request: request.prompt.startswith("steered-to"))
            assert nothing_is_held(codex.client)

    run(main())


@real
def test_real_threads_and_approvals(config: AppServerConfig, tmp_path: Path) -> None:
    asked: list[str] = []

    async def handler(method: str, params: dict[str, Any]) -> dict[str, Any]:
        asked.append(method)
        await asyncio.sleep(0)
        return {"decision": "accept"}

    async def main() -> None:
        async with AsyncCodex(config, approval_handler=handler) as codex:
            thread = await codex.thread_start(approval_policy="on-request", sandbox="read-only")
            file = tmp_path / "file"
            result = await thread.run(f'[[tool_call "echo hi > {file}" escalate=true]] [[text "done"]]')
            assert (result.final_response, file.read_text()) == ("done", "hi\n")
            assert asked == ["item/commandExecution/requestApproval"]
            await thread.set_name("named")
            assert [each.name for each in (await codex.thread_list()).data] == ["named"]
            assert len((await thread.read(include_turns=True)).thread.turns) == 1
            fork = await codex.thread_fork(thread.id)
            await codex.thread_archive(thread.id)
            await codex.thread_unarchive(thread.id)
            again = await codex.thread_resume(thread.id)
            assert (await again.run('[[text "back"]]')).final_response == "back"
            await codex.thread_delete(fork.id)
            await codex.thread_delete(thread.id)
            assert (await codex.thread_list()).data == []
            assert (await codex.models()).data is not None
            schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
            thread = await codex.thread_start(ephemeral=True)
            answer = await thread.run("schema", output_schema=schema)
            assert set(json.loads(answer.final_response or "")) == {"a"}

    run(main())


@real
def test_a_real_process_that_is_killed(config: AppServerConfig) -> None:
    async def main() -> None:
        async with AsyncCodex(config) as codex:
            turns = [await (await codex.thread_start(ephemeral=True)).turn("[[hang 1]]") for _ in range(3)]
            streams = [await streaming(turn) for turn in turns]
            reading = [asyncio.create_task(text_of(stream)) for stream in streams]
            os.kill(pid_of(codex.client), signal.SIGKILL)
            for outcome in await asyncio.gather(*reading, return_exceptions=True):
                assert isinstance(outcome, TransportClosedError)
            with pytest.raises(TransportClosedError, match="killed by SIGKILL"):
                await codex.thread_start()

    run(main())


@real
def test_real_asyncio_program_as_a_user_writes_it(home: Path, work: Path) -> None:
    program = """
import asyncio
from codex_app_server import AsyncCodex

async def main():
    async with AsyncCodex() as codex:
        thread = await codex.thread_start(model="gpt-5")
        result = await thread.run('[[text "Hello."]]')
        print(result.final_response)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=work,
        env={**os.environ, "CODEX_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("Hello.\n", "", 0)
