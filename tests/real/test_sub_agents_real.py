"""Sub-agents on the real binary: real children, spawned by the scripted model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool

from codex_app_server import (
    AppServerConfig,
    AsyncCodex,
    Codex,
    RequestTimeoutError,
    Thread,
    TurnFailedError,
    TurnHandle,
)
from codex_app_server.testing.loopback import Hang, LoopbackModel, Rule, Script, Text, ToolCall
from codex_pool import Pool, aconnect

pytestmark = pytest.mark.real

LIMIT_S = 20.0
PARENT = "delegate this"
CHILD = "please work as a child"
GRANDCHILD = "please work as a grandchild"
# How long after an interrupt nothing may ask the model any more.
QUIET_S = 5.0


def spawn(message: str, then: Any = None) -> ToolCall:
    return ToolCall(json.dumps({"message": message}), tool="multi_agent_v1.spawn_agent", then=then)


def script(child: Any = None, parent: Any = None) -> Script:
    """A parent that spawns a child; both hang unless they are given other answers."""
    rules = (Rule(Hang(2), contains=GRANDCHILD), Rule(child or Hang(2), contains=CHILD))
    return Script((*rules, Rule(spawn(CHILD, parent or Hang(2)), contains=PARENT)), Text("as always"))


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Ask again until it is true; its value."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)
    return value


def asked(model: LoopbackModel, *prompts: str) -> None:
    """Wait until these hang in the model, with what they were answered before."""
    wait_until(lambda: {record.prompt for record in model.active} >= {*prompts}, f"{prompts} hang in the model")
    wait_until(lambda: all(r.tool_outputs for r in model.active if r.prompt == PARENT), "the child is spawned")


def quiet(model: LoopbackModel) -> None:
    wait_until(lambda: not model.active, f"nothing asks the model: {[r.prompt for r in model.active]}", QUIET_S)


def status(codex: Codex) -> dict[str, Any]:
    found: dict[str, Any] = codex.client.request("pool/status")
    return found


def child_of(model: LoopbackModel) -> Any:
    """The record of the child's first request to the model: it names thread and turn."""
    return next(record for record in model.requests if record.prompt == CHILD)


@pytest.fixture
def delegated(model: LoopbackModel) -> LoopbackModel:
    model.script = script()
    return model


# The SDK on one app-server.


def begun(codex: Codex, model: LoopbackModel) -> TurnHandle:
    turn = codex.thread_start().turn(PARENT)
    asked(model, PARENT, CHILD)
    return turn


def test_interrupting_a_turn_interrupts_its_sub_agent(config: AppServerConfig, delegated: LoopbackModel) -> None:
    with Codex(config) as codex:
        turn = begun(codex, delegated)
        turn.interrupt()
        quiet(delegated)
        assert turn.run().status == "interrupted"
        ends = []
        while len(ends) < 1:
            notification = codex.client.next_notification(timeout_s=LIMIT_S)
            assert notification is not None
            if notification.method == "turn/completed":
                ends.append(notification.payload)
        child = child_of(delegated)
        assert (ends[0].thread_id, ends[0].turn.id, ends[0].turn.status) == (
            child.thread_id,
            child.turn_id,
            "interrupted",
        )
        assert codex.client.held == {**codex.client.held, "turns": 0, "early": 0}


@pytest.mark.parametrize("way", ["timeout", "close", "leave"])
def test_what_ends_a_turn_early_ends_its_sub_agent(config: AppServerConfig, delegated: LoopbackModel, way: str) -> None:
    with Codex(config) as codex:
        if way == "timeout":
            thread = codex.thread_start()
            with pytest.raises(RequestTimeoutError):
                thread.run(PARENT, timeout=3)
            assert any(record.prompt == CHILD for record in delegated.requests)
        elif way == "close":
            begun(codex, delegated).stream().close()
        else:
            with begun(codex, delegated).stream() as stream:
                next(stream)
        quiet(delegated)


def test_a_sub_agent_that_begins_after_the_interrupt_does_not_stay(
    config: AppServerConfig, delegated: LoopbackModel
) -> None:
    """Interrupted as soon as the tool is called, before there is a child."""
    with Codex(config) as codex:
        for _ in range(3):
            turn = codex.thread_start().turn(PARENT)
            for notification in turn.stream():
                if notification.method == "item/started" and notification.payload.item.type == "collabAgentToolCall":
                    turn.interrupt()
            quiet(delegated)


def test_a_detached_turn_leaves_its_sub_agent_alone(config: AppServerConfig, delegated: LoopbackModel) -> None:
    with Codex(config) as codex:
        turn = codex.thread_start().turn(PARENT, detach=True)
        asked(delegated, PARENT, CHILD)
        turn.stream().close()
        time.sleep(0.5)
        assert {record.prompt for record in delegated.active} == {PARENT, CHILD}
        turn.interrupt()
        quiet(delegated)


