"""Sub-agents without a process: whose turns they are, what is interrupted with what, and threads without any."""

from __future__ import annotations

import json
from typing import Any

import pytest
from broker_bench import Bench as BrokerBench
from broker_bench import FakeWorker
from session_ids import sid
from test_policy_broker import KeyedBench, identity
from worker_bench import Bench, completed, delta

from codex_app_server._core.sub_agents import AgentTurn, SubAgents, children_of, may_spawn
from codex_app_server.errors import InvalidInputError
from codex_app_server.presets import expand
from codex_pool import trust
from codex_pool.daemon.status_text import summary
from codex_pool.protocol import jsonrpc, thread_records, wire


def started(turn_id: str, thread_id: str, root: str) -> dict[str, Any]:
    turn = {"id": turn_id, "rootTurnId": root, "status": "inProgress", "items": []}
    return {"method": "turn/started", "params": {"threadId": thread_id, "turn": turn}}


def spawned(child: str, turn_id: str = "u1", thread_id: str = "t1") -> dict[str, Any]:
    item = {"type": "collabAgentToolCall", "tool": "spawnAgent", "id": "i", "receiverThreadIds": [child]}
    return {"method": "item/completed", "params": {"item": item, "threadId": thread_id, "turnId": turn_id}}


def ask(turn_id: str, thread_id: str) -> dict[str, Any]:
    params = {"threadId": thread_id, "turnId": turn_id}
    return {"id": 0, "method": "item/commandExecution/requestApproval", "params": params}


def interrupts(bench: Bench) -> list[tuple[str, str]]:
    """The open interrupts, by thread and turn."""
    asked = [message for message in bench.open.values() if message["method"] == "turn/interrupt"]
    return [(message["params"]["threadId"], message["params"]["turnId"]) for message in asked]


# Which turns work for which.


def test_the_turns_of_all_depths_work_for_the_one_at_the_top() -> None:
    agents = SubAgents()
    agents.spawned("t1", ["t2"])
    agents.spawned("t2", ["t3"])
    assert not agents.began("t2", "u2", "u1") and not agents.began("t3", "u3", "u1")
    agents.began("t9", "u9", "other")
    assert agents.running("t1", "u1") == [AgentTurn("t2", "u2"), AgentTurn("t3", "u3")]
    assert agents.running("t2", "u2") == [AgentTurn("t3", "u3")] and agents.running("t3", "u3") == []
    assert agents.active("t1", "u1") == "u1" and agents.root_of("u3") == "u1"
    agents.ended("t2", "u2")
    assert agents.running("t1", "u1") == [AgentTurn("t3", "u3")]
    agents.ended("t1", "u1")
    assert agents.running("t1", "u1") == [AgentTurn("t3", "u3")], "it outlives what it works for"


def test_the_turn_inside_of_a_review_is_the_one_to_interrupt_and_no_sub_agent() -> None:
    agents = SubAgents()
    agents.began("t1", "inner", "u1")
    agents.began("t2", "u2", "u1")
    assert agents.active("t1", "u1") == "inner" and agents.running("t1", "u1") == [AgentTurn("t2", "u2")]
    agents.ended("t1", "u1")
    assert len(agents) == 1 and "u2" in agents


def test_what_begins_after_the_interrupt_is_interrupted_too() -> None:
    agents = SubAgents()
    agents.spawned("t1", ["t2"])
    agents.spawned("t2", ["t3"])
    agents.began("t2", "u2", "u1")
    agents.stop("t2", "u2")
    assert agents.began("t3", "u3", "u1"), "below the one that was stopped alone"
    assert not agents.began("t4", "u4", "u1"), "beside it"
    assert not agents.began("t2", "u5", "u1"), "its parent gives it more to do"
    assert not agents.began("t3", "u6", "u1")
    agents.stop("t2", "u5")
    assert not agents.began("t7", "u9", "u1") and agents.spawned("t2", ["t7"]) == [AgentTurn("t7", "u9")]
    agents.stop("t1", "u1")
    assert agents.began("t2", "u7", "u1") and not agents.began("t2", "u8", "next")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_TURNS", "MAX_STOPPED", "MAX_THREADS"):
        monkeypatch.setattr(f"codex_app_server._core.sub_agents.{name}", 3)
    agents = SubAgents()
    for number in range(10):
        agents.began(f"t{number}", f"u{number}", f"r{number}")
        agents.spawned("t", [f"t{number}"])
        agents.stop("t", f"r{number}")
    assert len(agents) == len(agents._below) == len(agents._parents) == len(agents._stopped) == 3
    agents.spawned("a", ["b"])
    agents.spawned("b", ["a"])
    assert not agents.began("a", "u", "r"), "a circle ends"


