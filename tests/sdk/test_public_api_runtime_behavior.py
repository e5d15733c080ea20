"""Codex, Thread and TurnHandle on the real app-server, whose model is the scripted one on loopback."""

from __future__ import annotations

import concurrent.futures
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_app_server import completed, message, started
from fake_app_server import config as fake

from codex_app_server import (
    AppServerConfig,
    Codex,
    ImageInput,
    InvalidInputError,
    InvalidParamsError,
    InvalidRequestError,
    JsonRpcError,
    LocalImageInput,
    MentionInput,
    SkillInput,
    TextInput,
    ThreadBusyError,
    TransportClosedError,
    TurnFailedError,
    TurnHandle,
    stream_text,
)
from codex_app_server import transport as transport_module
from codex_app_server.inputs import to_wire_input
from codex_app_server.results import final_response
from codex_app_server.testing.loopback import LoopbackModel, Messages, Rule, Script, Text, write_loopback_home

WAIT_S = 30.0
real = pytest.mark.real


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One real app-server for all tests that leave it as it was."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    with LoopbackModel() as model:
        write_loopback_home(home, model.base_url)
        config = AppServerConfig(cwd=work, env={"CODEX_HOME": str(home), "RUST_LOG": "error"})
        with Codex(config) as codex:
            yield SimpleNamespace(codex=codex, model=model, config=config, home=home, work=work)


@pytest.fixture
def codex(shared: SimpleNamespace) -> Iterator[Codex]:
    codex: Codex = shared.codex
    yield codex
    settle(codex)


@pytest.fixture
def asked(shared: SimpleNamespace) -> LoopbackModel:
    """The model that the shared app-server asks."""
    model: LoopbackModel = shared.model
    return model


def settle(codex: Codex) -> None:
    """Ask until the client holds nothing for anybody: turns that nobody reads end too."""
    deadline = time.monotonic() + WAIT_S
    while any(codex.client.held.values()):
        assert time.monotonic() < deadline, codex.client.held
        codex.thread_list(limit=1)


def in_threads(count: int, run: Callable[[int], Any]) -> list[Any]:
    """`run(n)` on that many threads, all of them at it together."""
    together = threading.Barrier(count)

    def begin(number: int) -> Any:
        together.wait(WAIT_S)
        return run(number)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [future.result(WAIT_S) for future in [pool.submit(begin, number) for number in range(count)]]


def tokens(name: str, count: int = 8) -> list[str]:
    return [f"{name}.{number};" for number in range(count)]


def scripted(name: str, pace_ms: int = 2) -> str:
    """A prompt whose answer names it in every delta."""
    words = tokens(name)
    return f'[[text "{"".join(words)}" deltas={len(words)} pace_ms={pace_ms}]]'


def started_streaming(turn: TurnHandle) -> Iterator[Any]:
    """The stream of a turn, read up to its first delta: then the turn is certainly under way."""
    stream = turn.stream()
    for notification in stream:
        if notification.method == "item/agentMessage/delta":
            return stream
    raise AssertionError("the turn ended without a delta")


# One turn.


@real
def test_the_result_of_a_turn(codex: Codex) -> None:
    result = codex.thread_start(ephemeral=True).run('[[text "Four." deltas=3]]')
    assert result.final_response == "Four."
    assert (result.status, result.error) == ("completed", None)
    assert [item.type for item in result.items] == ["userMessage", "agentMessage"]
    assert result.items[0].content[0].text == '[[text "Four." deltas=3]]'
    assert result.usage is not None
    assert result.usage.total.output_tokens > 0
    assert result.started_at is not None
    assert result.completed_at is not None
    assert result.duration_ms is not None
    assert re.fullmatch(r"[0-9a-f-]{36}", result.id)


@real
def test_the_notifications_of_a_turn(codex: Codex) -> None:
    turn = codex.thread_start(ephemeral=True).turn('[[text "a b c d e f" deltas=6]]')
    seen = list(turn.stream())
    methods = [notification.method for notification in seen]
    assert methods[0] == "turn/started"
    assert methods[-1] == "turn/completed"
    assert methods.count("item/agentMessage/delta") == 6
    assert "".join(n.payload.delta for n in seen if n.method == "item/agentMessage/delta") == "a b c d e f"
    for notification in seen:
        params = notification.params
        assert params["threadId"] == turn.thread_id
        assert params.get("turnId", params.get("turn", {}).get("id")) == turn.id
        assert type(notification.payload).__name__ != "UnknownNotification"
    # Each is given out once, and the end stays the end.
    assert list(turn.stream()) == []


