"""The public API on the real runtime: the same tests for one app-server and for a pool, sync and async.

An async client stands behind `Blocking`, which runs its coroutines on an event loop in a thread of its own, so that
each test is written once.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import json
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_app_server import config as fake
from pydantic import BaseModel

from codex_app_server import (
    ApprovalMode,
    AppServerConfig,
    AsyncCodex,
    Codex,
    ExternalMessage,
    ImageInput,
    InvalidInputError,
    InvalidRequestError,
    JsonRpcError,
    LocalImageInput,
    MethodNotFoundError,
    Notification,
    OutputTypeError,
    RequestTimeoutError,
    Sandbox,
    ServerBusyError,
    TextInput,
    ThreadBusyError,
    TransportClosedError,
    TurnEndedError,
    TurnFailedError,
    UnknownTurnError,
    astream_text,
    operations,
    retry_on_overload,
    stream_text,
)
from codex_app_server.generated import models
from codex_app_server.generated.routing import REQUESTS
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool
from codex_pool.client.transport import PoolTransport
from codex_pool.runtime import processes

pytestmark = [pytest.mark.real, pytest.mark.timeout(30)]

WAIT_S = 20.0
SETTLE_S = 5.0
NOWHERE = "01a20254-f930-7bc3-a8cc-000000000000"
APPROVAL = "item/commandExecution/requestApproval"
SIDES = [(transport, kind) for transport in ("stdio", "pool") for kind in ("sync", "async")]
# For what only a pool has, and what only tasks can do.
of_a_pool = pytest.mark.parametrize("way", [way for way in SIDES if way[0] == "pool"], indirect=True, ids="-".join)
of_tasks = pytest.mark.parametrize("way", [way for way in SIDES if way[1] == "async"], indirect=True, ids="-".join)


class Blocking:
    """An async object in the clothes of its sync twin."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not inspect.isroutine(value):
            return self._adapted(value)

        def call(*args: Any, **options: Any) -> Any:
            async def on_loop() -> Any:
                result = value(*args, **options)
                return await result if inspect.isawaitable(result) else result

            return self._adapted(self._run(on_loop()))

        return call

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def _adapted(self, value: Any) -> Any:
        ours = type(value).__module__.startswith("codex_app_server.") and type(value).__name__.startswith("Async")
        return Blocking(value, self._loop) if ours or hasattr(value, "__aiter__") else value

    def __iter__(self) -> Blocking:
        return self._adapted(self._target.__aiter__())  # type: ignore[no-any-return]

    def __next__(self) -> Any:
        async def on_loop() -> Any:
            return await self._target.__anext__()

        try:
            return self._run(on_loop())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Blocking:
        return self._adapted(self._run(self._target.__aenter__()))  # type: ignore[no-any-return]

    def __exit__(self, *reason: object) -> None:
        self._run(self._target.__aexit__(*reason))


@dataclass
class World:
    """State that all tests share: the model, an event loop in a thread, the pool, and how a client is made."""

    root: Path
    model: LoopbackModel
    pool: Pool
    loop: asyncio.AbstractEventLoop

    def config(self, name: str, **fields: Any) -> AppServerConfig:
        """The real app-server in a home of that name."""
        home = self.root / name
        if not home.exists():
            write_loopback_home(home, self.model.base_url)
        environ = {"CODEX_HOME": str(home), "RUST_LOG": "error"}
        return AppServerConfig(
            cwd=self.work, env=environ, config_overrides=("features.shell_snapshot=false",), **fields
        )

    @property
    def work(self) -> Path:
        return self.root / "work"

    @contextlib.contextmanager
    def client(self, kind: str, source: AppServerConfig | Pool, handler: Any = None) -> Iterator[Codex]:
        """A client of an app-server of its own, or of a pool."""
        options: dict[str, Any] = {"approval_handler": handler}
        if isinstance(source, Pool):
            options["transport"] = PoolTransport(source.endpoint)
        else:
            options["config"] = source
        with Codex(**options) if kind == "sync" else Blocking(AsyncCodex(**options), self.loop) as codex:
            yield codex  # type: ignore[misc]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    root = Path(tempfile.mkdtemp(prefix="cp-sdk-", dir="/tmp"))
    below = set(processes.descendants(processes.os.getpid()))
    loop = asyncio.new_event_loop()
    loop.set_default_executor(executor := ThreadPoolExecutor(1))
    executor.submit(int).result()
    thread = threading.Thread(target=loop.run_forever, name="the loop")
    thread.start()
    (root / "work").mkdir()
    try:
        with LoopbackModel() as model:
            world = World(root, model, Pool(), loop)
            endpoint = f"ipc://{root / 'run' / 's.sock'}"
            with Pool(2, world.config("pool"), endpoint=endpoint, log_file=root / "log") as world.pool:
                yield world
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        executor.shutdown()
        loop.close()
    assert set(processes.descendants(processes.os.getpid())) <= below
    shutil.rmtree(root)


@dataclass
class Side:
    """One of the four ways in. `handler` answers approvals; a test sets it."""

    world: World
    transport: str
    kind: str
    codex: Codex
    handler: Callable[[str, Any], Any] | None = None
    asked: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> LoopbackModel:
        return self.world.model

    def thread(self, **options: Any) -> Any:
        return self.codex.thread_start(**({"ephemeral": True} | options))

    def answer(self, method: str, params: Any) -> Any:
        self.asked.append((method, params))
        assert self.handler is not None
        return self.handler(method, params)

    async def answer_async(self, method: str, params: Any) -> Any:
        answer = self.answer(method, params)
        return await answer if inspect.isawaitable(answer) else answer

    def seen(self, prompt: str, outcome: str | None = None) -> Any:
        """The request that the model got for a prompt, once it has come, or has come to that end."""
        return self.model.wait_for(
            lambda record: prompt in record.prompt and outcome in (None, record.outcome), timeout_s=WAIT_S
        )

    def notified(self, method: str, thread_id: str) -> Any:
        """The next notification of that method about the thread that belongs to no turn of this client."""
        for notification in self.codex.notifications():
            if notification.method == method and notification.params.get("threadId") == thread_id:
                return notification.payload
        raise AssertionError("the notifications ended")