@pytest.mark.parametrize(
    ("item", "children"),
    [
        ({"type": "collabAgentToolCall", "tool": "spawnAgent", "receiverThreadIds": ["t2"]}, ["t2"]),
        ({"type": "collabAgentToolCall", "tool": "sendInput", "receiverThreadIds": ["t2"]}, []),
        ({"type": "subAgentActivity", "kind": "started", "agentThreadId": "t2"}, ["t2"]),
        ({"type": "subAgentActivity", "kind": "interacted", "agentThreadId": "t2"}, []),
        ({"type": "agentMessage", "text": "spawnAgent"}, []),
        (7, []),
    ],
)
def test_only_what_codex_itself_has_made_is_a_child(item: Any, children: list[str]) -> None:
    line = json.dumps({"method": "item/completed", "params": {"item": item}}).encode()
    assert children_of(line) == children and (may_spawn(line) or not children)


# A worker.


@pytest.fixture
def bench() -> Bench:
    bench = Bench().start()
    bench.thread()
    bench.turn("u1")
    return bench


def test_a_sub_agent_is_followed_and_asked_for_like_the_turn_that_it_works_for(bench: Bench) -> None:
    bench.dispatch("pool/turn/follow", {"threadId": "t1", "turnId": "u1", "interest": "items"}, session="s2")
    bench.say(spawned("t2"))
    assert bench.routed(wire.Children) == [wire.Children("t1", ["t2"])]
    bench.say(started("u2", "t2", "u1"), delta("u2", "t2"), ask("u2", "t2"))
    begun = bench.routed(wire.TurnStarted)[-1]
    assert (begun.turn_id, begun.by_itself, [*begun.sessions]) == ("u2", False, [sid("s1"), sid("s2")])
    assert bench.methods("s1", "u2") == ["pool/turn/assigned", "turn/started", "item/agentMessage/delta"]
    assert bench.methods("s2", "u2") == ["pool/turn/assigned", "turn/started"]
    assert bench.lines[-1][0] == ["s1"] and bench.lines[-1][1][0]["id"] == "w0/0"
    assert bench.core.running_turns == bench.core.loaded_threads == 2
    bench.complete("u1")
    assert interrupts(bench) == [] and bench.core.running_turns == 1, "it goes on when its parent has completed"
    bench.complete("u2", "t2")
    assert [(each.thread_id, each.status) for each in bench.routed(wire.TurnEnded)] == [
        ("t1", "completed"),
        ("t2", "completed"),
    ]


def test_one_that_begins_before_it_is_said_to_have_been_made(bench: Bench) -> None:
    """Measured on codex 0.163.0: the two come in either order."""
    bench.say(started("u2", "t2", "u1"))
    bench.say(spawned("t2"), delta("u2", "t2"))
    assert bench.routed(wire.TurnStarted)[-1].sessions == [sid("s1")]
    assert bench.methods("s1", "u2")[-1] == "item/agentMessage/delta"


def test_a_thread_that_the_model_has_named_is_shown_to_the_pools_owner_alone() -> None:
    for owner, followers in (("", [sid("s1")]), ("P-alice", [])):
        bench = Bench().start()
        bench.thread()
        thread = bench.core._threads.get("t1")
        assert thread is not None
        thread.record = wire.ThreadRecord("t1", ephemeral=False, owner=owner)
        bench.turn("u1")
        bench.say(started("u2", "t2", "u1"))
        assert bench.routed(wire.TurnStarted)[-1].sessions == followers
        bench.say(spawned("t2"))
        assert bench.routed(wire.TurnStarted)[-1].sessions == [sid("s1")], "made here, it is its parent's"


def test_a_session_that_is_gone_leaves_no_sub_agent(bench: Bench) -> None:
    bench.say(spawned("t2"), started("u2", "t2", "u1"), started("u3", "t3", "u1"))
    bench.gone("s1")
    assert sorted(interrupts(bench)) == [("t1", "u1"), ("t2", "u2"), ("t3", "u3")], "each once"
    bench.say(started("u4", "t4", "u1"))
    assert ("t4", "u4") in interrupts(bench)


def test_a_session_that_keeps_its_turns_keeps_its_sub_agents(bench: Bench) -> None:
    bench.say(spawned("t2"), started("u2", "t2", "u1"))
    bench.apply(bench.core.broker_message(wire.SessionGone(sid("s1"), keep=True), [], bench.now))
    bench.say(spawned("t3"), started("u3", "t3", "u1"))
    assert interrupts(bench) == [] and bench.core.running_turns == 3


