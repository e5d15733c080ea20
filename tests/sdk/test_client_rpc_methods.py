"""AppServerClient and its transport: requests, answers, notifications, questions, and every way a process can end.

The app-server is the scripted one where the real one does not do it on demand.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import json
import logging
import os
import pickle
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_app_server import completed, delta, message, started
from fake_app_server import config as fake

import codex_app_server
from codex_app_server import (
    AppServerClient,
    AppServerConfig,
    AppServerError,
    AppServerRpcError,
    BinaryNotFoundError,
    Codex,
    InternalRpcError,
    InvalidInputError,
    InvalidParamsError,
    InvalidRequestError,
    JsonRpcError,
    LineTooLongError,
    MethodNotFoundError,
    Notification,
    ParseError,
    RequestTimeoutError,
    RetryLimitExceededError,
    ServerBusyError,
    StartError,
    StdioTransport,
    Thread,
    ThreadBusyError,
    ThreadLostError,
    TransportClosedError,
    TurnEndedError,
    TurnFailedError,
    TurnLostError,
    TurnStream,
    TurnText,
    UnknownNotification,
    UnknownTurnError,
    aretry_on_overload,
    is_retryable_error,
    retry_on_overload,
    stream_text,
)
from codex_app_server import transport as transport_module
from codex_app_server._protocol.rpc_errors import map_jsonrpc_error
from codex_app_server._sync.mailbox import SyncMailbox

WAIT_S = 20.0
# Of a turn that this client did not start.
FOREIGN = delta("th", "foreign", "x")


@contextlib.contextmanager
def connected(
    *steps: Any, handler: Any = None, max_line_bytes: int | None = None, **fields: Any
) -> Iterator[AppServerClient]:
    """A client of the scripted app-server, after the handshake."""
    config = fake(*steps, **fields)
    transport = None if max_line_bytes is None else StdioTransport(config, max_line_bytes=max_line_bytes)
    with AppServerClient(config, transport=transport, approval_handler=handler) as client:
        client.initialize()
        yield client


@pytest.fixture(params=["poll", "threads"])
def pump(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of moving bytes, whatever the platform."""
    if request.param == "threads":
        monkeypatch.setattr(transport_module, "PollPump", transport_module.ThreadPump)
    return str(request.param)


def pid_of(client: AppServerClient) -> int:
    transport = client._connection._transport
    assert isinstance(transport, StdioTransport)
    assert transport.pid is not None
    return transport.pid


def nothing_is_held(client: AppServerClient) -> bool:
    return not any(client.held.values())


def start_turn(client: AppServerClient, thread: str = "th", text: str = "hi") -> str:
    response = client.request("turn/start", {"thread_id": thread, "input": [{"type": "text", "text": text}]})
    return str(response.turn.id)


def texts(notifications: Iterator[Notification]) -> str:
    return "".join(each.payload.delta for each in notifications if each.method == "item/agentMessage/delta")


def next_of(client: AppServerClient, method: str) -> Notification:
    while True:
        notification = client.next_notification(WAIT_S)
        assert notification is not None
        if notification.method == method:
            return notification


# Requests and answers.


def test_answers_find_their_requests_in_any_order(pump: str) -> None:
    """Three threads wait at once; the app-server answers the last one first."""
    steps = [
        ["take", "fake/go"],
        ["answer", "fake/c", {"is": "c"}],
        ["answer", "fake/b", {"is": "b"}],
        ["answer", "fake/a", {"is": "a"}],
    ]
    with connected(*steps) as client, concurrent.futures.ThreadPoolExecutor(3) as pool:
        waiting = {name: pool.submit(client.request, f"fake/{name}") for name in "abc"}
        client.notify("fake/go")
        assert {name: future.result(WAIT_S) for name, future in waiting.items()} == {
            name: {"is": name} for name in "abc"
        }
        assert nothing_is_held(client)


def test_many_threads_may_call_at_once(pump: str) -> None:
    with connected(["times", 400, [["answer", "fake/echo", {"id": "$1"}]]]) as client:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: client.request("fake/echo")["id"], range(400)))
        # The fake answers each with the id of its own request: no two callers may get the same.
        assert len(set(answers)) == 400
        assert nothing_is_held(client)


def test_large_messages_go_both_ways(pump: str) -> None:
    """More than any pipe holds, in either direction."""
    text = "ä" * 3_000_000
    with connected(["answer", "fake/big", {"text": "x" * 100_000}], ["answer", "fake/small", {}]) as client:
        assert client.request("fake/big", {"text": text}) == {"text": "x" * 100_000}
        assert client.request("fake/small") == {}


def test_a_stopped_app_server_blocks_no_caller(pump: str) -> None:
    """Messages that cannot be written wait in memory, and go out when the process reads again."""
    with connected(["times", 4, [["answer", "fake/big", {}]]]) as client:
        os.kill(pid_of(client), signal.SIGSTOP)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(client.request, "fake/big", {"text": "x" * 1_000_000}) for _ in range(4)]
            with pytest.raises(RequestTimeoutError):
                client.request("fake/never", timeout_s=0.2)
            assert not any(future.done() for future in waiting)
            os.kill(pid_of(client), signal.SIGCONT)
            for future in waiting:
                assert future.result(WAIT_S) == {}


def test_a_request_has_a_deadline() -> None:
    """The late answer is recognised and dropped, and the next request is served."""
    steps = [["take", "fake/go"], ["answer", "fake/late", {"late": True}], ["answer", "fake/next", {"next": True}]]
    with connected(*steps) as client:
        with pytest.raises(RequestTimeoutError, match=r"no answer to fake/late within 0\.05 s"):
            client.request("fake/late", timeout_s=0.05)
        assert nothing_is_held(client)
        client.notify("fake/go")
        assert client.request("fake/next") == {"next": True}


def test_a_start_past_its_deadline_is_interrupted_and_leaves_its_turn_to_everybody() -> None:
    steps = [
        ["take", "fake/go"],
        delta("th", "tu", "early"),
        started("tu"),
        ["answer", "turn/interrupt", {}],
        completed("th", "tu"),
        ["answer", "fake/end", {}],
    ]
    with connected(*steps) as client:
        with pytest.raises(RequestTimeoutError):
            client.request("turn/start", {"thread_id": "th", "input": [{"type": "text", "text": "x"}]}, timeout_s=0.05)
        client.notify("fake/go")
        client.request("fake/end")
        assert nothing_is_held(client)
        assert next_of(client, "item/agentMessage/delta").payload.delta == "early"
        with pytest.raises(TurnEndedError):
            client.turn_notifications("tu")