@pytest.fixture(scope="module", params=SIDES, ids="-".join)
def way(request: pytest.FixtureRequest, world: World) -> Iterator[Side]:
    transport, kind = request.param
    side = Side(world, transport, kind, None)  # type: ignore[arg-type]
    source = world.pool if transport == "pool" else world.config(f"{transport}-{kind}")
    with world.client(kind, source, side.answer if kind == "sync" else side.answer_async) as side.codex:
        yield side


@pytest.fixture
def side(way: Side) -> Iterator[Side]:
    """One of the four ways in; when the test is over its client holds nothing for anybody."""
    way.handler, way.asked = None, []
    yield way
    deadline = time.monotonic() + SETTLE_S
    while any(way.codex.client.held.values()):
        assert time.monotonic() < deadline, way.codex.client.held
        way.codex.models()


def wait_ended(side: Side, thread_id: str, statuses: list[str]) -> None:
    """Wait until the stored turns of a thread have ended like this, and none runs."""
    deadline = time.monotonic() + WAIT_S
    while True:
        thread = side.codex.client.request("thread/read", {"thread_id": thread_id, "include_turns": True}).thread
        # While a turn runs, what is stored of it may look as if it had been interrupted.
        found = [turn.status for turn in thread.turns], thread.status.type
        if found == (statuses, "idle"):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def token(name: str = "token") -> str:
    return f"{name}-{secrets.token_hex(4)}"


def is_delta(notification: Any) -> bool:
    return bool(notification.method == "item/agentMessage/delta")


def until_delta(turn: Any) -> Any:
    """The stream of a turn, read to its first delta: the model answers it."""
    stream = turn.stream()
    assert any(is_delta(notification) for notification in stream)
    return stream


@contextlib.contextmanager
def nothing_comes(side: Side) -> Iterator[None]:
    """Hold what the app-server sends back until the block is left: no answer is in time."""
    connection = side.codex.client._connection
    look, lock = connection.on_batch, threading.Lock()
    held: list[Any] | None = []

    def hold(batch: Any) -> None:
        with lock:
            look(batch) if held is None else held.append(batch)

    connection.on_batch = hold  # type: ignore[method-assign]
    try:
        yield
    finally:
        with lock:
            for batch in held:
                look(batch)
            held = None
            del connection.on_batch


@contextlib.contextmanager
def beside(function: Callable[..., Any], *args: Any, **options: Any) -> Iterator[Any]:
    """The call runs on a thread of its own."""
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(function, *args, **options)


# One turn.


def test_a_turn_run_to_its_end(side: Side) -> None:
    thread = side.thread(ephemeral=False)
    prompt = f'{token()} [[text "Four." deltas=3]]'
    result = thread.run(prompt)
    assert (result.status, result.error, result.final_response) == ("completed", None, "Four.")
    assert [item.type for item in result.items] == ["userMessage", "agentMessage"]
    assert result.items[0].content[0].text == prompt
    assert result.usage.total.total_tokens >= result.usage.last.output_tokens > 0
    assert 0 <= result.completed_at - result.started_at < WAIT_S
    assert 0 <= result.duration_ms < WAIT_S * 1000
    assert side.seen(prompt).turn_id == result.id
    again = thread.run(token())
    assert again.id != result.id and again.usage.total.total_tokens > result.usage.total.total_tokens
    assert [turn.id for turn in thread.read(include_turns=True).thread.turns] == [result.id, again.id]


def test_a_turn_streamed(side: Side) -> None:
    turn = side.thread().turn('[[text "a b c d e f" deltas=6]]')
    seen = list(turn.stream())
    methods = [notification.method for notification in seen]
    head = ["turn/started"] if side.transport == "stdio" else ["pool/turn/assigned", "turn/started"]
    assert (methods[: len(head)], methods[-1]) == (head, "turn/completed")
    assert [n.payload.delta for n in seen if is_delta(n)] == ["a", " b", " c", " d", " e", " f"]
    for notification in seen:
        params = notification.params
        assert (params["threadId"], params.get("turnId") or params["turn"]["id"]) == (turn.thread_id, turn.id)
    assert list(turn.stream()) == []


def test_without_deltas_where_the_transport_can(side: Side) -> None:
    turn = side.thread().turn('[[text "a b c" deltas=3]]', interest="items")
    seen = list(turn.stream())
    assert sum(map(is_delta, seen)) == (0 if side.transport == "pool" else 3)
    assert [n.params["item"].get("text") for n in seen if n.method == "item/completed"][-1:] == ["a b c"]


def test_the_text_alone(side: Side) -> None:
    turn = side.thread().turn('[[text "a b c" deltas=3]]')
    assert list(turn.text()) == ["a", " b", " c"]
    pieces = []
    with pytest.raises(TurnFailedError) as caught:
        for piece in side.thread().turn("[[failed server_is_overloaded after_deltas=2]]").text():
            pieces.append(piece)
    assert len(pieces) == 2
    assert caught.value.codex_error_info == "serverOverloaded"


def test_turns_at_once_hold_only_their_own(side: Side) -> None:
    hanging = side.thread().turn("[[hang 2]]")
    stream = until_delta(hanging)
    texts = [" ".join([token()] * 5) for _ in range(3)]
    turns = [side.thread().turn(f'[[text "{text}" deltas=5 pace_ms=10]]') for text in texts]
    heard: list[str] = [""] * 3
    for pieces in itertools.zip_longest(*(turn.text() for turn in turns), fillvalue=""):
        heard = [before + piece for before, piece in zip(heard, pieces, strict=True)]
    assert heard == texts
    hanging.interrupt()
    rest = list(stream)
    assert sum(map(is_delta, rest)) <= 1
    assert rest[-1].payload.turn.status == "interrupted"