def test_the_broker_interrupts_a_turn_with_its_sub_agents(bench: Bench) -> None:
    bench.say(spawned("t2"), started("u2", "t2", "u1"))
    for _ in range(2):
        bench.apply(bench.core.broker_message(wire.Interrupt("t1", "u1"), [], bench.now))
    assert interrupts(bench) == [("t1", "u1"), ("t2", "u2")]
    for number, message in list(bench.open.items()):
        bench.answer(number, error="no active turn to interrupt") if message["params"]["turnId"] == "u2" else None
    bench.tick(0.1)
    assert interrupts(bench) == [("t1", "u1"), ("t2", "u2")], "told again"


def test_a_limit_interrupts_a_turn_with_its_sub_agents() -> None:
    bench = Bench(turn_idle_limit_s=None, turn_wall_limit_s=50).start()
    bench.thread()
    bench.turn("u1")
    bench.tick(49)
    bench.say(spawned("t2"), started("u2", "t2", "u1"))
    bench.tick(1)
    assert interrupts(bench) == [("t1", "u1"), ("t2", "u2")]
    bench.complete("u1", status="interrupted")
    bench.complete("u2", "t2", status="interrupted")
    ends = [(each.turn_id, each.status) for each in bench.routed(wire.TurnEnded)]
    assert ends == [("u1", "stalled"), ("u2", "interrupted")]


def test_a_thread_is_not_put_away_while_a_sub_agent_of_it_runs(bench: Bench) -> None:
    bench.say(spawned("t2"), started("u2", "t2", "u1"), completed("u1"))
    bench.apply(bench.core.broker_message(wire.Release(900, "t1"), [], bench.now))
    assert not bench.answered[900][0].ok
    bench.complete("u2", "t2")
    bench.apply(bench.core.broker_message(wire.Release(901, "t1", ["t2", "t5"]), [], bench.now))
    back = []
    while bench.open:
        ((number, message),) = bench.open.items()
        back.append((message["method"], message["params"]["threadId"]))
        bench.notify(message["method"] + "d", threadId=message["params"]["threadId"])
        bench.answer(number, {}) if back[-1][1] != "t5" else bench.answer(number, error="not found")
    assert back == [
        ("thread/archive", "t1"),
        ("thread/unarchive", "t5"),
        ("thread/unarchive", "t2"),
        ("thread/unarchive", "t1"),
    ]
    assert bench.answered[901][0].ok and bench.core.loaded_threads == 0 and bench.core.held["leaving"] == 0
    assert not any("archived" in line["method"] for _, lines in bench.lines for line in lines)


def test_a_sub_agent_that_is_closed_is_loaded_no_more_and_may_come_back(bench: Bench) -> None:
    bench.say(spawned("t2"), started("u2", "t2", "u1"), spawned("t3", "u2", "t2"))
    assert bench.core.loaded_threads == 3
    bench.complete("u2", "t2", status="interrupted")
    bench.notify("thread/status/changed", threadId="t2", status={"type": "notLoaded"})
    assert bench.core.loaded_threads == 1
    bench.say(started("u4", "t2", "u1"))
    assert bench.routed(wire.TurnStarted)[-1].sessions == [sid("s1")] and bench.core.loaded_threads == 2


# A broker.


@pytest.fixture
def broker() -> BrokerBench:
    """A pool of two whose worker w0 runs u1 on t1, and a sub-agent of it."""
    bench = BrokerBench()
    bench.register("w0", 0)
    bench.register("w1", 1)
    bench.hello()
    worker = bench.thread("t1")
    bench.turn("t1")
    bench.from_worker(worker, wire.Children("t1", ["t2"]))
    bench.from_worker(worker, wire.TurnStarted("t2", "own", [sid("s1")]))
    worker.running["own"] = ("t2", "s1")
    return bench


def holder(bench: BrokerBench) -> FakeWorker:
    return next(worker for worker in bench.workers.values() if "own" in worker.running)


def test_a_sub_agent_is_counted_and_shown(broker: BrokerBench) -> None:
    status = broker.status()
    assert (status["turns"]["running"], status["turns"]["subAgents"]) == (2, 1)
    assert sorted((row["turns"], row["subAgents"]) for row in status["workers"]) == [(0, 0), (2, 1)]
    assert [(row["turns"], row["subAgents"]) for row in status["sessions"]] == [(2, 1)]
    assert "2 running (1 of sub-agents)" in summary(status)
    broker.end(holder(broker), "own")
    assert broker.status()["turns"]["subAgents"] == 0


def test_requests_for_its_thread_go_where_its_parent_is(broker: BrokerBench) -> None:
    worker = holder(broker)
    broker.from_worker(worker, wire.Children("t2", ["t3"]))
    for thread_id in ("t2", "t3"):
        call = broker.call("thread/read", {"threadId": thread_id})
        assert [name for name, _ in broker.dispatches(call)] == [worker.name]


