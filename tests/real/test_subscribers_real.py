"""Several clients on one thread: the same on a pool as on one app-server that listens on a socket."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from app_server_socket import Message, Peer, PoolPeer, listening_app_server
from test_pool_real import broker_of

from codex_app_server import AppServerConfig
from codex_app_server.config import find_codex
from codex_pool import Pool

pytestmark = pytest.mark.real

APPROVAL = "item/commandExecution/requestApproval"
ASK = '[[tool_call "echo hi" escalate=true]] [[text "done"]]'
SLOW = "[[text chars=400 deltas=40 pace_ms=30]]"
UNKNOWN = "00000000-0000-7000-8000-000000000000"
ON_REQUEST = {"approvalPolicy": "on-request", "sandbox": "read-only"}

Connect: TypeAlias = Callable[[str], Peer]


@pytest.fixture(params=["app-server", "pool"])
def connect(
    request: pytest.FixtureRequest,
    home: Path,
    work: Path,
    config: AppServerConfig,
    tmp_path: Path,
    runtime_directory: Path,
) -> Iterator[Connect]:
    """Connects an initialized client of that name, to a real app-server or a pool."""
    if request.param == "app-server":
        env = {"CODEX_HOME": str(home), "RUST_LOG": "off"}
        with listening_app_server(runtime_directory / "a.sock", env=env, cwd=work) as open_socket:

            def connect_socket(name: str) -> Peer:
                peer = open_socket()
                peer.initialize(name)
                return peer

            yield connect_socket
        return
    with Pool(2, config, log_file=tmp_path / "log") as pool:
        peers: list[Peer] = []

        def connect_pool(name: str) -> Peer:
            peer = PoolPeer(pool.endpoint, client=name)
            peers.append(peer)
            peer.initialize(name)
            return peer

        yield connect_pool
        for peer in peers:
            peer.close()


def of_turn(peer: Peer, turn_id: str, after: int = 0) -> list[tuple[str, Any]]:
    """Notifications of a turn, without what a pool adds, those of deltas with their text."""
    found = []
    for message in peer.messages[after:]:
        params, method = message.get("params", {}), message.get("method", "")
        if "id" in message or method.startswith(("pool/", "thread/")):
            continue
        if turn_id in (params.get("turnId"), (params.get("turn") or {}).get("id")):
            found.append((method, params.get("delta")))
    return found


def is_over(turn_id: str) -> Callable[[Message], bool]:
    return lambda message: message.get("method") == "turn/completed" and message["params"]["turn"]["id"] == turn_id


def test_a_turn_goes_to_every_subscriber_whoever_starts_it(connect: Connect) -> None:
    a, b, c = connect("a"), connect("b"), connect("c")
    thread_id = a.thread()
    a.run(thread_id)
    b.request("thread/resume", {"threadId": thread_id, "excludeTurns": True})
    for starter, other in ((a, b), (b, a)):
        turn_id = starter.run(thread_id)
        other.wait_end(turn_id)
        got = of_turn(other, turn_id)
        assert got == of_turn(starter, turn_id) and got[0][0] == "turn/started" and got[-1][0] == "turn/completed"
        assert of_turn(c, turn_id) == [], "it is not subscribed"


def test_who_resumes_during_a_turn_gets_the_rest_of_it(connect: Connect) -> None:
    a, b = connect("a"), connect("b")
    thread_id = a.thread()
    a.run(thread_id)
    turn_id = a.turn(thread_id, SLOW)
    a.wait_for("item/agentMessage/delta", turnId=turn_id)
    answer = b.ask("thread/resume", {"threadId": thread_id, "excludeTurns": True})
    for peer in (a, b):
        peer.wait_end(turn_id)
    got, everything = of_turn(b, turn_id), of_turn(a, turn_id)
    assert 3 < len(got) < len(everything) and got == everything[-len(got) :]
    assert b.messages.index(answer) < b.messages.index(b.wait_for("item/agentMessage/delta", turnId=turn_id))


def test_an_approval_is_asked_of_all_and_the_first_answer_counts(connect: Connect) -> None:
    a, b = connect("a"), connect("b")
    thread_id = a.thread(**ON_REQUEST)
    a.run(thread_id)
    b.request("thread/resume", {"threadId": thread_id, "excludeTurns": True})
    turn_id = a.turn(thread_id, ASK)
    asked = [peer.wait_for(APPROVAL, turnId=turn_id) for peer in (a, b)]
    assert asked[0] == asked[1]
    b.answer(asked[1], {"decision": "accept"})
    for peer in (a, b):
        peer.wait_for("serverRequest/resolved", threadId=thread_id, requestId=asked[0]["id"])
    a.answer(asked[0], {"decision": "decline"})
    for peer in (a, b):
        assert peer.wait_end(turn_id)["params"]["turn"]["status"] == "completed"
        item = peer.wait_for("item/completed", turnId=turn_id, limit_s=0)
        commands = [m["params"]["item"] for m in peer.messages if m.get("method") == "item/completed"]
        assert item and [each["status"] for each in commands if each["type"] == "commandExecution"] == ["completed"]


def test_an_approval_outlives_its_client_and_is_asked_of_who_resumes(connect: Connect) -> None:
    a, b = connect("a"), connect("b")
    thread_id = a.thread(**ON_REQUEST)
    a.run(thread_id)
    turn_id = a.turn(thread_id, ASK)
    asked = a.wait_for(APPROVAL, turnId=turn_id)
    a.close()
    status = b.request("thread/read", {"threadId": thread_id})["thread"]["status"]
    assert status == {"type": "active", "activeFlags": ["waitingOnApproval"]}
    answer = b.ask("thread/resume", {"threadId": thread_id, "excludeTurns": True})
    again = b.wait_for(APPROVAL, turnId=turn_id)
    assert again == asked and b.messages.index(answer) < b.messages.index(again)
    # Once more, as on every resume, and after it was unsubscribed.
    after = b.count
    b.request("thread/resume", {"threadId": thread_id, "excludeTurns": True})
    assert b.wait_for(APPROVAL, after=after) == asked
    b.request("thread/unsubscribe", {"threadId": thread_id})
    c = connect("c")
    c.request("thread/resume", {"threadId": thread_id, "excludeTurns": True})
    c.answer(c.wait_for(APPROVAL, turnId=turn_id), {"decision": "accept"})
    assert c.wait_end(turn_id)["params"]["turn"]["status"] == "completed"
    b.sync()
    assert not any(map(is_over(turn_id), b.messages))


def test_unsubscribing(connect: Connect) -> None:
    a, b = connect("a"), connect("b")
    thread_id = a.thread()
    a.run(thread_id)
    b.request("thread/resume", {"threadId": thread_id, "excludeTurns": True})

    def unsubscribe(peer: Peer, thread_id: str) -> Any:
        answer = peer.ask("thread/unsubscribe", {"threadId": thread_id})
        return answer["result"]["status"] if "result" in answer else answer["error"]["code"]

    assert [unsubscribe(b, each) for each in (thread_id, thread_id, UNKNOWN, "nonsense")] == [
        "unsubscribed",
        "notSubscribed",
        "notLoaded",
        -32600,
    ]
    after = b.count
    turn_id = a.run(thread_id)
    b.sync()
    assert of_turn(b, turn_id, after) == []
    # In mid-turn: it goes on, and nothing more comes.
    turn_id = a.turn(thread_id, SLOW)
    a.wait_for("item/agentMessage/delta", turnId=turn_id)
    answer = a.ask("thread/unsubscribe", {"threadId": thread_id})
    behind = a.messages.index(answer)
    c = connect("c")
    c.request("thread/resume", {"threadId": thread_id, "excludeTurns": True})
    assert c.wait_end(turn_id)["params"]["turn"]["status"] == "completed"
    a.sync()
    assert of_turn(a, turn_id, behind) == []
    # And again.
    a.request("thread/resume", {"threadId": thread_id, "excludeTurns": True})
    turn_id = c.run(thread_id)
    a.wait_end(turn_id)
    assert of_turn(a, turn_id) == of_turn(c, turn_id)


def test_a_fork_has_subscribers_of_its_own(connect: Connect) -> None:
    a, b = connect("a"), connect("b")
    thread_id = a.thread()
    a.run(thread_id)
    fork_id = b.request("thread/fork", {"threadId": thread_id, "excludeTurns": True})["thread"]["id"]
    turn_id, of_fork = a.run(thread_id), b.run(fork_id)
    for peer in (a, b):
        peer.sync()
    assert of_turn(b, turn_id) == of_turn(a, of_fork) == [] and of_turn(b, of_fork)[-1][0] == "turn/completed"


def test_subscribers_hear_that_another_has_put_their_thread_away(connect: Connect) -> None:
    a, b = connect("a"), connect("b")
    thread_id = a.thread()
    a.run(thread_id)
    b.request("thread/archive", {"threadId": thread_id})
    for peer in (a, b):
        peer.wait_for("thread/archived", threadId=thread_id)
    a.wait_for("thread/status/changed", threadId=thread_id, status={"type": "notLoaded"})
    assert a.request("thread/unsubscribe", {"threadId": thread_id}) == {"status": "notLoaded"}


@pytest.mark.slow
def test_unsubscribes_and_traces_reach_the_app_server(config: AppServerConfig, tmp_path: Path) -> None:
    """A thread like the TUI's title threads: ephemeral, one turn, unsubscribed."""
    log, program = tmp_path / "stdin", tmp_path / "codex"
    log.touch()
    program.write_text(f'#!/bin/sh\ntee {shlex.quote(str(log))} | {shlex.quote(str(find_codex()))} "$@"\n')
    program.chmod(0o755)
    config.codex_bin = program

    def sent(method: str) -> list[Message]:
        lines = log.read_text().split("\n")[:-1]
        return [message for message in map(json.loads, lines) if message.get("method") == method]

    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=x"}
    with Pool(1, config, log_file=tmp_path / "log") as pool:
        a, b = PoolPeer(pool.endpoint), PoolPeer(pool.endpoint)
        try:
            for peer in (a, b):
                peer.initialize()
            thread_id = a.thread(ephemeral=True)
            stored_id = a.thread()
            a.run(stored_id)
            b.request("thread/resume", {"threadId": stored_id, "excludeTurns": True}, trace=trace)
            assert [message.get("trace") for message in sent("thread/resume")] == [trace]
            a.run(thread_id)
            for each in (thread_id, stored_id):
                assert a.request("thread/unsubscribe", {"threadId": each}) == {"status": "unsubscribed"}
            deadline = time.monotonic() + 20
            while not sent("thread/unsubscribe"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert [message["params"] for message in sent("thread/unsubscribe")] == [{"threadId": thread_id}]
            assert b.request("thread/unsubscribe", {"threadId": stored_id}) == {"status": "unsubscribed"}
            while len(sent("thread/unsubscribe")) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # It is resumed as it was.
            turn_id = a.turn(stored_id, "again")
            b.request("thread/resume", {"threadId": stored_id, "excludeTurns": True})
            assert a.wait_end(turn_id)["params"]["turn"]["status"] == "completed"
        finally:
            for peer in (a, b):
                peer.close()


def test_a_broker_that_is_killed_loses_neither_the_turn_of_another_nor_an_approval(
    config: AppServerConfig, tmp_path: Path
) -> None:
    with Pool(1, config, log_file=tmp_path / "log") as pool:
        peers = {name: PoolPeer(pool.endpoint, client=name) for name in "abc"}
        a, b, c = peers.values()
        try:
            for peer in peers.values():
                peer.initialize()
            thread_id = a.thread(**ON_REQUEST)
            a.run(thread_id)
            b.request("thread/resume", {"threadId": thread_id, "excludeTurns": True})
            turn_id = a.turn(thread_id, "[[text chars=400 deltas=100 pace_ms=20]]")
            b.wait_for("item/agentMessage/delta", turnId=turn_id)
            os.kill(broker_of(pool), signal.SIGKILL)
            for peer in (a, b):
                peer.wait_end(turn_id)
            assert of_turn(a, turn_id) == of_turn(b, turn_id) and len(of_turn(b, turn_id)) > 100
            turn_id = a.turn(thread_id, ASK)
            asked = a.wait_for(APPROVAL, turnId=turn_id)
            os.kill(broker_of(pool), signal.SIGKILL)
            # Neither of those who were asked comes back to the next one.
            for peer in (a, b):
                peer.close()
            answer = c.ask("thread/resume", {"threadId": thread_id, "excludeTurns": True})
            again = c.wait_for(APPROVAL, turnId=turn_id)
            assert again == asked and c.messages.index(answer) < c.messages.index(again)
            c.answer(again, {"decision": "accept"})
            assert c.wait_end(turn_id)["params"]["turn"]["status"] == "completed"
        finally:
            for peer in peers.values():
                peer.close()