def test_a_failed_turn(side: Side) -> None:
    thread = side.thread()
    with pytest.raises(TurnFailedError) as caught:
        thread.run("[[http_error 429]]")
    assert (caught.value.kind, caught.value.safe_to_retry) == ("failed", False)
    assert caught.value.codex_error_info.response_too_many_failed_attempts.http_status_code == 429
    assert thread.run('[[text "on"]]').final_response == "on"


# Types of answers, presets, what is said.


class Verdict(BaseModel):
    answer: int
    why: str | None = None


def test_an_answer_of_a_type(side: Side) -> None:
    thread, mark = side.thread(), token()
    verdict = thread.run(f"""{mark} [[json '{{"answer": 4, "why": "sum"}}']]""", output_type=Verdict)
    assert verdict == Verdict(answer=4, why="sum")
    schema = side.seen(mark).output_schema
    assert (schema["required"], schema["additionalProperties"]) == (["answer", "why"], False)
    assert thread.run("[[json '[1, 2]']]", output_type=list[int]) == [1, 2]
    for wrong in ("""[[json '{"answer": "many"}']]""", '[[text "four"]]'):
        with pytest.raises(OutputTypeError) as caught:
            thread.run(wrong, output_type=Verdict)
        assert caught.value.result.status == "completed"
        assert caught.value.result.final_response in ('{"answer":"many"}', "four")
    with pytest.raises(InvalidInputError, match="output_schema"):
        thread.run("x", output_type=Verdict, output_schema={"type": "object"})
    with pytest.raises(InvalidInputError, match="no JSON schema"):
        thread.run("x", output_type=Side)
    with pytest.raises(TurnFailedError):
        thread.run("[[http_error 500]]", output_type=Verdict)


def test_sandbox_presets(side: Side) -> None:
    thread = side.thread(sandbox=Sandbox.workspace_write)
    files = [side.world.work / token("file") for _ in range(3)]
    thread.run(f'[[tool_call "echo in > {files[0]}"]] [[text "done"]]')
    thread.run(f'[[tool_call "echo in > {files[1]}"]] [[text "done"]]', sandbox=Sandbox.read_only)
    thread.run(f'[[tool_call "echo in > {files[2]}"]] [[text "done"]]', sandbox="workspace-write")
    assert [file.exists() for file in files] == [True, False, True]


def test_approval_presets(side: Side) -> None:
    def settings(thread: Any) -> tuple[Any, Any]:
        found = side.codex.client.request("thread/resume", {"thread_id": thread.id})
        return found.approval_policy, found.approvals_reviewer

    expected = {
        ApprovalMode.deny_all: ("never", "user"),
        ApprovalMode.auto_review: ("on-request", "auto_review"),
        "ask": ("on-request", "user"),
    }
    for mode, found in expected.items():
        thread = side.thread(approval_mode=mode, ephemeral=False)
        thread.run("hello")
        assert settings(thread) == found
    for mode, found in expected.items():
        thread.run("hello", approval_mode=mode)
        assert settings(thread) == found


def test_presets_that_contradict_are_refused_before_anything_is_sent(side: Side) -> None:
    thread, mark = side.thread(), token()
    refused: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (side.thread, {"approval_mode": "ask", "approval_policy": "never"}),
        (side.thread, {"approval_mode": "ask", "approvals_reviewer": "user"}),
        (side.thread, {"approval_mode": "maybe"}),
        (thread.run, {"input": mark, "approval_mode": "ask", "approval_policy": "never"}),
        (thread.run, {"input": mark, "sandbox": "read-only", "sandbox_policy": {"type": "readOnly"}}),
        (thread.run, {"input": mark, "sandbox": "readOnly"}),
        (thread.run, {"input": mark, "on_busy": "wait"}),
        (thread.run, {"input": ExternalMessage("tool", "")}),
    ]
    for call, options in refused:
        with pytest.raises(InvalidInputError):
            call(**options)
    with pytest.raises(TypeError, match="did you mean 'sandbox'"):
        thread.run(mark, sandbx="read-only")
    last = token()
    thread.run(last)
    assert side.seen(last).thread_id == thread.id
    assert not [record for record in side.model.requests if mark in record.prompt]


def test_bad_input_is_refused_before_the_turn(side: Side, tmp_path: Path) -> None:
    thread, mark, file, nothing = side.thread(), token(), tmp_path / "file", str(tmp_path / "nothing")
    file.write_text("no image, but a file")
    stored = side.thread(ephemeral=False)
    stored.run("hello")
    running = side.thread().turn("[[hang 1]]")
    until_delta(running)
    refused: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
        (thread.run, {"input": ""}, "expected a non-empty string"),
        (thread.run, {"input": []}, "give at least one item"),
        (thread.turn, {"input": f"{mark} \ud800"}, "lone surrogate at position"),
        (thread.run, {"input": [mark, TextInput("\udfff")]}, "lone surrogate"),
        (thread.run, {"input": mark, "client_user_message_id": "\ud800"}, "cannot be sent as UTF-8"),
        (thread.run, {"input": [mark, ImageInput(nothing)]}, "expected a data, http or https URL"),
        (thread.run, {"input": [mark, LocalImageInput(nothing)]}, f"image '{nothing}' cannot be used: No such file"),
        (thread.turn, {"input": LocalImageInput(str(tmp_path))}, "it is no file; expected a file on the machine of"),
        (running.steer, {"input": [mark, LocalImageInput(nothing)]}, "No such file"),
        (thread.run, {"input": mark, "cwd": nothing}, f"cwd '{nothing}' cannot be used: No such file or directory"),
        (thread.turn, {"input": mark, "cwd": str(file)}, "it is no directory"),
        (side.thread, {"cwd": nothing}, "No such file"),
        (side.codex.thread_resume, {"thread_id": stored.id, "cwd": nothing}, "No such file"),
        (side.codex.thread_fork, {"thread_id": stored.id, "cwd": nothing}, "No such file"),
        (thread.set_name, {"name": "\ud800"}, "cannot be sent as UTF-8"),
        (side.codex.client.request, {"method": "\ud800"}, "cannot be sent as UTF-8"),
    ]
    if side.transport == "stdio":
        refused.append((thread.run, {"input": mark, "cwd": "nothing"}, "cwd 'nothing' cannot be used"))
    for call, options, why in refused:
        with pytest.raises(InvalidInputError, match=re.escape(why)):
            call(**options)
    running.interrupt()
    assert running.run().status == "interrupted"
    last = token()
    result = thread.run([last, LocalImageInput(str(file))], cwd=str(tmp_path))
    assert result.status == "completed"
    assert side.seen(last).thread_id == thread.id
    assert not [record for record in side.model.requests if mark in record.prompt]