def test_a_sub_agent_outlives_the_completion_of_its_turn_but_not_an_interrupt_after_it(
    config: AppServerConfig, model: LoopbackModel
) -> None:
    model.script = script(parent=Text("done"))
    with Codex(config) as codex:
        with codex.thread_start().turn(PARENT).stream() as stream:
            *_, last = stream
        assert last.payload.turn.status == "completed"
        asked(model, CHILD)
        turn = codex.thread_start().turn(PARENT)
        assert turn.run().final_response == "done"
        wait_until(lambda: len(model.active) == 2, "both children work in the background")
        turn.interrupt()
        wait_until(lambda: len(model.active) == 1, "the second one is interrupted", QUIET_S)
        time.sleep(0.3)
        assert len(model.active) == 1


def test_sub_agents_are_followed_by_handles_of_their_own(config: AppServerConfig, model: LoopbackModel) -> None:
    model.script = script(child=Text("I worked.", pace_ms=30), parent=Text("done"))
    with Codex(config) as codex:
        turn = codex.thread_start().turn(PARENT)
        (child,) = wait_until(turn.sub_agents, "it has a sub-agent")
        assert child.run().final_response == "I worked."
        result = turn.run()
        assert result.final_response == "done" and turn.sub_agents() == []
        (thread_id,) = turn.sub_agent_usage()
        used = turn.sub_agent_usage()[thread_id].total.total_tokens
        assert thread_id == child.thread_id == child_of(model).thread_id and used > 0
        assert result.usage is not None and result.usage.total.total_tokens != used
        (item,) = [item for item in result.items if item.type == "collabAgentToolCall"]
        assert item.receiver_thread_ids == [child.thread_id]


def test_sub_agents_of_sub_agents(config: AppServerConfig, model: LoopbackModel) -> None:
    model.script = script(child=spawn(GRANDCHILD, Hang(2)))
    with Codex(config) as codex:
        thread = codex.thread_start(config={"agents": {"max_depth": 3}})
        turn = thread.turn(PARENT)
        asked(model, PARENT, CHILD, GRANDCHILD)
        child = child_of(model)
        Thread(codex.client, child.thread_id).follow(child.turn_id).interrupt()
        wait_until(lambda: [r.prompt for r in model.active] == [PARENT], "a child ends with what works for it", QUIET_S)
        turn.interrupt()
        quiet(model)


def test_the_tools_of_multi_agent_v2(config: AppServerConfig, model: LoopbackModel) -> None:
    call = ToolCall(json.dumps({"message": CHILD, "task_name": "work"}), tool="collaboration.spawn_agent", then=Hang(2))
    model.script = Script((Rule(call, contains=PARENT),))
    with Codex(config) as codex:
        turn = codex.thread_start(config={"features.multi_agent_v2": True}).turn(PARENT)
        wait_until(lambda: len({record.thread_id for record in model.active}) == 2, "both work")
        turn.interrupt()
        quiet(model)


def test_the_async_twins(config: AppServerConfig, delegated: LoopbackModel) -> None:
    async def main() -> None:
        async with AsyncCodex(config) as codex:
            turn = await (await codex.thread_start()).turn(PARENT)
            await asyncio.to_thread(asked, delegated, PARENT, CHILD)
            await turn.interrupt()
            await asyncio.to_thread(quiet, delegated)
            thread = await codex.thread_start()
            running = asyncio.create_task(thread.run(PARENT))
            await asyncio.to_thread(asked, delegated, PARENT, CHILD)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await asyncio.to_thread(quiet, delegated)

    asyncio.run(main())


# A pool.


@contextlib.contextmanager
def pool_of(config: AppServerConfig, tmp_path: Path, workers: int = 1, **options: Any) -> Iterator[Pool]:
    with Pool(workers, config, log_file=tmp_path / "log", **options) as pool:
        yield pool


