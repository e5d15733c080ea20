"""The fixtures that users of the SDK get, and the null app-server behind some of them."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import (
    AppServerConfig,
    AsyncCodex,
    Codex,
    LineTooLongError,
    ServerBusyError,
    StdioTransport,
    TracingTransport,
    TransportClosedError,
    retry_on_overload,
)
from codex_app_server.testing import null_app_server
from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text
from codex_pool.runtime import processes

pytest_plugins = ["codex_app_server.testing.fixtures"]

NullCodex = Callable[..., Codex]


@pytest.mark.real
def test_a_users_test_runs_a_real_turn(loopback_codex: Codex, loopback_model: LoopbackModel) -> None:
    loopback_model.script = Script((Rule(Text("Paris."), contains="capital of France"),))
    assert loopback_codex.thread_start().run("What is the capital of France?").final_response == "Paris."
    assert loopback_model.requests[-1].prompt == "What is the capital of France?"


def test_a_null_turn_has_the_form_of_a_real_one(null_codex: NullCodex) -> None:
    turn = null_codex(deltas=4, text="word ").thread_start().turn("anything")
    seen = list(turn.stream())
    assert [notification.method for notification in seen] == [
        "turn/started",
        "item/started",
        *["item/agentMessage/delta"] * 4,
        "item/completed",
        "thread/tokenUsage/updated",
        "turn/completed",
    ]
    assert all(type(notification.payload).__name__ != "UnknownNotification" for notification in seen)
    assert "".join(n.payload.delta for n in seen if n.method == "item/agentMessage/delta") == "word " * 4


def test_a_turn_that_comes_before_its_answer(null_codex: NullCodex) -> None:
    assert null_codex(order="early", text="early ").thread_start().run("x").final_response == "early early early "


def test_scripted_answers(null_codex: NullCodex) -> None:
    busy = {"error": {"code": -32001, "message": "Server overloaded; retry later.", "data": None}}
    codex = null_codex(on={"model/list": [busy, busy, {"result": {"data": []}}], "thread/list": busy})
    with pytest.raises(ServerBusyError):
        codex.thread_list()
    assert retry_on_overload(codex.models, initial_delay_s=0.001).data == []


def test_lines_that_are_no_lines_and_an_end(null_codex: NullCodex) -> None:
    codex = null_codex(
        on={"model/list": {"raw": ["no json", '{"neither": 1}'], "result": {"data": []}}, "thread/list": {"exit": 3}}
    )
    assert codex.models().data == []
    with pytest.raises(TransportClosedError, match="exit code 3"):
        codex.thread_list()


def test_a_question_during_the_turn(null_codex: NullCodex) -> None:
    params = {"itemId": "i", "startedAtMs": 1, "command": "ls"}
    ask = {"method": "item/commandExecution/requestApproval", "params": params}
    assert null_codex(ask=ask).thread_start().run("x").final_response == '{"decision": "decline"}'


def test_a_paced_turn_can_be_interrupted(null_codex: NullCodex) -> None:
    turn = null_codex(deltas=10_000, pace_ms=5).thread_start().turn("x")
    for notification in turn.stream():
        if notification.method == "item/agentMessage/delta":
            turn.interrupt()
            break
    assert turn.run(timeout=20).status == "interrupted"


def test_a_turn_that_waits_to_be_let_go(null_codex: NullCodex, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    thread = null_codex(hold=str(gate), open_item=True, deltas=2, when="wait").thread_start()
    assert thread.run("go").final_response == "null null "
    turn = thread.turn("please wait")
    methods = [notification.method for notification in itertools.islice(turn.stream(), 7)]
    assert methods[:4] == ["turn/started", "item/started", *["item/agentMessage/delta"] * 2]
    assert methods[-1] == "item/started", "a command runs"
    gate.touch()
    found = turn.run(timeout=20)
    assert (found.status, found.items[-1].root.status.value) == ("completed", "completed")  # type: ignore[union-attr]


def test_a_turn_that_ends_only_by_an_interrupt(null_codex: NullCodex) -> None:
    turn = null_codex(end="interrupted").thread_start().turn("x")
    assert [notification.method for notification in itertools.islice(turn.stream(), 7)][
        -1
    ] == "thread/tokenUsage/updated"
    turn.interrupt()
    assert turn.run(timeout=20).status == "interrupted"


def test_a_turn_that_never_ends(null_codex: NullCodex) -> None:
    turn = null_codex(end="never").thread_start().turn("x")
    turn.interrupt()
    with pytest.raises(TimeoutError):
        turn.run(timeout=0.2)


def test_an_answer_that_comes_twice_is_given_once(null_codex: NullCodex) -> None:
    codex = null_codex(on={"*": {"twice": True}})
    assert codex.thread_start().run("x").final_response == "null null null "
    assert not any(codex.client.held.values())


def test_all_methods_at_once_can_be_overloaded_or_silent(null_codex: NullCodex) -> None:
    busy = {"error": {"code": -32001, "message": "Server overloaded; retry later.", "data": None}}
    codex = null_codex(on={"*": [busy, busy, {}, {"silent": True}]})
    for _ in range(2):
        with pytest.raises(ServerBusyError):
            codex.thread_start()
    thread = codex.thread_start()
    with pytest.raises(TimeoutError):
        codex.client.request("thread/read", {"threadId": thread.id}, timeout_s=0.2)


@pytest.mark.parametrize(
    ("steps", "seen"),
    [
        ([{"stderr": 300_000}], "completed"),
        ([{"bytes": '{"method":"item/agentMessage/delta","params":{"delta":"\xff"}}\n'}], "completed"),
        ([{"half": True}, {"bytes": "\n"}], "completed"),
        ([{"half": True}, {"exit": 0}], "exit code 0"),
        ([{"close": True}], "is gone: "),
        ([{"long": 70_000_000}], "a line of 70000000 bytes"),
    ],
    ids=str,
)
def test_faults_on_demand(null_codex: NullCodex, tmp_path: Path, steps: list[Any], seen: str) -> None:
    gate = tmp_path / "gate"
    codex = null_codex(hold=str(gate), signal=[*steps, {"touch": str(gate)}])
    turn = codex.thread_start().turn("x")
    os.kill(app_server_pid(), signal.SIGUSR1)
    if seen == "completed":
        # Not before the steps are done.
        assert turn.run(timeout=20).status == "completed"
    else:
        with pytest.raises((TransportClosedError, LineTooLongError), match=seen):
            turn.run(timeout=20)


def test_it_can_stop_itself_and_change_its_mind(null_codex: NullCodex) -> None:
    codex = null_codex(
        signal=[{"become": {"on": {"model/list": {"result": {"data": [], "nextCursor": "new"}}}}}, {"stop": True}]
    )
    codex.thread_start()
    os.kill(app_server_pid(), signal.SIGUSR1)
    status = Path(f"/proc/{app_server_pid()}/status")
    deadline = time.monotonic() + 20
    while "T (stopped)" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(app_server_pid(), signal.SIGCONT)
    assert codex.models().next_cursor == "new"


def test_one_that_does_not_want_to_end_is_ended() -> None:
    config = null_app_server(ignore=["stdin", "SIGTERM"])
    with Codex(config) as codex:
        codex.thread_start()
        pid = app_server_pid()
    assert not Path(f"/proc/{pid}").exists()


def test_the_first_of_them_may_be_another(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    config = null_app_server(generations=str(starts), scenarios=[{"start": [{"exit": 7}]}, {"text": "second "}])
    with pytest.raises(TransportClosedError, match="exit code 7"), Codex(config) as codex:
        codex.thread_start()
    with Codex(config) as codex:
        assert codex.thread_start().run("x").final_response == "second second second "
        assert starts.read_text().split()[1:] == [str(app_server_pid())]


def app_server_pid() -> int:
    (process,) = processes.descendants(os.getpid())
    return process.pid


def test_a_paced_turn_says_when_it_was_written(null_codex: NullCodex) -> None:
    before = time.time()
    turn = null_codex(deltas=3, pace_ms=1, text="$NOW ").thread_start().turn("x")
    texts = [n.params["delta"] for n in turn.stream() if n.method == "item/agentMessage/delta"]
    assert before <= float(texts[0]) < float(texts[1]) < float(texts[2]) <= time.time()


def test_it_serves_asyncio_too() -> None:
    import asyncio

    async def main(config: AppServerConfig) -> Any:
        async with AsyncCodex(config) as codex:
            return (await (await codex.thread_start()).run("x")).final_response

    assert asyncio.run(main(null_app_server(deltas=2))) == "null null "


def test_an_unclosed_client_warns_and_its_process_ends() -> None:
    codex = Codex(null_app_server())
    with pytest.warns(ResourceWarning, match="unclosed"):
        del codex
        gc.collect()


def test_a_trace_holds_every_line_and_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    config = null_app_server(on={"account/login/start": {"result": {"type": "apiKey"}}})
    with Codex(config, transport=TracingTransport(StdioTransport(config), path)) as codex:
        codex.login_api_key("sk-very-secret")
        assert codex.thread_start().run("Say sextant.").final_response is not None
    text = path.read_text()
    assert "sk-very-secret" not in text and '"apiKey":"***"' in text
    assert "Say sextant." in text and '"turn/completed"' in text
    assert {line.split(" ", 2)[1] for line in text.splitlines()} == {"<", ">"}
    assert path.stat().st_mode & 0o077 == 0