def test_a_text_that_an_enumeration_does_not_know_is_refused(side: Side) -> None:
    thread, mark = side.thread(), token()
    refused: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (side.thread, {"sandbox": "read"}),
        (side.thread, {"approval_policy": "sometimes"}),
        (side.codex.thread_list, {"sort_key": "colour"}),
        (thread.run, {"input": mark, "personality": "grumpy"}),
        (thread.turn, {"input": mark, "summary": "long"}),
        (thread.review, {"target": {"type": "everything"}}),
    ]
    for call, options in refused:
        with pytest.raises(InvalidRequestError, match=r"unknown variant .* expected one of"):
            call(**options)
    thread.run("last")
    assert not [record for record in side.model.requests if mark in record.prompt]


def test_a_thread_or_turn_that_does_not_exist(side: Side) -> None:
    thread = side.thread()
    (thread._target if side.kind == "async" else thread).id = NOWHERE
    codex = side.codex
    by_id = ("resume", "fork", "archive", "unarchive", "delete")
    calls: list[Callable[[], Any]] = [partial(getattr(codex, f"thread_{name}"), NOWHERE) for name in by_id]
    calls += [partial(thread.run, "x"), partial(thread.turn, "x"), thread.read, partial(thread.set_name, "x")]
    calls += [thread.compact, thread.review, thread.goal, thread.clear_goal, partial(thread.set_goal, "x")]
    for call in calls:
        with pytest.raises(InvalidRequestError, match=NOWHERE):
            call()
    with pytest.raises(InvalidRequestError):
        codex.thread_resume("no id of a thread")
    # Another client of a pool may run it, so a pool is asked.
    asks = [lambda turn: thread.follow(turn).run(), codex.client.turn_notifications]
    for ask in (*asks, codex.client.wait_for_turn_completed):
        with pytest.raises(UnknownTurnError, match="turn nobody is not known to this client"):
            ask("nobody")


def test_a_thread_with_another_writer(side: Side) -> None:
    """Two app-servers on one home; the other one is no worker of the pool."""
    thread = side.thread(ephemeral=False)
    thread.run("hello")
    home = "pool" if side.transport == "pool" else f"stdio-{side.kind}"
    with side.world.client("sync", side.world.config(home)) as other:
        with pytest.raises(InvalidRequestError, match=f"{thread.id}.* active writer"):
            other.thread_resume(thread.id)
        theirs = other.thread_start()
        theirs.run("hello")
        with pytest.raises(InvalidRequestError, match=f"{theirs.id}.* active writer"):
            side.codex.thread_resume(theirs.id)
    assert side.codex.thread_resume(theirs.id).run('[[text "free"]]').final_response == "free"


def test_notifications_end_when_the_client_is_closed(side: Side) -> None:
    source = side.world.pool if side.transport == "pool" else side.world.config(f"stdio-{side.kind}")
    with side.world.client(side.kind, source) as codex:
        codex.thread_start(ephemeral=True)
        with beside(list, codex.notifications()) as seen:
            codex.close()
            assert all(isinstance(notification, Notification) for notification in seen.result(WAIT_S))
        assert list(codex.notifications()) == []


def test_a_message_from_outside_is_not_the_users(side: Side) -> None:
    thread, mark = side.thread(), token("outside")
    thread.run("before")
    result = thread.run(ExternalMessage("ci", f"the build broke: {mark}"))
    assert result.status == "completed"
    record = side.model.wait_for(lambda record: record.turn_id == result.id, timeout_s=WAIT_S)
    assert any(mark in output for output in record.tool_outputs)
    assert not any(mark in text for text in record.user_texts)


# Busy threads.


def test_a_busy_thread_is_an_error(side: Side) -> None:
    thread, mark = side.thread(), token()
    first = thread.turn("[[hang 1]]")
    for call in (thread.run, thread.turn):
        with pytest.raises(ThreadBusyError) as caught:
            call(mark)
        assert (caught.value.thread_id, caught.value.turn_id) == (thread.id, first.id)
    first.interrupt()
    assert first.run().status == "interrupted"
    assert thread.run('[[text "free"]]').final_response == "free"
    assert not [record for record in side.model.requests if mark in record.prompt]


def test_a_busy_thread_is_waited_for(side: Side) -> None:
    thread, mark = side.thread(), token()
    first = thread.turn(f"first {mark} [[hang 1]]")
    with beside(thread.run, f'second {mark} [[text "after"]]', on_busy="queue") as second:
        side.seen(f"first {mark}", "hanging")
        assert not second.done()
        first.interrupt()
        assert second.result(WAIT_S).final_response == "after"
    assert first.run().status == "interrupted"
    records = [record for record in side.model.requests if mark in record.prompt]
    assert [record.prompt.split()[0] for record in records] == ["first", "second"]
    assert records[0].ended_at < records[1].received_at