@real
def test_turns_of_a_thread_go_on_with_its_history(codex: Codex, asked: LoopbackModel) -> None:
    thread = codex.thread_start(ephemeral=True)
    thread.run('first-of-history [[text "one"]]')
    thread.run('second-of-history [[text "two"]]')
    record = asked.wait_for(lambda request: "second-of-history" in request.prompt)
    assert [text.split()[0] for text in record.user_texts] == ["first-of-history", "second-of-history"]


@real
def test_text_of_every_script_arrives_as_it_was(codex: Codex) -> None:
    text = "naïve 漢字 🙂 \x00 \u2028 \\ ' end"
    thread = codex.thread_start(ephemeral=True)
    result = thread.run(text)
    assert result.items[0].content[0].text == text
    assert thread.run(text * 10_000).items[0].content[0].text == text * 10_000


@real
def test_a_long_answer_arrives_whole(codex: Codex) -> None:
    turn = codex.thread_start(ephemeral=True).turn("[[text chars=2000000 deltas=50]]")
    deltas = [n.payload.delta for n in turn.stream() if n.method == "item/agentMessage/delta"]
    assert len("".join(deltas)) == 2_000_000


@real
def test_the_final_response(codex: Codex, asked: LoopbackModel) -> None:
    commentary, final = Text("thinking aloud", phase="commentary"), Text("the answer", phase="final_answer")
    asked.script = Script(
        (
            Rule(Messages((commentary, final, Text("said later", phase="commentary"))), contains="final-marked"),
            Rule(Messages((Text("first"), Text("second"), commentary)), contains="final-unmarked"),
            Rule(Messages((commentary,)), contains="final-none"),
        )
    )
    try:
        thread = codex.thread_start(ephemeral=True)
        assert thread.run("final-marked").final_response == "the answer"
        assert thread.run("final-unmarked").final_response == "second"
        result = thread.run("final-none")
        assert result.final_response is None
        assert len(result.items) == 2
    finally:
        asked.script = Script()


def test_an_empty_final_response_is_one() -> None:
    def said(text: str, phase: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(type="agentMessage", text=text, phase=phase)

    assert final_response([said("before"), said("")]) == ""
    assert final_response([said("", "final_answer"), said("after")]) == ""
    assert final_response([said("", "commentary")]) is None
    assert final_response([]) is None


@real
def test_an_output_schema(codex: Codex, asked: LoopbackModel) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}, "none": {"type": "null"}},
        "required": ["answer", "none"],
        "additionalProperties": False,
    }
    result = codex.thread_start(ephemeral=True).run("schema-please", output_schema=schema)
    assert asked.wait_for(lambda request: request.prompt == "schema-please").output_schema == schema
    assert set(json.loads(result.final_response or "")) == {"answer", "none"}


@real
def test_streamed_text(codex: Codex) -> None:
    thread = codex.thread_start(ephemeral=True)
    assert list(stream_text(thread, scripted("streamed"))) == tokens("streamed")
    pieces = [each.delta for each in codex.client.stream_text(thread.id, scripted("lower"))]
    assert pieces == tokens("lower")
    with pytest.raises(TurnFailedError):
        list(stream_text(thread, "[[http_error 500]]"))


@real
def test_input_items(codex: Codex, asked: LoopbackModel) -> None:
    result = codex.thread_start(ephemeral=True).run(["items-one", TextInput('items-two [[text "ok"]]')])
    assert result.final_response == "ok"
    assert [part.text for part in result.items[0].content] == ["items-one", 'items-two [[text "ok"]]']


# Many turns at once.