def test_time_in_a_queue_is_not_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that queues a request stops its clock, and starts it anew when it takes it up."""
    monkeypatch.setattr("codex_app_server._core.calls.QUEUE_POLL_S", 0.05)
    queue = [
        ["take", "fake/slow"],
        ["send", {"method": "pool/queued", "params": {"requestId": 2}}],
        ["take", "fake/go"],
        ["send", {"method": "pool/dequeued", "params": {"requestId": 2}}],
    ]
    with connected(*queue) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.request, "fake/slow", timeout_s=0.4)
        next_of(client, "pool/queued")
        with pytest.raises(concurrent.futures.TimeoutError):
            waiting.result(1.0)
        client.notify("fake/go")
        with pytest.raises(RequestTimeoutError):
            waiting.result(WAIT_S)


@pytest.mark.parametrize(
    ("code", "data", "kind", "retryable"),
    [
        (-32700, None, ParseError, False),
        (-32600, None, InvalidRequestError, False),
        (-32601, None, MethodNotFoundError, False),
        (-32602, None, InvalidParamsError, False),
        (-32603, {"x": 1}, InternalRpcError, False),
        (-32001, None, ServerBusyError, True),
        (-32000, {"codexErrorInfo": "serverOverloaded"}, ServerBusyError, True),
        (-32000, {"codex_error_info": ["server_overloaded"]}, ServerBusyError, True),
        (-32000, None, AppServerRpcError, False),
        (-32010, None, ThreadLostError, False),
        (-32011, {"safeToRetry": True}, TurnLostError, False),
        (7, None, JsonRpcError, False),
    ],
)
def test_error_codes_have_types(code: int, data: Any, kind: type[JsonRpcError], retryable: bool) -> None:
    with connected(["error", "fake/x", {"code": code, "message": "because", "data": data}]) as client:
        with pytest.raises(JsonRpcError, match=f"because .JSON-RPC error {code}.") as caught:
            client.request("fake/x")
        error = caught.value
        assert type(error) is kind
        assert (error.code, error.message, error.data) == (code, "because", data)
        assert is_retryable_error(error) is retryable
        assert isinstance(error, AppServerError)
        assert nothing_is_held(client)


def test_an_overload_that_was_retried_enough_is_not_retried_again() -> None:
    error = map_jsonrpc_error(-32001, "exceeded retry limit")
    assert type(error) is RetryLimitExceededError
    assert not is_retryable_error(error)


@pytest.mark.parametrize(
    "error", [{"code": "x", "message": 5}, {}, [], "text", {"code": None, "message": None, "data": None}]
)
def test_odd_error_objects_are_errors_too(error: Any) -> None:
    with connected(["error", "fake/x", error], ["answer", "fake/y", {}]) as client:
        with pytest.raises(InternalRpcError):
            client.request("fake/x")
        assert client.request("fake/y") == {}


def test_an_answer_of_the_wrong_type_is_an_error_of_the_sdk() -> None:
    with connected(["answer", "model/list", {"data": 5}], ["answer", "turn/start", {}], started("tu")) as client:
        with pytest.raises(AppServerError, match="the answer to model/list is not a ModelListResponse"):
            client.request("model/list")
        with pytest.raises(AppServerError, match="the answer to turn/start is not a TurnStartResponse"):
            start_turn(client)
        assert start_turn(client) == "tu"


def test_errors_can_be_pickled() -> None:
    """Errors travel out of worker processes."""
    for error in (
        map_jsonrpc_error(-32011, "gone", {"safeToRetry": True}),
        TransportClosedError("gone", ["one", "two"]),
        RequestTimeoutError("late"),
        BinaryNotFoundError("nowhere"),
        StartError("busy", "binary_busy"),
        TransportClosedError("gone", ["Error: x"]),
        TurnFailedError("bad", kind="lost", safe_to_retry=True),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert (str(copy), copy.__dict__) == (str(error), error.__dict__)


def test_retry_on_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("codex_app_server._sync.waiting.time", SimpleNamespace(sleep=waits.append))
    busy = {"code": -32001, "message": "Server overloaded; retry later.", "data": None}
    steps = [["error", "fake/x", busy], ["error", "fake/x", busy], ["answer", "fake/x", {"at": "last"}]]
    with connected(*steps, *([["error", "fake/x", busy]] * 2), ["error", "fake/x", {"code": -32600}]) as client:
        assert retry_on_overload(lambda: client.request("fake/x"), jitter_ratio=0) == {"at": "last"}
        assert waits == [0.25, 0.5]
        with pytest.raises(ServerBusyError):
            retry_on_overload(lambda: client.request("fake/x"), max_attempts=2)
        # Any other error is raised as it comes.
        with pytest.raises(InvalidRequestError):
            retry_on_overload(lambda: client.request("fake/x"))
    assert len(waits) == 3
    with pytest.raises(ValueError, match="max_attempts is 0; it must be at least 1"):
        retry_on_overload(lambda: 1, max_attempts=0)


def test_a_servers_hint_makes_the_wait_longer_and_asyncio_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("codex_app_server._sync.waiting.time", SimpleNamespace(sleep=waits.append))
    answers = [ServerBusyError(-32001, "busy", {"retryAfterMs": hint}) for hint in (1500, 10, "soon")]

    def op() -> str:
        if answers:
            raise answers.pop(0)
        return "served"

    assert retry_on_overload(op, max_attempts=4, jitter_ratio=0) == "served"
    assert waits == [1.5, 0.5, 1.0]

    async def aop() -> str:
        return op()

    answers.append(ServerBusyError(-32001, "busy"))
    assert asyncio.run(aretry_on_overload(aop, initial_delay_s=0.001)) == "served"
    answers.extend([ServerBusyError(-32001, "busy")] * 2)
    with pytest.raises(ServerBusyError):
        asyncio.run(aretry_on_overload(aop, max_attempts=2, initial_delay_s=0.001))


# Turns: each stream holds its own turn.


def test_interleaved_turns_on_one_client(pump: str) -> None:
    """Lines of 20 turns, shuffled as finely as can be; every stream gets its own text, whole and in order."""
    threads = range(20)
    steps: list[Any] = [started(f"tu{n}") for n in threads]
    for piece in range(10):
        steps += [delta(f"th{n}", f"tu{n}", f"<{n}.{piece}>") for n in threads]
    steps += [completed(f"th{n}", f"tu{n}") for n in reversed(threads)]
    with connected(*steps) as client, concurrent.futures.ThreadPoolExecutor(20) as pool:
        turns = [start_turn(client, f"th{n}") for n in threads]
        streams = [pool.submit(lambda turn: texts(client.turn_notifications(turn)), turn) for turn in turns]
        for n, stream in enumerate(streams):
            assert stream.result(WAIT_S) == "".join(f"<{n}.{piece}>" for piece in range(10))
        assert nothing_is_held(client)


def test_a_turn_that_is_over_before_its_answer(pump: str) -> None:
    """All of it in one read, the answer last; another turn's lines and a warning between."""
    steps = [
        ["take", "fake/go"],
        [
            "at_once",
            [
                delta("th", "tu", "a"),
                delta("th", "other", "foreign"),
                ["send", {"method": "warning", "params": {"threadId": "th", "message": "w"}}],
                delta("th", "tu", "b"),
                completed("th", "tu"),
                started("tu"),
            ],
        ],
    ]
    with connected(*steps) as client:
        client.notify("fake/go")
        assert start_turn(client) == "tu"
        assert texts(client.turn_notifications("tu")) == "ab"
        assert nothing_is_held(client)
        assert next_of(client, "warning").payload.message == "w"
        assert next_of(client, "item/agentMessage/delta").payload.delta == "foreign"