def test_a_busy_thread_is_steered(side: Side) -> None:
    thread, mark = side.thread(), token("steered")
    first = thread.turn('[[text "a b c d e f g h" deltas=8 pace_ms=40]]')
    until_delta(first)
    second = thread.turn(f'{mark} [[text "as steered"]]', on_busy="steer")
    assert second.id == first.id
    assert second.run().final_response == "as steered"
    assert first.run().final_response == "as steered"
    assert side.seen(mark).turn_id == first.id


# Turns that nobody waits for any more.


def test_a_timeout_interrupts(side: Side) -> None:
    thread, prompt = side.thread(), f"{token()} [[hang 1]]"
    with pytest.raises(RequestTimeoutError, match=r"within 0\.3 s"):
        thread.run(prompt, timeout=0.3)
    side.seen(prompt, "disconnected")
    assert thread.run('[[text "free"]]', on_busy="queue", timeout=WAIT_S).final_response == "free"


def test_a_timeout_counts_while_the_thread_is_busy(side: Side) -> None:
    thread, mark = side.thread(), token()
    first = thread.turn("[[hang 1]]")
    with pytest.raises(RequestTimeoutError):
        thread.run(mark, timeout=0.3, on_busy="queue")
    first.interrupt()
    assert first.run().status == "interrupted"
    assert thread.run('[[text "free"]]').final_response == "free"
    assert not [record for record in side.model.requests if mark in record.prompt]


@of_a_pool
def test_a_timeout_counts_while_a_turn_waits_in_the_pool(side: Side) -> None:
    """Another client's turn runs on the thread, of which only the pool knows; what nobody waits for never starts."""
    with side.world.client("sync", side.world.pool) as other:
        thread = other.thread_start()
        thread.run("hello")
        first = thread.turn("[[hang 1]]")
        with pytest.raises(RequestTimeoutError, match=r"within 0\.3 s"):
            side.codex.thread_resume(thread.id).run("[[hang 1]]", timeout=0.3)
        first.interrupt()
        assert first.run().status == "interrupted"
        assert thread.run("hello").final_response
        wait_ended(side, thread.id, ["completed", "interrupted", "completed"])


def test_a_start_nobody_waits_for_is_interrupted(side: Side) -> None:
    thread, prompt = side.thread(ephemeral=False), f"{token()} [[hang 1]]"
    thread.run("hello")
    params = {"thread_id": thread.id, "input": [{"type": "text", "text": prompt}]}
    with nothing_comes(side), pytest.raises(RequestTimeoutError):
        side.codex.client.request("turn/start", params, timeout_s=0)
    wait_ended(side, thread.id, ["completed", "interrupted"])
    # The model was asked and left, or not asked at all.
    if any(record.prompt == prompt for record in side.model.requests):
        side.seen(prompt, "disconnected")


def test_an_interrupt_beside_another_ends_with_the_turn(side: Side) -> None:
    """The app-server never answers the second one."""
    turn = side.thread().turn("[[hang 1]]")
    assert any(is_delta(notification) for notification in turn.stream())
    side.codex.client.perform(operations.turn_interrupt(turn.thread_id, turn.id))
    turn.interrupt()
    turn.interrupt()
    assert turn.run().status == "interrupted"


def test_a_stream_that_is_closed_interrupts(side: Side) -> None:
    prompt = f"{token()} [[hang 1]]"
    turn = side.thread().turn(prompt)
    with turn.stream() as stream:
        assert any(is_delta(notification) for notification in stream)
    side.seen(prompt, "disconnected")
    assert turn.run().status == "interrupted"


def test_text_that_is_closed_interrupts(side: Side) -> None:
    prompts = [f"{token()} [[hang 1]]" for _ in range(2)]
    turn = side.thread().turn(prompts[0])
    for text in (turn.text(), text_of(side, side.thread(), prompts[1])):
        with text as pieces:
            assert next(iter(pieces))
    for prompt in prompts:
        side.seen(prompt, "disconnected")
    assert turn.run().status == "interrupted"


def text_of(side: Side, thread: Any, prompt: str) -> Any:
    if side.kind == "sync":
        return stream_text(thread, prompt)
    return Blocking(astream_text(thread._target, prompt), side.world.loop)


def test_a_loop_that_is_broken_off_does_not(side: Side) -> None:
    prompt = f'{token()} [[text "a b c d e f" deltas=6 pace_ms=20]]'
    turn = side.thread().turn(prompt)
    for notification in turn.stream():
        if is_delta(notification):
            break
    for piece in turn.text():
        assert piece == " b"
        break
    assert turn.run().status == "completed"
    side.seen(prompt, "completed")


def test_a_detached_turn_goes_on(side: Side) -> None:
    thread, mark = side.thread(), token()
    text = '[[text "a b c d e f" deltas=6 pace_ms=40]]'
    turn = thread.turn(f"closed {mark} {text}", detach=True)
    with turn.stream() as stream:
        assert any(is_delta(notification) for notification in stream)
    assert turn.run().final_response == "a b c d e f"
    with pytest.raises(RequestTimeoutError):
        thread.run(f"timeout {mark} {text}", timeout=0.1, detach=True)
    assert thread.run("next", on_busy="queue").status == "completed"
    for each in ("closed", "timeout"):
        side.seen(f"{each} {mark}", "completed")


def test_a_detached_start_nobody_waits_for_goes_on(side: Side) -> None:
    thread, mark = side.thread(ephemeral=False), token()
    thread.run("hello")
    operation = operations.turn_start(thread.id, f'{mark} [[text "a b c" deltas=3]]', {}, "full")
    with nothing_comes(side), pytest.raises(RequestTimeoutError):
        side.codex.client.start_turn(operation, timeout_s=0, detach=True)
    wait_ended(side, thread.id, ["completed", "completed"])
    side.seen(mark, "completed")