@real
def test_turns_side_by_side_hold_only_their_own(codex: Codex, asked: LoopbackModel) -> None:
    """Eight threads stream at once."""
    names = [f"side{number}" for number in range(8)]
    turns = [codex.thread_start(ephemeral=True).turn(scripted(name, pace_ms=30)) for name in names]
    asked.wait_for(lambda request: "side" in request.prompt, count=8)

    def read(number: int) -> list[Any]:
        return list(turns[number].stream())

    for name, turn, seen in zip(names, turns, in_threads(8, read), strict=True):
        assert [n.payload.delta for n in seen if n.method == "item/agentMessage/delta"] == tokens(name)
        assert all(turn.id.encode() in notification.raw for notification in seen)


@real
def test_streams_read_in_turn_by_one_thread(codex: Codex) -> None:
    """Reading one stream neither waits for the other nor takes from it."""
    first = codex.thread_start(ephemeral=True).turn(scripted("one", pace_ms=5))
    second = codex.thread_start(ephemeral=True).turn(scripted("two", pace_ms=5))
    seen: dict[str, list[str]] = {"one": [], "two": []}
    streams = {"one": first.stream(), "two": second.stream()}
    while streams:
        for name in list(streams):
            notification = next(streams[name], None)
            if notification is None:
                del streams[name]
            elif notification.method == "item/agentMessage/delta":
                seen[name].append(notification.payload.delta)
    assert seen == {"one": tokens("one"), "two": tokens("two")}


@real
def test_requests_are_answered_while_turns_stream(codex: Codex) -> None:
    turn = codex.thread_start(ephemeral=True).turn("[[hang 1]]")
    started_streaming(turn)
    assert codex.models().data is not None
    assert codex.thread_start(ephemeral=True).run('[[text "beside"]]').final_response == "beside"
    turn.interrupt()
    assert turn.run().status == "interrupted"


@real
def test_a_second_turn_on_a_busy_thread_is_refused_and_names_the_first(codex: Codex) -> None:
    thread = codex.thread_start(ephemeral=True)
    first = thread.turn("[[hang 1]]")
    with pytest.raises(ThreadBusyError, match=first.id) as caught:
        thread.turn('[[text "refused"]]')
    assert caught.value.turn_id == first.id
    first.interrupt()
    assert first.run().status == "interrupted"
    assert thread.run('[[text "free again"]]').final_response == "free again"


@real
def test_a_second_turn_on_a_busy_thread_waits_if_told(codex: Codex) -> None:
    thread = codex.thread_start(ephemeral=True)
    first = thread.turn(scripted("queue-first", pace_ms=20))
    second = thread.turn('[[text "queued"]]', on_busy="queue")
    assert second.id != first.id
    assert first.run().final_response == "".join(tokens("queue-first"))
    assert second.run().final_response == "queued"


@real
def test_a_second_turn_on_a_busy_thread_steers_if_told(codex: Codex, shared: SimpleNamespace) -> None:
    thread = codex.thread_start(ephemeral=True)
    first = thread.turn("[[hang 1]]")
    started_streaming(first)
    second = thread.turn("steered-by-turn", on_busy="steer")
    assert second.id == first.id
    shared.model.wait_for(lambda record: "steered-by-turn" in record.user_texts, WAIT_S)
    assert first.run().status == second.run().status


@real
def test_handles_nobody_reads_cost_nothing(codex: Codex) -> None:
    """Dropped at once, dropped half read, or kept: when the turns are over the client holds nothing for them."""
    thread = codex.thread_start(ephemeral=True)
    thread.turn('[[text "dropped"]]')
    gc.collect()
    half_read = started_streaming(codex.thread_start(ephemeral=True).turn(scripted("half")))
    del half_read
    kept = codex.thread_start(ephemeral=True).turn(scripted("kept"))
    # Turns of one thread come one after the other; its turn now is the dropped one or one after it.
    result = codex.thread_start(ephemeral=True).run('[[text "after"]]')
    assert result.status == "completed"
    assert kept.run().final_response == "".join(tokens("kept"))
    settle(codex)


# Failure, interruption, steering.