def test_a_pool_interrupts_asks_shows_and_tells(config: AppServerConfig, model: LoopbackModel, tmp_path: Path) -> None:
    model.script = script(child=ToolCall("echo hi", escalate=True, then=Hang(2)))
    questions: list[tuple[str, str, str]] = []

    def handler(method: str, params: Any) -> Any:
        questions.append((method, params.thread_id, params.turn_id))
        return {"decision": "accept"}

    with pool_of(config, tmp_path, 2) as pool, pool.connect(approval_handler=handler) as codex:
        turn = codex.thread_start(approval_mode="ask").turn(PARENT)
        asked(model, PARENT, CHILD)
        child = child_of(model)
        assert questions == [("item/commandExecution/requestApproval", child.thread_id, child.turn_id)]
        turns = status(codex)["turns"]
        assert (turns["running"], turns["subAgents"]) == (2, 1)
        read = codex.client.request("thread/read", {"thread_id": child.thread_id}).thread
        assert (read.parent_thread_id, read.session_id) == (turn.thread_id, turn.thread_id)
        turn.interrupt()
        quiet(model)
        assert turn.run().status == "interrupted"
        methods = []
        while "turn/completed" not in methods:
            notification = codex.client.next_notification(timeout_s=LIMIT_S)
            assert notification is not None
            params = notification.params
            if params.get("threadId") == child.thread_id and "turnId" in params:
                assert params["turnId"] == child.turn_id
            if params.get("threadId") == child.thread_id:
                methods.append(notification.method)
        assert {"turn/started", "item/started", "item/completed", "thread/tokenUsage/updated"} <= {*methods}
        wait_until(lambda: status(codex)["turns"]["running"] == 0, "nothing runs")
        assert status(codex)["turns"]["interrupted"] == 2


@pytest.mark.parametrize("way", ["close", "close after completion"])
def test_a_client_that_leaves_a_pool_leaves_no_sub_agent(
    config: AppServerConfig, model: LoopbackModel, tmp_path: Path, way: str
) -> None:
    model.script = script(parent=Text("done") if way == "close after completion" else None)
    with pool_of(config, tmp_path) as pool, pool.connect() as watcher:
        codex = pool.connect()
        turn = codex.thread_start().turn(PARENT)
        if way == "close":
            asked(model, PARENT, CHILD)
        else:
            turn.run()
            asked(model, CHILD)
        codex.close()
        quiet(model)
        wait_until(lambda: status(watcher)["turns"]["running"] == 0, "nothing runs")


def test_a_limit_of_the_pool_ends_a_turn_with_its_sub_agent(
    config: AppServerConfig, delegated: LoopbackModel, tmp_path: Path
) -> None:
    with pool_of(config, tmp_path, turn_wall_limit_s=3) as pool, pool.connect() as codex:
        turn = codex.thread_start().turn(PARENT)
        asked(delegated, PARENT, CHILD)
        with pytest.raises(TurnFailedError) as failed:
            turn.run()
        assert failed.value.kind == "stalled"
        quiet(delegated)


@pytest.mark.parametrize("victim", ["appServerPid", "pid"])
def test_a_sub_agent_is_lost_with_its_worker_and_said_to_be(
    config: AppServerConfig, delegated: LoopbackModel, tmp_path: Path, victim: str
) -> None:
    with pool_of(config, tmp_path, 2) as pool, pool.connect() as codex:
        thread = codex.thread_start()
        turn = thread.turn(PARENT)
        asked(delegated, PARENT, CHILD)
        child = child_of(delegated)
        (row,) = [row for row in status(codex)["workers"] if row["turns"]]
        os.kill(row[victim], signal.SIGKILL)
        with pytest.raises(TurnFailedError) as failed:
            turn.run()
        assert failed.value.kind == "lost"
        ends: list[Any] = []
        while len(ends) < 2:
            notification = codex.client.next_notification(timeout_s=LIMIT_S)
            assert notification is not None
            if notification.params.get("threadId") == child.thread_id and notification.method in (
                "pool/turn/ended",
                "turn/completed",
            ):
                ends.append(notification.params)
        assert ends[0]["kind"] == "lost" and ends[1]["turn"]["status"] == "failed"
        quiet(delegated)
        assert thread.run("what now").final_response == "as always", "its thread was adopted"
        assert status(codex)["turns"]["running"] == 0


def test_a_recycled_worker_takes_no_sub_agent_with_it(
    config: AppServerConfig, model: LoopbackModel, tmp_path: Path
) -> None:
    """The worker stays until the child has ended; the child's thread comes out of the archive with its parent's."""
    model.script = script(child=Text("x" * 200, deltas=20, pace_ms=200), parent=Text("done"))
    with pool_of(config, tmp_path, recycle_turns=1) as pool, pool.connect() as codex:
        thread = codex.thread_start()
        thread.run(PARENT)
        (first,) = [row["worker"] for row in status(codex)["workers"]]
        assert thread.run("meanwhile").final_response == "as always"
        assert [record.outcome for record in model.requests if record.prompt == CHILD] == ["streaming"]
        wait_until(lambda: child_of(model).outcome == "completed", "the child has ended by itself")
        wait_until(lambda: status(codex)["turns"]["running"] == 0, "it is known")
        assert thread.run("afterwards").final_response == "as always"
        wait_until(lambda: first not in [row.get("worker") for row in status(codex)["workers"]], "it is replaced")
        stored = codex.thread_list(source_kinds=["subAgentThreadSpawn"]).data
        assert [found.id for found in stored] == [child_of(model).thread_id]