def test_early_lines_in_reads_of_their_own(pump: str) -> None:
    steps = [
        delta("th", "tu", "a"),
        delta("th", "tu", "b"),
        started("tu"),
        delta("th", "tu", "c"),
        completed("th", "tu"),
    ]
    with connected(["seen", "turn/start"], *steps) as client:
        assert start_turn(client) == "tu"
        assert texts(client.turn_notifications("tu")) == "abc"


def test_waiting_for_the_end_of_a_turn() -> None:
    with connected(started("tu"), completed("th", "tu", "failed", error={"message": "no"})) as client:
        done = client.wait_for_turn_completed(start_turn(client))
        assert (done.turn.id, done.turn.status, done.turn.error.message) == ("tu", "failed", "no")
        with pytest.raises(TurnEndedError, match="tu has already ended"):
            client.wait_for_turn_completed("tu")


def test_a_turn_that_nobody_knows_is_not_waited_for() -> None:
    steps = [FOREIGN, ["send", {"method": "warning", "params": {"message": "w"}}], ["take", "fake/go"]]
    with connected(*steps, delta("th", "foreign", "y"), completed("th", "foreign")) as client:
        thread = Thread(client, "th")
        for ask in (client.turn_notifications, client.wait_for_turn_completed, client.follow_turn, thread.follow):
            with pytest.raises(UnknownTurnError, match="turn nobody is not known to this client") as caught:
                ask("nobody")
            assert pickle.loads(pickle.dumps(caught.value)).turn_id == "nobody"
        # One that the app-server began by itself was seen.
        next_of(client, "warning")
        followed = client.turn_notifications("foreign"), thread.follow("foreign").text()
        client.notify("fake/go")
        assert (texts(followed[0]), "".join(followed[1])) == ("y", "y")
        for ask in (client.turn_notifications, client.wait_for_turn_completed, client.follow_turn, thread.follow):
            with pytest.raises(TurnEndedError):
                ask("foreign")


@pytest.mark.parametrize("kind", ["failed", "lost", "stalled", "overflow"])
@pytest.mark.parametrize("safe", [True, False])
def test_why_a_turn_in_a_pool_failed(kind: str, safe: bool) -> None:
    params = {"threadId": "th", "turnId": "tu$n", "kind": kind, "safeToRetry": safe}
    ended = ["send", {"method": "pool/turn/ended", "params": params}]
    failed = completed("th", "tu$n", "failed", error={"message": f"it was {kind}"})
    turns = ["times", 3, [started("tu$n"), ended, failed]]
    with connected(turns, started("plain"), completed("th", "plain", "failed")) as client:
        thread = Thread(client, "th")
        for read in (
            lambda: thread.run("hi"),
            lambda: list(stream_text(thread, "hi")),
            lambda: thread.turn("hi").run(timeout=WAIT_S),
        ):
            with pytest.raises(TurnFailedError, match=f"it was {kind}") as caught:
                read()
            assert (caught.value.kind, caught.value.safe_to_retry) == (kind, safe)
            assert caught.value.turn is not None
        with pytest.raises(TurnFailedError) as caught:
            thread.run("hi")
        assert (caught.value.kind, caught.value.safe_to_retry) == ("failed", False)


def test_a_turn_that_was_read_has_not_failed() -> None:
    with connected(started("tu"), completed("th", "tu")) as client:
        turn = Thread(client, "th").turn("hi")
        assert [each.method for each in turn.stream()] == ["turn/completed"]
        for read in (turn.run, lambda: list(turn.text())):
            with pytest.raises(TurnEndedError, match="turn tu has ended, and what it sent was read before"):
                read()


def test_a_detached_review_that_nobody_waits_for_is_interrupted_on_its_own_thread() -> None:
    review = {"turn": {"id": "tu", "items": [], "status": "inProgress"}, "reviewThreadId": "own"}
    steps = [["seen", "fake/go"], ["answer", "review/start", review], ["seen", "turn/interrupt"]]
    told = ["send", {"method": "fake/interrupted", "params": {}}]
    with connected(*steps, told, ["answer", "turn/interrupt", {}], completed("own", "tu", "interrupted")) as client:
        sent: list[bytes] = []
        transport = client._connection._transport
        send = transport.send
        transport.send = lambda line, **options: (sent.append(line), send(line, **options))  # type: ignore
        params = {"thread_id": "th", "target": {"type": "uncommittedChanges"}, "delivery": "detached"}
        with pytest.raises(RequestTimeoutError):
            client.request("review/start", params, timeout_s=0)
        client.notify("fake/go")
        next_of(client, "fake/interrupted")
        [interrupt] = [json.loads(line) for line in sent if b'"turn/interrupt"' in line]
        assert interrupt["params"] == {"threadId": "own", "turnId": "tu"}


INTERRUPTED = [["answer", "turn/interrupt", {}], completed("th", "tu", "interrupted")]


@pytest.mark.parametrize("how", ["close", "with", "error", "ctrl-c"])
@pytest.mark.parametrize("what", ["text", "stream"])
def test_text_that_is_closed_early_interrupts_its_turn(what: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(started("tu"), delta("th", "tu", "a"), *INTERRUPTED) as client:
        turn = Thread(client, "th").turn("hi")
        text: TurnText | TurnStream = turn.text() if what == "text" else turn.stream()
        first = next(text)
        assert (first.payload.delta if isinstance(first, Notification) else first) == "a"
        if how == "close":
            text.close()
        elif how == "with":
            with text:
                pass
        elif how == "error":
            with pytest.raises(ZeroDivisionError), text:
                raise ZeroDivisionError
        else:
            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(SyncMailbox, "get", interrupt_from_the_keyboard)
                next(text)
        assert turn.run(timeout=WAIT_S).status == "interrupted"
        text.close()
        assert nothing_is_held(client)


def interrupt_from_the_keyboard(mailbox: SyncMailbox, timeout_s: float | None = None) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["detached", "dropped"])
def test_text_that_is_dropped_or_detached_leaves_its_turn_alone(how: str) -> None:
    steps = [started("tu"), delta("th", "tu", "a"), ["take", "fake/go"], delta("th", "tu", "b"), completed("th", "tu")]
    with connected(*steps) as client:
        turn = Thread(client, "th").turn("hi", detach=how == "detached")
        text = turn.text()
        assert next(text) == "a"
        if how == "detached":
            text.close()
        del text
        gc.collect()
        assert client.held["requests"] == 0
        client.notify("fake/go")
        with turn.text() as text:
            assert list(text) == ["b"]
        assert nothing_is_held(client)