def test_its_turn_is_lost_with_its_worker(broker: BrokerBench) -> None:
    broker.lose(holder(broker))
    assert sorted(broker.ended) == [("s1", "own"), ("s1", "u1")]
    assert broker.status()["turns"]["lost"] == 2


def test_a_worker_does_not_leave_and_a_thread_does_not_move_while_it_runs(broker: BrokerBench) -> None:
    worker = holder(broker)
    broker.end(worker, "u1")
    broker.drain(worker)
    call = broker.call("turn/start", {"threadId": "t1"})
    assert broker.drained == [] and worker.releases == {}
    assert [name for name, _ in broker.dispatches(call)] == [worker.name]
    broker.end(worker, broker.answer(worker, broker.dispatches(call)[0][1].call) or "")
    # Else it would have drained.
    broker.from_worker(worker, wire.TurnStarted("t8", "other", [sid("s1")]))
    broker.end(worker, "own")
    call = broker.call("turn/start", {"threadId": "t1"})
    assert [*worker.releases.values()] == ["t1"]
    released = [head for head in worker.heads if isinstance(head, wire.Release)]
    assert [head.children for head in released] == [["t2"]]
    broker.put_away(worker)
    assert broker.dispatches(call)[0][0] != worker.name
    broker.from_worker(worker, wire.TurnEnded("t8", "other", "completed"))
    assert broker.drained == [worker.name]


def test_revoking_a_key_interrupts_the_sub_agents_of_its_turns() -> None:
    bench = KeyedBench(identity("alice"))
    bench.register("w0", 0)
    bench.hello("alice-1")
    bench.keyed_thread("t1", "alice-1")
    worker, policy = bench.workers["w0"], bench.core.state.policy
    bench.from_worker(worker, wire.Children("t1", ["t2"]))
    bench.from_worker(worker, wire.TurnStarted("t2", "own", []))
    assert policy is not None and bench.core.state.threads.owner_of("t2") == "P-alice"
    assert bench.core.state.turns.count_of("P-alice") == 1, "it counts against its key's limit"
    policy.replace([identity("bob")])
    bench.apply(bench.core.end_sessions(lambda who, key: who == "P-alice", bench.now))
    assert wire.Interrupt("t2", "own") in worker.heads


# Threads without sub-agents.


@pytest.mark.parametrize(
    ("given", "config"),
    [
        ({}, {"features.multi_agent": False, "features.multi_agent_v2": False, "agents.max_depth": 0}),
        (
            {"features": {"goals": False}, "model_verbosity": "low"},
            {
                "features": {"goals": False, "multi_agent": False, "multi_agent_v2": False},
                "model_verbosity": "low",
                "agents.max_depth": 0,
            },
        ),
    ],
)
def test_sub_agents_false_is_settings_beside_those_that_are_given(given: Any, config: Any) -> None:
    assert expand({"sub_agents": False, "config": given or None}) == {"config": config}
    assert thread_records.asks_without_agents(
        jsonrpc.decode_request(jsonrpc.encode({"method": "x", "params": {"config": config}}))
    )
    for name, value in config.items():
        assert "." not in name or trust.narrows(name, value), "a key may ask for it"


def test_sub_agents_true_asks_for_them_and_none_says_nothing() -> None:
    assert expand({"sub_agents": True}) == {"config": {"features.multi_agent": True}}
    assert expand({"sub_agents": None, "model": "m"}) == {"model": "m"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sub_agents": "no"}, "sub_agents is 'no'; expected True, False or None"),
        ({"sub_agents": False, "config": {"agents.max_depth": 2}}, "agents.max_depth in config says too"),
        (
            {"sub_agents": False, "config": {"features": {"multi_agent": True}}},
            "features.multi_agent in config says too",
        ),
        ({"sub_agents": False, "config": "x"}, "config is 'x'; expected a dict"),
    ],
)
def test_what_sub_agents_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        expand(options)


def test_threads_without_sub_agents_are_adopted_without() -> None:
    record = wire.ThreadRecord("t1", ephemeral=False, without_agents=True, untrusted=True, cwd="/w")
    config = thread_records.resume_params(record)["config"]
    assert config["agents.max_depth"] == 0 and trust.is_untrusting(jsonrpc.encode(config), "/w")
    bench = Bench().start()
    params = {"threadId": "t1", "config": {"agents": {"max_depth": 0}}}
    bench.dispatch("thread/resume", params)
    bench.answer(bench.request("thread/resume"), {"thread": {"id": "t1"}, "sandbox": {"type": "readOnly"}})
    assert bench.core._threads.records[0].without_agents


def test_a_key_may_not_widen_what_sub_agents_are() -> None:
    for name, value in (("agents.max_depth", 1), ("agents.max_depth", False), ("features.multi_agent", True)):
        assert not trust.narrows(name, value)