@real
@pytest.mark.parametrize(
    ("directive", "reason"),
    [
        ("[[http_error 429]]", {"responseTooManyFailedAttempts": {"httpStatusCode": 429}}),
        ("[[http_error 500]]", "internalServerError"),
        ("[[http_error 401]]", {"httpConnectionFailed": {"httpStatusCode": 401}}),
        ("[[failed server_is_overloaded]]", "serverOverloaded"),
        ("[[failed context_length_exceeded]]", "contextWindowExceeded"),
        ("[[drop 2]]", "other"),
    ],
)
def test_a_failed_turn_raises_with_the_runtimes_own_reason(codex: Codex, directive: str, reason: Any) -> None:
    turn = codex.thread_start(ephemeral=True).turn(directive)
    with pytest.raises(TurnFailedError) as caught:
        turn.run()
    error = caught.value
    assert error.turn is not None
    assert (error.turn.id, error.turn.status) == (turn.id, "failed")
    assert (error.kind, error.safe_to_retry) == ("failed", False)
    info = error.codex_error_info
    assert (info if isinstance(info, str) else info.model_dump(mode="json", by_alias=True)) == reason
    assert str(error) == error.turn.error.message
    assert isinstance(error, RuntimeError)


@real
def test_a_thread_goes_on_after_a_failed_turn(codex: Codex) -> None:
    thread = codex.thread_start(ephemeral=True)
    with pytest.raises(TurnFailedError):
        thread.run("[[http_error 500]]")
    assert thread.run('[[text "recovered"]]').final_response == "recovered"


@real
def test_an_interrupt_stops_the_model(codex: Codex, asked: LoopbackModel) -> None:
    turn = codex.thread_start(ephemeral=True).turn("interrupt-me [[hang 2]]")
    started_streaming(turn)
    turn.interrupt()
    asked.wait_for(lambda request: "interrupt-me" in request.prompt and request.outcome == "disconnected")
    result = turn.run()
    assert (result.status, result.final_response) == ("interrupted", None)
    # What is over is left alone.
    turn.interrupt()


@real
def test_an_interrupt_right_after_the_start_is_not_lost(codex: Codex) -> None:
    """The runtime may not know the turn yet: none of these may run on."""

    def start_and_interrupt(number: int) -> str:
        turn = codex.thread_start(ephemeral=True).turn("at-once [[hang 1]]")
        turn.interrupt()
        return str(turn.run().status)

    assert set(in_threads(6, start_and_interrupt)) == {"interrupted"}


@real
def test_an_interrupt_from_another_thread_while_the_stream_is_read(codex: Codex) -> None:
    turn = codex.thread_start(ephemeral=True).turn("[[hang 3]]")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reading = pool.submit(turn.run)
        turn.interrupt()
        assert reading.result(WAIT_S).status == "interrupted"


def test_an_interrupt_that_is_refused_for_good_is_raised() -> None:
    refusal = {"code": -32600, "message": "thread not found: th"}
    with Codex(fake(started("tu"), ["error", "turn/interrupt", refusal])) as codex:
        _, mailbox = codex.client.start_turn(turn_start("th"))
        turn = TurnHandle(codex.client, "th", "tu", mailbox)
        with pytest.raises(InvalidRequestError, match="thread not found"):
            turn.interrupt()


def test_an_interrupt_is_repeated_until_the_turn_is_known_or_over() -> None:
    too_early = ["error", "turn/interrupt", {"code": -32600, "message": "no active turn to interrupt"}]
    with Codex(fake(started("tu"), too_early, too_early, ["answer", "turn/interrupt", {}])) as codex:
        _, mailbox = codex.client.start_turn(turn_start("th"))
        TurnHandle(codex.client, "th", "tu", mailbox).interrupt()
        assert not any(v for k, v in codex.client.held.items() if k != "turns")
    with Codex(fake(started("tu"), too_early, completed("th", "tu"), too_early)) as codex:
        _, mailbox = codex.client.start_turn(turn_start("th"))
        turn = TurnHandle(codex.client, "th", "tu", mailbox)
        turn.interrupt()
        assert turn.run().status == "completed"


def turn_start(thread: str) -> Any:
    from codex_app_server import operations

    return operations.turn_start(thread, "hi", {}, "full")