def test_a_thread_whose_turn_is_being_started_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows the turn's id yet, and all the same a second turn must not join it."""
    steps = [
        ["seen", "turn/start"],
        ["send", {"method": "warning", "params": {"message": "seen"}}],
        ["take", "fake/go"],
        started("tu1"),
        ["answer", "turn/steer", {"turnId": "tu1"}],
        completed("th", "tu1"),
        started("tu2"),
        completed("th", "tu2"),
    ]
    waiting = threading.Barrier(3)
    wait = AppServerClient._wait_started

    def noted(self: AppServerClient, thread_id: str, timeout_s: float | None) -> None:
        waiting.wait(WAIT_S)
        wait(self, thread_id, timeout_s)

    with connected(*steps) as client, concurrent.futures.ThreadPoolExecutor(3) as pool:
        thread = Thread(client, "th")
        first = pool.submit(thread.run, "one")
        next_of(client, "warning")
        with pytest.raises(ThreadBusyError, match=r"\(being started\)") as caught:
            thread.run("two")
        assert caught.value.turn_id is None
        assert pickle.loads(pickle.dumps(caught.value)).thread_id == "th"
        with pytest.raises(RequestTimeoutError):
            thread.run("two", on_busy="queue", timeout=0.05)
        monkeypatch.setattr(AppServerClient, "_wait_started", noted)
        second = pool.submit(thread.run, "two", on_busy="queue")
        third = pool.submit(thread.run, "three", on_busy="steer")
        waiting.wait(WAIT_S)
        client.notify("fake/go")
        assert [each.result(WAIT_S).id for each in (first, second, third)] == ["tu1", "tu2", "tu1"]


def test_turns_that_are_started_at_the_same_moment_do_not_join() -> None:
    """Looking whether the thread is busy and taking it are one."""
    count = 8
    turns = ["times", count, [started("tu$n"), completed("th", "tu$n")]]
    with connected(turns) as client, concurrent.futures.ThreadPoolExecutor(count) as pool:
        thread = Thread(client, "th")
        at_once = threading.Barrier(count)

        def run() -> str:
            at_once.wait(WAIT_S)
            return str(thread.run("hi", on_busy="queue", timeout=WAIT_S).id)

        ids = [future.result(WAIT_S) for future in [pool.submit(run) for _ in range(count)]]
        assert sorted(ids) == [f"tu{number}" for number in range(count)]
        assert nothing_is_held(client)


def test_a_completion_that_cannot_be_read_is_a_failed_turn() -> None:
    steps = [started("tu"), ["send", {"method": "turn/completed", "params": {"threadId": "th", "turn": {"id": "tu"}}}]]
    with connected(*steps) as client, pytest.raises(TurnFailedError, match="tu ended without a readable turn/complet"):
        client.wait_for_turn_completed(start_turn(client))


def test_a_turn_that_was_joined_and_is_over_does_not_hang() -> None:
    """The second start on a busy thread names the running turn, which ends before the answer is read."""
    steps = [started("tu"), ["take", "fake/go"], ["at_once", [completed("th", "tu"), started("tu")]]]
    with connected(*steps) as client:
        first = client.turn_notifications(start_turn(client))
        client.notify("fake/go")
        turn = start_turn(client)
        with pytest.raises(TurnEndedError, match="turn tu: it ended before the answer"):
            list(client.turn_notifications(turn))
        assert [each.method for each in first] == ["turn/completed"]
        assert nothing_is_held(client)


def test_a_detached_review_runs_on_a_thread_of_its_own() -> None:
    """The review's first lines come before the answer, under a thread id that the client does not know yet."""
    review = {"turn": {"id": "tu", "items": [], "status": "inProgress"}, "reviewThreadId": "review"}
    steps = [
        ["take", "fake/go"],
        ["at_once", [delta("review", "tu", "a"), ["answer", "review/start", review]]],
        delta("review", "tu", "b"),
        completed("review", "tu"),
    ]
    with connected(*steps) as client:
        client.notify("fake/go")
        params = {"thread_id": "th", "target": {"type": "uncommittedChanges"}, "delivery": "detached"}
        turn = client.request("review/start", params).turn.id
        assert texts(client.turn_notifications(turn)) == "ab"
        assert nothing_is_held(client)


def test_turns_nobody_reads_are_kept_for_a_while_only() -> None:
    """The newest 256 of turns started by plain requests can still be read; the others cost nothing."""
    count = 300
    turns = ["times", count, [started("tu$n"), delta("th", "tu$n", "text $n"), completed("th", "tu$n")]]
    with connected(turns, ["answer", "fake/end", {}]) as client:
        for _ in range(count):
            start_turn(client)
        client.request("fake/end")
        assert client.held == {"requests": 0, "turns": 0, "early": 0, "starting": 0, "calls": 0, "unclaimed": 256}
        assert texts(client.turn_notifications(f"tu{count - 1}")) == f"text {count - 1}"
        with pytest.raises(TurnEndedError):
            client.turn_notifications("tu0")


def test_notifications_of_no_turn_are_a_bounded_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codex_app_server._sync.driver.GLOBAL_NOTIFICATIONS", 100)
    extra = ["times", 150, [["send", {"method": "warning", "params": {"message": "$n"}}]]]
    with connected(extra, ["answer", "fake/end", {}]) as client:
        client.request("fake/end", timeout_s=WAIT_S)
        first = client.next_notification(0)
        assert first is not None
        assert first.payload.message == "50"
        assert client._connection.notifications.dropped == 50