def test_a_second_handle_on_a_running_turn(side: Side) -> None:
    thread = side.thread()
    turn = thread.turn('[[text "a b c d e f" deltas=6 pace_ms=40]]')
    stream = until_delta(turn)
    second, third = thread.follow(turn.id), thread.follow(turn.id)
    assert (second.id, second.thread_id) == (turn.id, thread.id)
    with third.stream() as brief:
        assert next(iter(brief)).params["threadId"] == thread.id
    heard = "".join(second.text())
    assert heard and "a b c d e f".endswith(heard)
    assert turn.run().final_response == "a b c d e f"
    assert list(stream) == []
    with pytest.raises(TurnEndedError):
        thread.follow(turn.id)


# Cancellation, which only tasks have.


@pytest.fixture
def tasks(side: Side) -> Callable[[Callable[[AsyncCodex], Coroutine[Any, Any, Any]]], Any]:
    """Runs `main(codex)` on the event loop of an async client."""
    blocking: Any = side.codex

    def run(main: Callable[[AsyncCodex], Coroutine[Any, Any, Any]]) -> Any:
        return blocking._run(asyncio.wait_for(main(blocking._target), WAIT_S))

    return run


@of_tasks
@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
def test_cancelling_a_run_interrupts_it(side: Side, tasks: Any, detach: bool) -> None:
    prompt = f'{token()} [[text "a b c d e f" deltas=6 pace_ms=60]]'

    async def main(codex: AsyncCodex) -> None:
        thread = await codex.thread_start(ephemeral=True)
        running = asyncio.ensure_future(thread.run(prompt, detach=detach))
        await asyncio.to_thread(side.model.wait_for, lambda r: r.prompt == prompt and r.deltas_sent)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    tasks(main)
    side.model.wait_for(lambda record: record.prompt == prompt and not record.running, timeout_s=WAIT_S)
    assert side.seen(prompt).outcome == ("completed" if detach else "disconnected")


@of_tasks
@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
def test_cancelling_who_reads_the_text_interrupts_it(side: Side, tasks: Any, detach: bool) -> None:
    prompt = f'{token()} [[text "a b c d e f" deltas=6 pace_ms=60]]'

    async def main(codex: AsyncCodex) -> None:
        turn = await (await codex.thread_start(ephemeral=True)).turn(prompt, detach=detach)
        first = asyncio.Event()

        async def read() -> None:
            async for _ in turn.text():
                first.set()

        reading = asyncio.ensure_future(read())
        await first.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    tasks(main)
    side.model.wait_for(lambda record: record.prompt == prompt and not record.running, timeout_s=WAIT_S)
    assert side.seen(prompt).outcome == ("completed" if detach else "disconnected")


@of_tasks
def test_cancelling_a_start_under_way_interrupts_it_once_it_is_answered(side: Side, tasks: Any) -> None:
    async def main(codex: AsyncCodex) -> str:
        thread = await codex.thread_start()
        await thread.run("hello")
        starting = asyncio.ensure_future(thread.turn("[[hang 1]]"))
        # One step of the task sends the request; the answer is not looked at before the next one.
        await asyncio.sleep(0)
        assert not starting.done()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return thread.id

    wait_ended(side, tasks(main), ["completed", "interrupted"])


# Approvals.


def escalate(side: Side, file: Path, codex: Codex | None = None) -> Any:
    """A turn in which the model wants to write a file outside of the sandbox."""
    thread = (codex or side.codex).thread_start(approval_mode="ask", sandbox="read-only", ephemeral=True)
    return thread.turn(f'[[tool_call "echo hi > {file}" escalate=true]] [[text "so be it"]]')


def command_of(result: Any) -> Any:
    (command,) = [item for item in result.items if item.type == "commandExecution"]
    return command


@pytest.mark.parametrize("form", ["model", "dict"])
def test_an_approval_lets_the_command_run(side: Side, tmp_path: Path, form: str) -> None:
    accept = models.CommandExecutionRequestApprovalResponse(decision="accept")
    answered_with_yes(side, tmp_path, {"model": accept, "dict": {"decision": "accept"}}[form])


@of_tasks
def test_an_approval_may_be_awaited(side: Side, tmp_path: Path) -> None:
    async def later() -> Any:
        return {"decision": "accept"}

    answered_with_yes(side, tmp_path, later())


def answered_with_yes(side: Side, tmp_path: Path, answer: Any) -> None:
    side.handler = lambda method, params: answer
    result = escalate(side, tmp_path / "file").run()
    assert (tmp_path / "file").read_text() == "hi\n"
    assert (result.final_response, command_of(result).status) == ("so be it", "completed")
    ((method, params),) = side.asked
    assert method == APPROVAL
    assert isinstance(params, models.CommandExecutionRequestApprovalParams)
    assert (params.turn_id, str(tmp_path / "file") in params.command) == (result.id, True)


@pytest.mark.parametrize("answer", ["decline", "raises", "nothing"])
def test_a_refusal_stops_the_command(side: Side, tmp_path: Path, answer: str) -> None:
    def handler(method: str, params: Any) -> Any:
        if answer == "raises":
            raise RuntimeError("the handler broke")
        return {"decision": "decline"} if answer == "decline" else None

    side.handler = handler
    result = escalate(side, tmp_path / "file").run()
    assert not (tmp_path / "file").exists()
    assert (result.status, command_of(result).status, len(side.asked)) == ("completed", "declined", 1)


def test_without_a_handler_the_command_is_declined(side: Side, tmp_path: Path) -> None:
    source = side.world.pool if side.transport == "pool" else side.world.config(f"stdio-{side.kind}")
    with side.world.client(side.kind, source) as codex:
        result = escalate(side, tmp_path / "file", codex).run()
    assert not (tmp_path / "file").exists()
    assert command_of(result).status == "declined"