@real
def test_steering_reaches_the_model(codex: Codex, asked: LoopbackModel) -> None:
    turn = codex.thread_start(ephemeral=True).turn("before-steering " + scripted("before", pace_ms=60))
    started_streaming(turn)
    turn.steer('steered-to [[text "as steered"]]')
    result = turn.run()
    record = asked.wait_for(lambda request: request.prompt.startswith("steered-to"))
    assert [text.split()[0] for text in record.user_texts] == ["before-steering", "steered-to"]
    assert result.final_response == "as steered"
    with pytest.raises(InvalidRequestError, match="no active turn to steer"):
        turn.steer("too late")


# Threads.


@real
def test_the_life_of_a_stored_thread(codex: Codex) -> None:
    thread = codex.thread_start()
    thread.run('remember-me [[text "noted"]]')
    thread.set_name("a name")
    listed = {each.id: each for each in codex.thread_list(limit=50).data}
    assert listed[thread.id].name == "a name"
    stored = thread.read(include_turns=True).thread
    assert [item.type for item in stored.turns[0].items] == ["userMessage", "agentMessage"]

    fork = codex.thread_fork(thread.id)
    assert fork.id != thread.id
    assert len(fork.read(include_turns=True).thread.turns) == 1

    codex.thread_archive(thread.id)
    assert thread.id not in {each.id for each in codex.thread_list(limit=50).data}
    assert thread.id in {each.id for each in codex.thread_list(limit=50, archived=True).data}
    codex.thread_unarchive(thread.id)
    again = codex.thread_resume(thread.id)
    assert again.id == thread.id
    assert again.run('[[text "still here"]]').final_response == "still here"

    with pytest.raises(InvalidRequestError, match="forked history still references it"):
        codex.thread_delete(thread.id)
    for each in (fork, thread):
        codex.thread_delete(each.id)
    assert not {thread.id, fork.id} & {each.id for each in codex.thread_list(limit=50).data}
    with pytest.raises(InvalidRequestError):
        codex.thread_resume(thread.id)


@real
def test_models_and_metadata(codex: Codex, shared: SimpleNamespace) -> None:
    assert codex.metadata.user_agent.startswith("codex_app_server_python/")
    assert codex.metadata.codex_home == str(shared.home)
    assert all(model.id for model in codex.models(include_hidden=True).data)


@real
def test_options_reach_the_runtime(codex: Codex, shared: SimpleNamespace, asked: LoopbackModel) -> None:
    from codex_app_server.generated import models

    response = codex.client.request(
        "thread/start", {"model": "another-model", "sandbox": "workspace-write", "ephemeral": True, "cwd": None}
    )
    assert isinstance(response, models.ThreadStartResponse)
    assert (response.model, response.cwd) == ("another-model", str(shared.work))
    assert response.sandbox.type == "workspaceWrite"
    thread = codex.thread_start(model="named-model", developer_instructions="speak-softly", ephemeral=True)
    thread.run("with-options", effort="low")
    record = asked.wait_for(lambda request: request.prompt == "with-options")
    assert record.model == "named-model"
    assert "speak-softly" in record.instructions


@real
def test_errors_of_the_runtime_have_types(codex: Codex) -> None:
    nowhere = "01a20254-f930-7bc3-a8cc-000000000000"
    with pytest.raises(InvalidRequestError, match="no rollout found"):
        codex.thread_resume(nowhere)
    with pytest.raises(InvalidRequestError, match="thread not found"):
        codex.client.request("turn/start", {"thread_id": nowhere, "input": [{"type": "text", "text": "x"}]})
    with pytest.raises(JsonRpcError) as caught:
        codex.client.request("no/such/method", {"a": 1})
    assert caught.value.code in (-32600, -32601)
    with pytest.raises((InvalidRequestError, InvalidParamsError)):
        codex.client.request("thread/read", {"thread_id": "not a thread id"})


# Approvals.


def with_tool_call(
    shared: SimpleNamespace, file: Path, handler: Any, follow_up: str = "did it"
) -> tuple[Any, list[tuple[str, Any]]]:
    """One turn in which the model asks to write a file outside of the sandbox; the result, and what was asked."""
    seen: list[tuple[str, Any]] = []

    def noting(method: str, params: dict[str, Any]) -> Any:
        seen.append((method, params))
        return handler(method, params)

    prompt = f'[[tool_call "echo hi > {file}" escalate=true]] [[text "{follow_up}: {{output}}"]]'
    with Codex(shared.config, approval_handler=noting if handler is not None else None) as codex:
        thread = codex.thread_start(approval_policy="on-request", sandbox="read-only", ephemeral=True)
        return thread.run(prompt), seen