def test_who_joins_a_turn_gets_its_sub_agents_too(
    config: AppServerConfig, delegated: LoopbackModel, tmp_path: Path
) -> None:
    with pool_of(config, tmp_path) as pool, pool.connect() as codex, pool.connect() as other:
        turn = codex.thread_start().turn(PARENT)
        asked(delegated, PARENT, CHILD)
        joined = Thread(other.client, turn.thread_id).follow(turn.id)
        wait_until(lambda: [row["turns"] for row in status(other)["sessions"]] == [2, 2], "it has joined both")
        turn.interrupt()
        assert joined.run().status == "interrupted"
        ends: list[Any] = []
        while not ends:
            notification = other.client.next_notification(timeout_s=LIMIT_S)
            assert notification is not None
            ends += [notification.payload] if notification.method == "turn/completed" else []
        assert ends[0].thread_id == child_of(delegated).thread_id


# A batch.


def test_a_batch_ends_sub_agents_with_their_sample(model: LoopbackModel, home: Path, tmp_path: Path) -> None:
    # The child comes to hang before its parent is done.
    model.script = script(child=ToolCall("sleep 0", then=Hang(2)), parent=Text(chars=20, deltas=20, pace_ms=150))
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    samples = [{"id": "one", "prompt": PARENT}, {"id": "two", "prompt": "x"}]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    done = codex_pool("batch", str(data), "--home", str(home), "--json", "-o", str(out))
    assert done.returncode == 0, done.stderr
    records = {r["id"]: r for r in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert [records[name]["status"] for name in ("one", "two")] == ["completed", "completed"]
    assert [record.outcome for record in model.requests if record.prompt == CHILD] == ["completed", "disconnected"]
    # The loopback model counts a token for each four letters of what it is asked, and one.
    asked_for = [record.prompt for record in model.requests if record.outcome == "completed" and record.prompt != "x"]
    assert sorted(asked_for) == sorted([PARENT, PARENT, CHILD])
    assert records["one"]["usage"]["input_tokens"] == sum(len(prompt) // 4 + 1 for prompt in asked_for)


# Threads without sub-agents.


def has_agents(model: LoopbackModel) -> bool:
    return "multi_agent_v1" in model.requests[-1].tools


@pytest.mark.parametrize("kind", ["one", "pool"])
def test_threads_without_sub_agents(config: AppServerConfig, model: LoopbackModel, tmp_path: Path, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "pool":
            pool = stack.enter_context(pool_of(config, tmp_path, 2))

        def client() -> Any:
            return pool.connect() if kind == "pool" else Codex(config)

        with client() as codex:
            with_agents, without = codex.thread_start(), codex.thread_start(sub_agents=False)
            with_agents.run("one")
            assert has_agents(model)
            without.run("two")
            assert not has_agents(model)
            codex.thread_fork(with_agents.id, sub_agents=False).run("three")
            assert not has_agents(model)
            if kind == "pool":
                # The next worker leaves them out as well.
                resumed = codex.thread_start()
                resumed.run("four")
                kill_all(codex)
                codex.thread_resume(resumed.id, sub_agents=False).run("five")
                assert not has_agents(model)
                for thread in (without, resumed):
                    thread.run("six")
                    assert not has_agents(model)
                kill_all(codex)
                for thread in (without, resumed):
                    thread.run("seven")
                    assert not has_agents(model)
        if kind == "one":
            with Codex(config) as codex:
                codex.thread_resume(with_agents.id, sub_agents=False).run("four")
                assert not has_agents(model)


def kill_all(codex: Codex) -> None:
    """Kill the app-servers of a pool of two, and wait for the next ones."""
    before: set[str] = set()

    def ready() -> dict[str, int]:
        rows = status(codex)["workers"]
        found = {row["worker"]: row["appServerPid"] for row in rows if row["state"] == "ready" and "worker" in row}
        return found if len(found) == 2 and not before & set(found) else {}

    wait_until(ready, "all workers are ready")
    there = ready()
    before.update(there)
    for pid in there.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(ready, "all workers are ready again")


def test_threads_without_sub_agents_in_asyncio(config: AppServerConfig, model: LoopbackModel, tmp_path: Path) -> None:
    async def main(endpoint: str) -> None:
        async with await aconnect(endpoint) as codex:
            await (await codex.thread_start(sub_agents=False)).run("one")
            assert not has_agents(model)

    with pool_of(config, tmp_path) as pool:
        asyncio.run(main(pool.endpoint))