def test_a_question_that_is_resolved_otherwise_is_withdrawn(side: Side, tmp_path: Path) -> None:
    """The turn is interrupted while the handler still thinks: its answer is not sent any more."""
    client = side.codex.client._target if side.kind == "async" else side.codex.client  # type: ignore[attr-defined]
    thinking, cancelled, release = threading.Event(), threading.Event(), threading.Event()
    asked: list[Any] = []

    def think(method: str, params: Any) -> Any:
        asked.extend(client._open_requests)
        thinking.set()
        assert release.wait(WAIT_S)
        return {"decision": "accept"}

    async def think_async() -> Any:
        asked.extend(client._open_requests)
        thinking.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    side.handler = think if side.kind == "sync" else lambda method, params: think_async()
    sent: list[bytes] = []
    answer, client._connection.answer = client._connection.answer, sent.append
    try:
        turn = escalate(side, tmp_path / "file")
        assert thinking.wait(WAIT_S)
        turn.interrupt()
        assert turn.run().status == "interrupted"
        resolved = side.notified("serverRequest/resolved", turn.thread_id)
        assert [resolved.request_id] == asked
        if side.kind == "async":
            assert cancelled.wait(WAIT_S)
        release.set()
        for thread in threading.enumerate():
            if thread.name == "codex-approval":
                thread.join(WAIT_S)
        assert (sent, list(client._open_requests)) == ([], [])
    finally:
        release.set()
        client._connection.answer = answer
    assert not (tmp_path / "file").exists()


def test_an_answered_question_is_resolved_under_its_id(side: Side, tmp_path: Path) -> None:
    client = side.codex.client._target if side.kind == "async" else side.codex.client  # type: ignore[attr-defined]
    asked: list[Any] = []

    def handler(method: str, params: Any) -> Any:
        asked.extend(client._open_requests)
        return {"decision": "accept"}

    side.handler = handler
    turn = escalate(side, tmp_path / "file")
    assert turn.run().status == "completed"
    assert [side.notified("serverRequest/resolved", turn.thread_id).request_id] == asked


# Threads.


def test_the_life_of_a_thread(side: Side) -> None:
    codex, mark = side.codex, token()

    def listed(**options: Any) -> dict[str, Any]:
        return {each.id: each for each in codex.thread_list(limit=100, **options).data}

    thread = side.thread(ephemeral=False)
    thread.run(f"{mark} hello")
    thread.set_name(mark)
    assert thread.read().thread.name == mark
    # In a pool the other workers do not know the name: their lists are put together.
    assert listed()[thread.id].name == mark
    (stored,) = thread.read(include_turns=True).thread.turns
    assert [item.type for item in stored.items] == ["userMessage", "agentMessage"]

    fork = codex.thread_fork(thread.id)
    assert fork.id != thread.id
    assert [turn.id for turn in fork.read(include_turns=True).thread.turns] != []
    fork_mark = token()
    fork.run(fork_mark)
    assert [text.split()[0] for text in side.seen(fork_mark).user_texts] == [mark, fork_mark]

    with pytest.raises(InvalidRequestError):
        codex.thread_delete(thread.id)
    codex.thread_delete(fork.id)
    codex.thread_delete(thread.id)
    assert not {thread.id, fork.id} & set(listed())
    with pytest.raises(InvalidRequestError):
        codex.thread_resume(thread.id)


@pytest.mark.parametrize("forked", [False, True], ids=["alone", "forked"])
def test_an_archived_thread_comes_back(side: Side, forked: bool) -> None:
    codex, thread = side.codex, side.thread(ephemeral=False)
    thread.run("hello")
    if forked:
        codex.thread_fork(thread.id)

    def listed(archived: bool) -> bool:
        return thread.id in {each.id for each in codex.thread_list(limit=100, archived=archived).data}

    assert (listed(False), listed(True)) == (True, False)
    codex.thread_archive(thread.id)
    assert (listed(False), listed(True)) == (False, True)
    assert codex.thread_unarchive(thread.id).id == thread.id
    assert (listed(False), listed(True)) == (True, False)
    assert codex.thread_resume(thread.id).run('[[text "still here"]]').final_response == "still here"


def test_compaction(side: Side) -> None:
    thread, mark = side.thread(), token()
    thread.run(f"{mark} [[text chars=4000]]")
    thread.compact()
    compaction = side.notified("turn/started", thread.id).turn.id
    completed = side.notified("turn/completed", thread.id).turn
    assert (completed.id, completed.status) == (compaction, "completed")
    assert thread.run('[[text "after"]]').final_response == "after"


def test_a_review(side: Side) -> None:
    thread, mark = side.thread(), token()
    target = {"type": "custom", "instructions": f'{mark} [[text "All good." deltas=2]]'}
    review = thread.review(target)
    assert review.thread_id == thread.id
    result = review.run()
    assert result.status == "completed"
    assert {"enteredReviewMode", "exitedReviewMode"} <= {item.type for item in result.items}
    side.seen(mark, "completed")


def test_a_review_makes_its_thread_busy_and_can_be_interrupted(side: Side) -> None:
    thread, mark = side.thread(), token()
    review = thread.review(models.CustomReviewTarget(type="custom", instructions=f"{mark} [[hang 1]]"))
    side.seen(mark, "hanging")
    with pytest.raises(ThreadBusyError, match=review.id):
        thread.run("not now")
    review.interrupt()
    assert review.run().status == "interrupted"
    assert thread.run('[[text "free"]]').final_response == "free"