@real
def test_without_a_handler_a_command_is_declined(shared: SimpleNamespace, tmp_path: Path) -> None:
    result, _ = with_tool_call(shared, tmp_path / "file", None)
    assert not (tmp_path / "file").exists()
    [command] = [item for item in result.items if item.type == "commandExecution"]
    assert command.status == "declined"


@real
def test_a_handler_that_accepts_lets_the_command_run(shared: SimpleNamespace, tmp_path: Path) -> None:
    result, seen = with_tool_call(shared, tmp_path / "file", lambda method, params: {"decision": "accept"})
    assert (tmp_path / "file").read_text() == "hi\n"
    assert result.final_response is not None
    assert result.final_response.startswith("did it")
    [(method, params)] = seen
    assert method == "item/commandExecution/requestApproval"
    assert str(tmp_path / "file") in params.command


@real
def test_a_handler_that_raises_declines(shared: SimpleNamespace, tmp_path: Path) -> None:
    def broken(method: str, params: dict[str, Any]) -> Any:
        raise RuntimeError("handler broke")

    result, seen = with_tool_call(shared, tmp_path / "file", broken)
    assert len(seen) == 1
    assert result.status == "completed"
    assert not (tmp_path / "file").exists()


# The end of the process.


@real
@pytest.mark.parametrize("pump", ["poll", "threads"])
def test_a_killed_app_server_fails_who_waits(config: AppServerConfig, pump: str, monkeypatch: Any) -> None:
    if pump == "threads":
        monkeypatch.setattr(transport_module, "PollPump", transport_module.ThreadPump)
    with Codex(config) as codex:
        turns = [codex.thread_start(ephemeral=True).turn("[[hang 1]]") for _ in range(3)]
        streams = [started_streaming(turn) for turn in turns]
        pid = codex.client._connection._transport.pid  # type: ignore[attr-defined]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            reading = [pool.submit(list, stream) for stream in streams]
            os.kill(pid, signal.SIGKILL)
            for each in reading:
                with pytest.raises(TransportClosedError, match="killed by SIGKILL"):
                    each.result(WAIT_S)
        for call in (codex.models, turns[0].interrupt, turns[0].run, lambda: codex.thread_start()):
            with pytest.raises(TransportClosedError, match="killed by SIGKILL"):
                call()


@real
def test_a_process_that_gives_up_is_explained(work: Path) -> None:
    """The last words of the process reach the caller."""
    with pytest.raises(TransportClosedError, match=r"exit code 3\n(.|\n)*no such luck"):
        Codex(AppServerConfig(cwd=work, launch_args_override=("sh", "-c", "echo no such luck >&2; exit 3")))


def test_after_close_nothing_works_and_nothing_hangs() -> None:
    codex = Codex(fake(started("tu")))
    _, mailbox = codex.client.start_turn(turn_start("th"))
    codex.close()
    codex.close()
    turn = TurnHandle(codex.client, "th", "tu", mailbox)
    for call in (codex.models, turn.run, turn.interrupt, lambda: turn.steer("x"), lambda: codex.thread_list()):
        with pytest.raises(TransportClosedError):
            call()


def test_a_handshake_that_is_refused_leaves_nothing() -> None:
    script = """read line; echo '{"id":1,"error":{"code":-32600,"message":"too old"}}'; cat >/dev/null"""
    with pytest.raises(InvalidRequestError, match="too old"):
        Codex(AppServerConfig(launch_args_override=("sh", "-c", script)))