def test_notifications_end_with_their_client() -> None:
    note = ["send", {"method": "warning", "params": {"message": "w"}}]
    with Codex(fake(note)) as codex, concurrent.futures.ThreadPoolExecutor(1) as pool:
        notifications = codex.notifications()
        assert next(notifications).method == "warning"
        rest = pool.submit(list, notifications)
        codex.close()
        assert rest.result(WAIT_S) == list(codex.notifications()) == []
    never = AppServerClient(fake())
    never.close()
    assert never.next_notification(WAIT_S) is None
    with Codex(fake(["take", "initialized"], note, ["exit", 3])) as codex:
        notifications = codex.notifications()
        assert next(notifications).method == "warning"
        with pytest.raises(TransportClosedError):
            next(notifications)
        codex.close()
        with pytest.raises(TransportClosedError):
            list(codex.notifications())


def test_next_notification_has_a_deadline() -> None:
    with connected() as client, pytest.raises(TimeoutError, match=r"no notification within 0\.01 s"):
        client.next_notification(0.01)


def test_what_nobody_reads_is_bounded_deltas_give_way_and_items_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codex_app_server._core.mailbox.MAX_WAITING_BYTES", 1000)
    params = {"threadId": "th", "turnId": "tu", "itemId": "item", "delta": "x" * 100}
    piece = json.dumps({"method": "item/agentMessage/delta", "params": params}).encode()
    item = json.dumps({"method": "item/completed", "params": {"threadId": "th", "turnId": "tu"}}).encode()
    mailbox = SyncMailbox()
    mailbox.put([piece] * 3)
    for _ in range(50):
        mailbox.put([piece, piece, item, piece])
    mailbox.close()
    seen = []
    while (notification := mailbox.get()) is not None:
        seen.append(notification)
    methods = [notification.method for notification in seen]
    dropped = sum(n.params["count"] for n in seen if n.method == "sdk/deltas/dropped")
    assert methods.count("item/completed") == 50
    assert dropped > 100 and methods.count("item/agentMessage/delta") + dropped == 153
    # A marker stands where the deltas stood: never two of them in a row.
    assert ("sdk/deltas/dropped", "sdk/deltas/dropped") not in itertools.pairwise(methods)
    # A reader that keeps up loses nothing.
    mailbox = SyncMailbox()
    for _ in range(50):
        mailbox.put([piece, item])
        assert [mailbox.get(0).method, mailbox.get(0).method] == ["item/agentMessage/delta", "item/completed"]  # type: ignore[union-attr]


def test_threads_that_share_a_mailbox_get_each_line_once() -> None:
    """A thread that was woken too late for a line waits on."""
    mailbox = SyncMailbox()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:

        def drain() -> list[bytes]:
            got = []
            while (notification := mailbox.get(WAIT_S)) is not None:
                got.append(notification.raw)
            return got

        readers = [pool.submit(drain) for _ in range(8)]
        sent = [b"%d" % number for number in range(2000)]
        for line in sent:
            mailbox.put([line])
        mailbox.close()
        got = [line for reader in readers for line in reader.result(WAIT_S)]
    assert sorted(got) == sorted(sent)


def test_payloads_are_typed_or_plain() -> None:
    lines = [
        '{"method":"warning","params":{"message":"typed","newField":1}}',
        '{"method":"warning","params":{"message":5}}',
        '{"method":"not/yet/known","params":{"a":[1]}}',
        '{"method":"not/yet/known"}',
        '{"method":"warning","params":{"message":"\xff"}}',
    ]
    with connected(*(["raw", line] for line in lines)) as client:
        payloads = [client.next_notification(WAIT_S).payload for _ in lines]  # type: ignore[union-attr]
    assert payloads[0].message == "typed"
    assert payloads[1] == UnknownNotification({"message": 5})
    assert payloads[2] == UnknownNotification({"a": [1]})
    assert payloads[3] == UnknownNotification(None)
    assert payloads[4] == UnknownNotification('{"message":"�"}')


# Lines that are not as they should be.


def test_bad_lines_are_ignored_and_reported(pump: str, caplog: pytest.LogCaptureFixture) -> None:
    bad = [
        "not json",
        "{",
        "[]",
        "5",
        "\xff\xfe",
        "{}",
        '{"method":5}',
        '{"id":999,"result":{}}',
        '{"id":"x","error":{}}',
        '{"method":"x","params":$deep}',
        "",
        '{"id":1,"result":{}}',
    ]
    caplog.set_level(logging.WARNING, "codex_app_server")
    with connected(
        ["take", "fake/go"], *(["raw", line] for line in bad), ["answer", "fake/x", {"still": "here"}]
    ) as client:
        client.notify("fake/go")
        assert client.request("fake/x") == {"still": "here"}
    ignored = [record for record in caplog.records if "ignored a line" in record.message]
    assert len(ignored) == len(bad) - 1
    assert all(len(record.message) < 1000 for record in ignored)


def test_an_unreadable_answer_fails_its_request_only() -> None:
    steps = [["take", "fake/x"], ["raw", '{"id":2,"error":{"code":1,"message":"\xff"}}'], ["answer", "fake/y", {}]]
    with connected(*steps) as client:
        with pytest.raises(JsonRpcError):
            client.request("fake/x", timeout_s=WAIT_S)
        assert client.request("fake/y") == {}


def test_an_answer_that_was_cut_fails_its_request_at_once(caplog: pytest.LogCaptureFixture) -> None:
    steps = [
        ["take", "fake/x"],
        ["raw", '{"id":2,"result":{"data":["a'],
        ["take", "turn/start"],
        ["raw", '{"id":3,"result":{"turn":{"id":"tu"'],
        ["answer", "fake/y", {}],
    ]
    with connected(*steps) as client:
        with pytest.raises(InternalRpcError, match="the answer is unreadable: not a JSON object"):
            client.request("fake/x", timeout_s=None)
        with pytest.raises(InternalRpcError, match="the answer is unreadable"):
            start_turn(client)
        assert client.request("fake/y") == {}
        assert nothing_is_held(client)
    assert len([record for record in caplog.records if "ignored a line" in record.message]) == 2


def test_a_question_beyond_the_cap_is_declined(caplog: pytest.LogCaptureFixture) -> None:
    """The one who would answer cannot read it, and the app-server must not wait for ever."""

    def ask(id: int, method: str) -> list[Any]:
        params = {"threadId": "th", "turnId": "tu", "arguments": "$big", "tool": "t", "callId": "c"}
        return ["send", {"id": id, "method": method, "params": params}]

    asked: list[str] = []
    steps = [ask(7, "item/tool/call"), ["told", 7], ask(8, "fake/unknown"), ["told", 8], ["answer", "fake/x", {}]]
    with connected(*steps, max_line_bytes=100_000, handler=lambda method, params: asked.append(method)) as client:
        assert next_of(client, "fake/told").params["result"] == {"contentItems": [], "success": False}
        assert next_of(client, "fake/told").params["error"]["code"] == -32601
        assert client.request("fake/x") == {}
    assert asked == []
    declined = [record.message for record in caplog.records if "is declined: a line of 200" in record.message]
    assert [message.split()[0] for message in declined] == ["item/tool/call", "fake/unknown"]