def test_goals(side: Side) -> None:
    thread = side.thread(ephemeral=False)
    assert thread.goal() is None
    goal = thread.set_goal("ship it", status="paused", token_budget=1000)
    assert (goal.objective, goal.status, goal.token_budget) == ("ship it", "paused", 1000)
    assert thread.goal() == goal
    assert thread.set_goal("ship it soon").objective == "ship it soon"
    assert thread.clear_goal() is True
    assert thread.goal() is None
    assert thread.clear_goal() is False


# Models, accounts, and everything else.


def test_models_account_and_metadata(side: Side) -> None:
    assert side.codex.metadata.user_agent.startswith("codex_app_server_python/")
    assert [each.id for each in side.codex.models(include_hidden=True).data]
    account = side.codex.account()
    assert (account.account, account.requires_openai_auth) == (None, False)


def test_an_api_key(side: Side, tmp_path: Path) -> None:
    config = side.world.config(token("home"))
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Pool(1, config)) if side.transport == "pool" else config
        codex = stack.enter_context(side.world.client(side.kind, source))
        codex.login_api_key("sk-test")
        auth = Path(config.env["CODEX_HOME"]) / "auth.json"
        assert json.loads(auth.read_text())["OPENAI_API_KEY"] == "sk-test"
        codex.logout()
        assert not auth.exists()


def test_notifications_about_threads(side: Side) -> None:
    thread, name = side.thread(ephemeral=False), token()
    thread.run("hello")
    thread.set_name(name)
    assert side.notified("thread/name/updated", thread.id).thread_name == name


def test_methods_that_do_not_exist_or_not_here(side: Side) -> None:
    client = side.codex.client
    with pytest.raises(JsonRpcError) as caught:
        client.request("no/such/method", {"a": 1})
    assert caught.value.code == (-32601 if side.transport == "pool" else -32600)
    refused = [method for method, entry in REQUESTS.items() if entry.scope == "refused"]
    for method in refused if side.transport == "pool" else ():
        operation = operations.Operation(method, b"{}", json.loads)
        with pytest.raises(MethodNotFoundError, match=f"{method} is not available through a pool"):
            client.perform(operation)


# On the scripted app-server, for what needs a network.


@contextlib.contextmanager
def scripted(side: Side, *steps: Any) -> Iterator[Codex]:
    """A client of the same kind of a fake app-server, or of a pool of one."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Pool(1, fake(*steps))) if side.transport == "pool" else fake(*steps)
        yield stack.enter_context(side.world.client(side.kind, source))


def login_completed(login_id: str, success: bool) -> Any:
    """The end of a log-in, and of one that has succeeded what codex sends right after it."""
    params = {"loginId": login_id, "success": success, "error": None if success else "cancelled"}
    updated = {"method": "account/updated", "params": {"authMode": "chatgpt", "planType": None}}
    completed = ["send", {"method": "account/login/completed", "params": params}]
    return ["at_once", [completed, ["send", updated]]] if success else completed


def test_log_ins(side: Side) -> None:
    browser = {"type": "chatgpt", "loginId": "l1", "authUrl": "https://example/auth"}
    device = {
        "type": "chatgptDeviceCode",
        "loginId": "l2",
        "verificationUrl": "https://example/device",
        "userCode": "ABCD",
    }
    steps = [
        ["answer", "account/login/start", browser],
        ["answer", "account/login/start", device],
        ["answer", "account/login/start", {**browser, "loginId": "l3"}],
        # One is over before anybody waits; all within a second.
        ["at_once", [*login_completed("l2", True)[1], ["answer", "model/list", {"data": []}]]],
        ["answer", "account/login/cancel", {"status": "canceled"}],
        login_completed("l1", False),
        login_completed("l3", True),
    ]
    with scripted(side, *steps) as codex:
        first, second, third = codex.login_chatgpt(), codex.login_chatgpt_device_code(), codex.login_chatgpt()
        assert (first.login_id, first.auth_url) == ("l1", "https://example/auth")
        assert (second.verification_url, second.user_code) == ("https://example/device", "ABCD")
        codex.models()
        assert second.wait().success is True
        with beside(third.wait) as waiting:
            assert first.cancel().status == "canceled"
            ended = first.wait()
            assert (ended.login_id, ended.success, ended.error) == ("l1", False, "cancelled")
            assert waiting.result(WAIT_S).success is True


def test_a_log_in_whose_app_server_goes(side: Side) -> None:
    browser = {"type": "chatgpt", "loginId": "l1", "authUrl": "https://example/auth"}
    with scripted(side, ["answer", "account/login/start", browser]) as codex:
        login = codex.login_chatgpt()
        with beside(login.wait) as waiting:
            codex.close()
            with pytest.raises(TransportClosedError):
                waiting.result(WAIT_S)


def test_overload_is_tried_again(side: Side) -> None:
    busy = ["error", "model/list", {"code": -32001, "message": "Server overloaded; retry later.", "data": None}]
    with scripted(side, busy, busy, ["answer", "model/list", {"data": []}], busy) as codex:
        if side.transport == "pool":
            # A pool tries again by itself.
            assert codex.models().data == []
            return
        assert retry_on_overload(codex.models, initial_delay_s=0.01).data == []
        with pytest.raises(ServerBusyError):
            codex.models()


def test_notifications_are_a_bounded_ring(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_sync.driver", "_async.driver"):
        monkeypatch.setattr(f"codex_app_server.{module}.GLOBAL_NOTIFICATIONS", 5)
    notes = [
        "times",
        20,
        [["send", {"method": "thread/name/updated", "params": {"threadId": "th", "threadName": "$n"}}]],
    ]
    thread = {"thread": {"id": "th"}}
    steps = [["answer", "thread/start", thread], notes, ["answer", "model/list", {"data": []}]]
    with scripted(side, *steps) as codex:
        codex.client.perform(operations.Operation("thread/start", b"{}", json.loads))
        codex.models()
        names = [n.params["threadName"] for n in itertools.islice(codex.notifications(), 5)]
        assert names == ["15", "16", "17", "18", "19"]