# What is refused before anything is sent.


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "input text is ''; expected a non-empty string"),
        ([], "input is empty; give at least one item"),
        ("ok\ud800", "lone surrogate at position 2, which UTF-8 cannot carry"),
        ([TextInput("")], "expected a non-empty string"),
        ([ImageInput("\udfff")], "lone surrogate"),
        (["ok", 5], "input item is int; expected text or one of"),
        (5, "input is int; expected text"),
        (None, "input is NoneType; expected text"),
        ({"text": "x"}, "input is dict; expected text"),
        ([TextInput(None)], "input text is None"),  # type: ignore[arg-type]
        (b"bytes", "input is bytes; expected text"),
    ],
)
def test_bad_input_is_refused_before_it_is_sent(value: Any, reason: str) -> None:
    with Codex(fake(started("tu"), completed("th", "tu"))) as codex:
        from codex_app_server import Thread

        thread = Thread(codex.client, "th")
        for call in (thread.run, thread.turn, lambda value: list(stream_text(thread, value))):
            with pytest.raises(InvalidInputError, match=reason):
                call(value)
        # The first turn the app-server sees is the good one.
        assert thread.run("good").id == "tu"
        assert not any(codex.client.held.values())


def test_input_items_on_the_wire() -> None:
    items = [
        "t",
        TextInput("u"),
        ImageInput("data:,"),
        LocalImageInput("/i"),
        SkillInput("s", "/s"),
        MentionInput("m", "m:"),
    ]
    assert to_wire_input(items) == [
        {"type": "text", "text": "t"},
        {"type": "text", "text": "u"},
        {"type": "image", "url": "data:,"},
        {"type": "localImage", "path": "/i"},
        {"type": "skill", "name": "s", "path": "/s"},
        {"type": "mention", "name": "m", "path": "m:"},
    ]
    assert to_wire_input(TextInput("one")) == [{"type": "text", "text": "one"}]


def test_bad_options_are_refused_before_they_are_sent() -> None:
    with Codex(fake(started("tu"), completed("th", "tu"))) as codex:
        from codex_app_server import Thread

        thread = Thread(codex.client, "th")
        with pytest.raises(TypeError, match="unknown option 'modle'; did you mean 'model'"):
            codex.thread_start(modle="x")  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"unknown option 'zzzz'; it takes .*sandbox"):
            codex.thread_resume("th", zzzz=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="did you mean 'limit'"):
            codex.thread_list(limits=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="did you mean 'output_schema'"):
            thread.run("x", output_schem={})  # type: ignore[call-arg]
        with pytest.raises(InvalidInputError, match="ThreadStartParams: model"):
            codex.thread_start(model=5)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=r"approvalPolicy|approval_policy"):
            codex.thread_start(approval_policy=["no"])  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="TurnStartParams"):
            thread.run("x", output_schema={"a": object()})
        with pytest.raises(InvalidInputError, match="TurnStartParams"):
            thread.run("x", client_user_message_id="\ud800")
        assert thread.run("good").id == "tu"


# The quickstart, as it is written.

QUICKSTART = """\
from codex_app_server import Codex
with Codex() as codex:
    thread = codex.thread_start(model="gpt-5")
    result = thread.run("Say hello in one sentence.")
    print(result.final_response)
    print(len(result.items))
"""


@real
def test_the_quickstart(home: Path, work: Path, model: LoopbackModel) -> None:
    model.script = Script((Rule(Text("Hello, world."), contains="Say hello"),))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUICKSTART],
        cwd=work,
        env={**os.environ, "CODEX_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("Hello, world.\n2\n", "", 0)
    assert model.requests[0].model == "gpt-5"


def test_a_program_that_forgets_to_close_ends_all_the_same() -> None:
    """The app-server sees the end of its stdin at the end of the interpreter."""
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from fake_app_server import config
from codex_app_server import Codex
codex = Codex(config())
print(codex.client._connection._transport.pid, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.stderr, done.returncode) == ("", 0)
    assert int(done.stdout)


def test_importing_the_package_is_cheap() -> None:
    program = "import sys, codex_app_server; print({'pydantic', 'msgspec', 'asyncio', 'zmq'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S)
    assert done.stdout == "set()\n"


def test_a_turn_without_an_answer_has_none() -> None:
    with Codex(fake(started("tu"), message("th", "tu", "aside", "commentary"), completed("th", "tu"))) as codex:
        _, mailbox = codex.client.start_turn(turn_start("th"))
        result = TurnHandle(codex.client, "th", "tu", mailbox).run()
    assert (result.final_response, len(result.items), result.usage) == (None, 1, None)