def test_a_line_beyond_the_cap_fails_its_turn_and_no_other(pump: str) -> None:
    steps = [
        started("tu1"),
        started("tu2"),
        delta("th1", "tu1", "a"),
        message("th1", "tu1", "$big"),
        delta("th2", "tu2", "b"),
        completed("th2", "tu2"),
        ["answer", "turn/interrupt", {}],
        ["answer", "fake/big", {"text": "$big"}],
        ["answer", "fake/small", {}],
    ]
    with connected(*steps, max_line_bytes=100_000) as client:
        first, second = start_turn(client, "th1"), start_turn(client, "th2")
        stream = client.turn_notifications(first)
        assert next(stream).payload.delta == "a"
        with pytest.raises(LineTooLongError, match=r"turn tu1: a line of 200\d\d\d bytes \(item/completed\)"):
            next(stream)
        assert texts(client.turn_notifications(second)) == "b"
        client.request("turn/interrupt", {"thread_id": "th1", "turn_id": "tu1"})
        with pytest.raises(InternalRpcError, match="the answer was too long"):
            client.request("fake/big")
        assert client.request("fake/small") == {}
        assert nothing_is_held(client)


def test_a_completion_beyond_the_cap_ends_its_turn() -> None:
    items = [{"type": "agentMessage", "id": "i", "text": "$big"}]
    steps = [started("tu"), completed("th", "tu", items=items), ["answer", "fake/x", {}]]
    with connected(*steps, max_line_bytes=100_000) as client:
        with pytest.raises(LineTooLongError):
            client.wait_for_turn_completed(start_turn(client))
        client.request("fake/x")
        assert nothing_is_held(client)


def test_a_turn_whose_stream_broke_can_be_interrupted() -> None:
    """The turn goes on without us, and costs."""
    steps = [
        ["answer", "thread/start", thread_started("th")],
        started("tu"),
        message("th", "tu", "$big"),
        ["take", "turn/interrupt"],
        ["send", {"method": "warning", "params": {"message": "interrupted"}}],
        ["answer", "fake/never", {}],
    ]
    config = fake(*steps)
    with Codex(config, transport=StdioTransport(config, max_line_bytes=100_000)) as codex:
        turn = codex.thread_start().turn("hi")
        with pytest.raises(LineTooLongError):
            turn.run()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            interrupting = pool.submit(turn.interrupt)
            assert next_of(codex.client, "warning").payload.message == "interrupted"
            codex.close()
            with pytest.raises(TransportClosedError):
                interrupting.result(WAIT_S)


def thread_started(id: str) -> dict[str, Any]:
    """Return what the real app-server answers to thread/start."""
    thread = {
        "id": id,
        "sessionId": id,
        "preview": "",
        "ephemeral": True,
        "modelProvider": "fake",
        "createdAt": 1,
        "updatedAt": 1,
        "status": {"type": "idle"},
        "cwd": "/",
        "cliVersion": "0",
        "source": "appServer",
        "turns": [],
        "projectId": None,
    }
    return {
        "thread": thread,
        "model": "fake",
        "modelProvider": "fake",
        "cwd": "/",
        "approvalPolicy": "never",
        "approvalsReviewer": "user",
        "sandbox": {"type": "readOnly"},
    }


# Questions of the app-server.

APPROVAL = "item/commandExecution/requestApproval"


def ask(id: Any, method: str, params: Any = None) -> list[Any]:
    params = {"threadId": "th", "turnId": "tu", "itemId": "i"} if params is None else params
    return ["send", {"id": id, "method": method, "params": params}]


def told(client: AppServerClient) -> dict[str, Any]:
    answer: dict[str, Any] = next_of(client, "fake/told").params
    return answer


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (APPROVAL, {"decision": "decline"}),
        ("item/fileChange/requestApproval", {"decision": "decline"}),
        ("item/permissions/requestApproval", {"permissions": {}}),
        ("item/tool/requestUserInput", {"answers": {}}),
        ("mcpServer/elicitation/request", {"action": "decline"}),
        ("item/tool/call", {"contentItems": [], "success": False}),
        ("applyPatchApproval", {"decision": "denied"}),
        ("execCommandApproval", {"decision": "denied"}),
    ],
)
def test_without_a_handler_every_question_is_declined(method: str, answer: Any) -> None:
    with connected(ask("q1", method), ["told", "q1"], ask(0, method), ["told", 0]) as client:
        assert told(client) == {"id": "q1", "result": answer}
        assert told(client) == {"id": 0, "result": answer}


@pytest.mark.parametrize("method", ["something/new", "currentTime/read", "attestation/generate"])
def test_a_question_the_client_does_not_know_is_answered_too(method: str) -> None:
    with connected(ask(7, method, {}), ["told", 7]) as client:
        answer = told(client)
    assert answer["error"]["code"] == -32601
    assert method in answer["error"]["message"]


def test_a_handler_answers_questions() -> None:
    seen: list[tuple[str, Any]] = []

    def handler(method: str, params: dict[str, Any]) -> dict[str, Any]:
        seen.append((method, params))
        return {"decision": "accept"}

    steps = [ask(1, APPROVAL), ["told", 1], ask(2, "something/new", {"a": [None]}), ["told", 2]]
    with connected(*steps, handler=handler) as client:
        assert told(client) == {"id": 1, "result": {"decision": "accept"}}
        assert told(client) == {"id": 2, "result": {"decision": "accept"}}
    assert seen == [
        (APPROVAL, {"threadId": "th", "turnId": "tu", "itemId": "i"}),
        ("something/new", {"a": [None]}),
    ]


def raising(method: str, params: dict[str, Any]) -> Any:
    raise RuntimeError("handler broke")


@pytest.mark.parametrize(
    "handler",
    [
        raising,
        lambda method, params: None,
        lambda method, params: "accept",
        lambda method, params: {"decision": object()},
        lambda method, params: {"decision": "\ud800"},
    ],
    ids=["raises", "none", "text", "not json", "surrogate"],
)
def test_a_bad_handler_declines_and_harms_nobody(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    steps = [ask(1, APPROVAL), ["told", 1], ["answer", "fake/x", {}]]
    with connected(*steps, handler=handler) as client:
        assert told(client) == {"id": 1, "result": {"decision": "decline"}}
        assert client.request("fake/x") == {}
    assert "the approval handler failed" in caplog.text


def test_a_question_with_odd_params_is_declined(caplog: pytest.LogCaptureFixture) -> None:
    handler: Callable[..., Any] = lambda method, params: {"decision": "accept"}  # noqa: E731
    with connected(ask(1, APPROVAL, [1, 2]), ["told", 1], handler=handler) as client:
        assert told(client) == {"id": 1, "result": {"decision": "decline"}}


def test_a_slow_handler_stops_nothing_else() -> None:
    """The handler may even use the client itself."""
    release = threading.Event()

    def handler(method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert release.wait(WAIT_S)
        return dict(client.request("fake/inner"))

    steps = [
        ask(1, APPROVAL),
        ["answer", "fake/x", {}],
        ["answer", "fake/inner", {"decision": "cancel"}],
        ["told", 1],
    ]
    with connected(*steps, handler=handler) as client:
        assert client.request("fake/x") == {}
        release.set()
        assert told(client) == {"id": 1, "result": {"decision": "cancel"}}


# How a process ends.


def wait_in_every_way(
    client: AppServerClient, pool: concurrent.futures.ThreadPoolExecutor
) -> list[concurrent.futures.Future[Any]]:
    """A request, a started turn, a followed turn and the notifications of no turn: all of them waiting."""
    entered = threading.Barrier(5)

    def waiting(wait: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            entered.wait(WAIT_S)
            return wait()

        return run

    turn = start_turn(client)
    next_of(client, "item/agentMessage/delta")
    streams = [client.turn_notifications(turn), client.turn_notifications("foreign")]
    futures = [
        pool.submit(waiting(lambda: client.request("fake/never"))),
        pool.submit(waiting(lambda: list(streams[0]))),
        pool.submit(waiting(lambda: list(streams[1]))),
        pool.submit(waiting(lambda: client.next_notification(WAIT_S))),
    ]
    entered.wait(WAIT_S)
    return futures


def test_a_killed_process_fails_every_waiter_and_every_later_call(pump: str) -> None:
    steps = [["stderr", "first words"], ["stderr", "last words"], started("tu"), FOREIGN, ["take", "fake/never"]]
    with connected(*steps) as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = wait_in_every_way(client, pool)
        os.kill(pid_of(client), signal.SIGKILL)
        for future in futures:
            with pytest.raises(TransportClosedError, match="killed by SIGKILL") as caught:
                future.result(WAIT_S)
            assert caught.value.stderr_lines == ("first words", "last words")
            assert "last words" in str(caught.value)
        assert client.held == dict.fromkeys(client.held, 0)
        for call in (
            lambda: client.request("fake/x"),
            lambda: start_turn(client),
            lambda: client.turn_notifications("other"),
            lambda: client.next_notification(WAIT_S),
        ):
            for _ in range(2):
                with pytest.raises(TransportClosedError, match="killed by SIGKILL"):
                    call()


def test_what_came_before_the_end_can_still_be_read(pump: str) -> None:
    steps = [started("tu"), delta("th", "tu", "a"), ["send", {"method": "warning", "params": {"message": "w"}}]]
    with connected(*steps, ["take", "fake/exit"], ["exit", 3]) as client:
        turn = start_turn(client)
        with pytest.raises(TransportClosedError, match="exit code 3"):
            client.request("fake/exit")
        stream = client.turn_notifications(turn)
        assert next(stream).payload.delta == "a"
        with pytest.raises(TransportClosedError, match="exit code 3"):
            next(stream)
        assert next_of(client, "warning").payload.message == "w"
        with pytest.raises(TransportClosedError):
            client.next_notification(WAIT_S)


def test_a_sticky_error_does_not_grow() -> None:
    """Raised for ever, it must not hold every frame that it was ever raised in."""
    with connected(["take", "fake/x"], ["exit", 0]) as client:
        for wait in (lambda: client.request("fake/x"), lambda: client.next_notification(WAIT_S)):
            depths = []
            for _ in range(5):
                with pytest.raises(TransportClosedError) as caught:
                    wait()
                depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
            assert max(depths[1:]) == min(depths[1:])


def test_a_process_that_dies_at_once(pump: str) -> None:
    config = AppServerConfig(launch_args_override=("sh", "-c", "echo cannot open the database >&2; exit 70"))
    with pytest.raises(TransportClosedError, match=r"exit code 70\n  stderr: cannot open the database") as caught:
        Codex(config)
    assert caught.value.stderr_lines == ("cannot open the database",)


def test_last_words_without_a_newline_and_too_many_of_them(pump: str) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; printf unfinished >&2; exit 1"
    with pytest.raises(TransportClosedError) as caught:
        Codex(AppServerConfig(launch_args_override=("sh", "-c", script)))
    assert caught.value.stderr_lines[-2:] == ("line 1999", "unfinished")
    assert len(caught.value.stderr_lines) == 41


def test_words_between_the_end_of_stdout_and_the_exit(pump: str) -> None:
    """stdout ends first; what is said after that still explains the end."""
    words = "exec 1>&-; cat >/dev/null; echo said late >&2; exit 4"
    with pytest.raises(TransportClosedError, match="exit code 4") as caught:
        Codex(AppServerConfig(launch_args_override=("sh", "-c", words)))
    assert caught.value.stderr_lines == ("said late",)


def test_a_process_that_closes_stdout_is_ended(pump: str) -> None:
    steps = [["take", "fake/x"], ["close_stdout"], ["take", "never"]]
    with connected(*steps) as client, pytest.raises(TransportClosedError, match="is gone: exit code 0"):
        client.request("fake/x")


def test_a_child_that_holds_stdout_does_not_hide_the_death() -> None:
    """The death is noticed although the pipe stays open, and the child ends with it (seen by the check at the end)."""
    with connected(["holder"], ["take", "fake/x"]) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        next_of(client, "fake/holder")
        waiting = pool.submit(client.request, "fake/x")
        os.kill(pid_of(client), signal.SIGKILL)
        with pytest.raises(TransportClosedError, match="killed by SIGKILL"):
            waiting.result(WAIT_S)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_close_ends_a_process_that_ignores_everything(pump: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """stdin closed, SIGTERM ignored, and its child too: SIGKILL for all of the group."""
    monkeypatch.setattr(codex_app_server._runtime.child_process, "EXIT_AFTER_TERM_S", 0.2)  # type: ignore[attr-defined]
    stop = codex_app_server._runtime.child_process.stop  # type: ignore[attr-defined]
    monkeypatch.setattr(
        codex_app_server._runtime.child_process,  # type: ignore[attr-defined]
        "stop",
        lambda process, **_: stop(process, after_stdin_s=0.2, after_term_s=0.2),
    )
    script = """trap '' TERM; sleep 60 & echo '{"method":"fake/ready"}'; while :; do sleep 60; done"""
    client = AppServerClient(AppServerConfig(launch_args_override=("sh", "-c", script)))
    with client:
        next_of(client, "fake/ready")
        pid = pid_of(client)
    assert not is_running(pid)


@pytest.mark.parametrize("end", ["read line", "kill -KILL $$"])
def test_what_a_process_leaves_in_a_group_of_its_own_is_ended(end: str, pump: str) -> None:
    """A sandbox that waits for its dead parent is left so by codex; after a clean end, and after a death."""
    script = f"""set -m; sleep 60 >/dev/null 2>&1 & echo '{{"method":"fake/ready","params":{{"pid":'$!'}}}}'; {end}"""
    with AppServerClient(AppServerConfig(launch_args_override=("bash", "-c", script))) as client:
        child = next_of(client, "fake/ready").params["pid"]
        assert isinstance(child, int)
    assert not is_running(child)


def test_close_fails_who_still_waits(pump: str) -> None:
    with connected(started("tu"), FOREIGN, ["take", "fake/never"]) as client:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            *futures, notifications = wait_in_every_way(client, pool)
            client.close()
            client.close()
            for future in futures:
                with pytest.raises(TransportClosedError, match="the client was closed"):
                    future.result(WAIT_S)
            # They have come to their end, which is nothing to complain of.
            assert notifications.result(WAIT_S) is None
            assert client.next_notification(WAIT_S) is None
        with pytest.raises(TransportClosedError):
            client.request("fake/x")
        with pytest.raises(TransportClosedError):
            client.notify("fake/x")


def test_a_process_is_ended_only_once(pump: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its end was seen, its pid may belong to somebody else: close() must not send signals to it."""
    with connected(["take", "fake/x"], ["exit", 0]) as client:
        with pytest.raises(TransportClosedError):
            client.request("fake/x")
        signalled: list[int] = []
        monkeypatch.setattr(os, "killpg", lambda group, number: signalled.append(group))
        client.close()
    assert signalled == []


def test_a_client_that_was_not_started_or_is_closed() -> None:
    client = AppServerClient(fake())
    with pytest.raises(TransportClosedError, match="never started"):
        client.request("fake/x")
    client.close()
    client.close()
    with pytest.raises(TransportClosedError):
        client.start()


def test_a_transport_is_started_once() -> None:
    with connected() as client, pytest.raises(TransportClosedError, match="started or closed before"):
        client.start()


def test_nothing_is_left_when_no_thread_can_be_started(pump: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check after each test sees that no process and no pipe is left."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("codex-app-server"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(TransportClosedError, match="can't start new thread"):
        Codex(fake())


# Finding and starting the binary.


def test_a_binary_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BinaryNotFoundError, match=f"codex binary not found at {tmp_path}/codex; set codex_bin to"):
        Codex(AppServerConfig(codex_bin=tmp_path / "codex"))
    with pytest.raises(BinaryNotFoundError, match="cannot start /no/such/program: No such file"):
        Codex(AppServerConfig(launch_args_override=("/no/such/program",)))
    assert issubclass(BinaryNotFoundError, FileNotFoundError)


def test_a_binary_that_cannot_be_run(tmp_path: Path) -> None:
    path = tmp_path / "codex"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o644)
    with pytest.raises(StartError, match="is not executable; chmod") as caught:
        Codex(AppServerConfig(codex_bin=path))
    assert (caught.value.kind, isinstance(caught.value, BinaryNotFoundError)) == ("not_executable", False)
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    with pytest.raises(StartError, match="names the interpreter /no/such/interpreter, which does not exist") as caught:
        Codex(AppServerConfig(codex_bin=path))
    assert (caught.value.kind, isinstance(caught.value, BinaryNotFoundError)) == ("interpreter_not_found", False)


def test_a_relative_binary_is_found_from_here_not_from_its_working_directory(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "codex"
    fake = Path(__file__).parents[1] / "harness" / "fake_app_server.py"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -S -E {fake} '[]'\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    with Codex(AppServerConfig(codex_bin="./codex", cwd=work)) as codex:
        assert codex.metadata.user_agent == "fake/0.0.0"


def test_no_runtime_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codex_cli_bin", None)
    with pytest.raises(BinaryNotFoundError, match=r"install openai-codex-cli-bin==\d"):
        Codex(AppServerConfig())


def test_a_runtime_package_without_its_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise FileNotFoundError("openai-codex-cli-bin is installed but missing its binary")

    monkeypatch.setattr("codex_cli_bin.bundled_codex_path", missing)
    with pytest.raises(BinaryNotFoundError, match="missing its binary; reinstall openai-codex-cli-bin=="):
        Codex(AppServerConfig())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"config_overrides": ("model",)}, "config override 'model' is not of the form key=value"),
        ({"config_overrides": ("=x",)}, "config override '=x' is not"),
        ({"launch_args_override": ()}, r"launch_args_override is \(\); give the whole command line as a tuple"),
        ({"launch_args_override": "codex app-server"}, "launch_args_override is 'codex app-server'"),
        ({"cwd": "/no/such/directory"}, "cwd '/no/such/directory' is not a directory"),
    ],
)
def test_configurations_that_cannot_work_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        AppServerConfig(**fields)


def test_the_command_line_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "1")
    config = AppServerConfig(config_overrides=("a.b=1", 'model="x"'), env={"MINE": "2"})
    argv = config.argv()
    assert argv[1:] == ["--config", "a.b=1", "--config", 'model="x"', "app-server", "--listen", "stdio://"]
    assert Path(argv[0]).name == "codex"
    environ = config.environ()
    assert (environ["FROM_OUTSIDE"], environ["MINE"]) == ("1", "2")


def test_requests_that_cannot_be_sent_are_refused() -> None:
    """Nothing reaches the app-server: its next request is the good one."""
    with connected(["answer", "fake/x", {"id": "$1"}]) as client:
        for params in ({"text": "\ud800"}, {"x": object()}):
            with pytest.raises(InvalidInputError, match="fake/x cannot be sent as UTF-8 JSON"):
                client.request("fake/x", params)
            with pytest.raises(InvalidInputError, match="fake/x cannot be sent as UTF-8 JSON"):
                client.notify("fake/x", params)
        for params in (
            {"thread_id": "th", "input": [{"type": "text", "text": "\ud800"}]},
            {"thread_id": 5, "input": []},
            {"thread_id": "th"},
            {"thread_id": "th", "input": [], "output_schema": {"x": object()}},
            {"thread_id": "th", "input": [], "output_schema": {"x": "\ud800"}},
        ):
            with pytest.raises(InvalidInputError, match="TurnStartParams"):
                client.request("turn/start", params)
        assert client.request("fake/x") == {"id": "2"}
        assert nothing_is_held(client)
