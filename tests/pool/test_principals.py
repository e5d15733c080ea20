"""Sessions of different principals never meet, whatever they are called; keys that end take their sessions along."""

from __future__ import annotations

import json
from typing import Any

import pytest
import worker_bench
from broker_bench import Bench, encode
from hypothesis import assume, given
from hypothesis import strategies as st
from session_ids import named, sid

from codex_pool.auth.policy import NOT_ALLOWED, AccessPolicy
from codex_pool.auth.principal import Identity
from codex_pool.broker.sessions import IDLE_GRACE_S, REVOKED, SESSION_GRACE_S
from codex_pool.protocol import wire
from codex_pool.protocol.wire import SessionId

RECORD: dict[str, Any] = {"turns": 1, "sandbox": '{"type":"readOnly"}', "approval_policy": '"never"', "cwd": "/srv"}

# Texts that run into each other where two are made one.
PARTS = ["a", "b", "a/b", "/", "a/", "/b", "a/b/c", "\0", "a\0b", "é", "e\u0301", '["a","b"]', '"', "a,b", "0"]
PARTS.append("x" * 256)
sessions = st.one_of(st.sampled_from(PARTS), st.text(min_size=1, max_size=8))
principals = st.one_of(st.just(""), sessions)
pairs = st.builds(SessionId, principals, sessions)


class Pool(Bench):
    """A broker with clients of several principals: a session is a SessionId, or the id of one of the owner's."""

    def __init__(self, *who: str, **options: Any) -> None:
        self.generations = 0
        self.keys = {each: f"key of {each}" for each in who if each}
        self.policy = AccessPolicy(
            [
                Identity(name=f"n{number}", principal=each, cwd_roots=("/srv",), sandbox="danger-full-access")
                for number, each in enumerate(self.keys)
            ],
            default_cwd="/srv",
            realpath=lambda path: path,
        )
        super().__init__(slots=1, turns_per_worker=8, policy=self.policy, **options)

    def hello(self, session: Any = "s1", *, positions: list[wire.Position] | None = None, **options: Any) -> None:
        self.generations += 1
        self.connections[named(session)] = f"connection {self.generations}"
        body = [wire.encode_positions(positions)] if positions is not None else []
        self.from_client(wire.Hello(sid(session).session, "client", **options), *body, session=session)

    def from_client(self, head: Any, *frames: bytes, session: Any = "s1") -> None:
        who = sid(session).principal
        connection = self.connections[named(session)].encode()
        message = [wire.encode(head), *frames]
        self.apply(self.core.client_message(connection, message, self.now, who, self.keys.get(who, "")))

    def dispatched(self, call: tuple[Any, Any]) -> list[SessionId]:
        return [head.session for _, head in self.dispatches((named(call[0]), call[1]))]

    def got(self, session: Any, kind: type) -> list[Any]:
        return [head for to, head in self.heads if to == named(session) and isinstance(head, kind)]


def restarted(before: Pool, **options: Any) -> Pool:
    """The broker after it, with nothing registered yet."""
    pool = Pool(*before.keys, expect=["w0"], checkpoint=before.checkpoint, **options)
    pool.keys, pool.generations = dict(before.keys), before.generations
    return pool


# The broker.


@given(pairs, pairs)
def test_two_sessions_are_one_only_if_both_parts_are(first: SessionId, second: SessionId) -> None:
    assume(first != second)
    pool = Pool(first.principal, second.principal)
    worker = pool.register()
    for session in (first, second):
        pool.hello(session)
        assert pool.got(session, wire.Welcome) == [wire.Welcome(1, resumed=False)]
        assert pool.got(session, wire.Closed) == []
    # The same request ids: both are asked, and each gets its own answer.
    for session in (first, second):
        pool.call("thread/start", id="r", session=session)
    heads = [head for head, _ in worker.open.values()]
    assert [head.session for head in heads] == [first, second]
    for number, head in enumerate(heads):
        record = wire.ThreadRecord(f"t{number}", False, **RECORD)
        pool.answer_with(worker, head.call, {"id": "r", "result": {"thread": number}}, record=record)
    for number, session in enumerate((first, second)):
        assert pool.answers[named(session), "r"] == [{"id": "r", "result": {"thread": number}}]
        assert pool.core.state.threads[f"t{number}"].record.owner == session.principal
        assert list(pool.core.state.threads[f"t{number}"].followers) == [session]
    # Another's thread is not there, under whatever name; to the owner all are.
    call = pool.call("thread/read", {"threadId": "t0"}, session=second)
    if second.principal in ("", first.principal):
        assert pool.dispatched(call) == [second]
    else:
        assert pool.error(call)["code"] == NOT_ALLOWED
    # One ends, and the other does not notice.
    pool.from_client(wire.Bye(), session=first)
    assert list(pool.core.state.sessions) == [second] and wire.SessionGone(first) in worker.heads
    assert wire.SessionGone(second) not in worker.heads


@given(pairs, pairs)
def test_after_the_death_of_the_broker_each_is_who_it_was(first: SessionId, second: SessionId) -> None:
    assume(first != second)
    before = Pool(first.principal, second.principal)
    holdings = wire.encode_worker_state(
        wire.WorkerState(
            records=[wire.ThreadRecord("t0", False, owner=first.principal, **RECORD)],
            followers={"t0": [first]},
            turns=[wire.RunningTurn("t0", "u0", [first])],
            calls=[wire.KnownCall(first, "1"), wire.KnownCall(second, "1")],
            logins={"l": second},
        )
    )
    pool = restarted(before)
    for session in (second, first):
        pool.hello(session, positions=[])
    worker = pool.register(holdings=holdings)
    worker.running["u0"] = ("t0", "")
    for session in (first, second):
        assert pool.got(session, wire.Welcome)[-1].resumed
        assert pool.core.state.sessions[session].principal == session.principal
        call = pool.call("model/list", id=1, session=session, again=True)
        assert pool.dispatched(call) == [session]
    assert sorted(head.session for head in worker.heads if isinstance(head, wire.SessionResumed)) == sorted(
        [first, second]
    )
    # Who follows the thread is told of its turn, and nobody else.
    pool.heads.clear()
    lines = encode({"method": "turn/completed", "params": {}})
    pool.from_worker(worker, wire.TurnEnded("t0", "u0", "completed", [first]), wire.encode(wire.Lines()), lines)
    assert [to for to, head in pool.heads if isinstance(head, wire.Lines)] == [named(first)]


@given(pairs)
def test_a_session_that_does_not_come_back_ends_as_what_it_was(session: SessionId) -> None:
    pool = restarted(Pool(session.principal))
    worker = pool.register(
        holdings=wire.encode_worker_state(wire.WorkerState([], calls=[wire.KnownCall(session, "1")]))
    )
    (row,) = pool.status()["sessions"]
    assert row["principal"] == session.principal and row["identity"] == ("n0" if session.principal else "")
    pool.beat(SESSION_GRACE_S + 2)
    assert wire.SessionGone(session) in worker.heads and pool.core.state.sessions == {}


def test_a_session_of_a_key_for_which_nothing_runs_is_away_for_a_shorter_time() -> None:
    pool = Pool("p1")
    worker = pool.register()
    idle, asks, mine = SessionId("p1", "idle"), SessionId("p1", "asks"), SessionId("", "mine")
    for session in (idle, asks, mine):
        pool.hello(session)
    assert pool.dispatched(pool.call("model/list", session=asks, id=1))
    for connection in pool.connections.values():
        pool.apply(pool.core.client_unreachable(connection.encode(), pool.now))
    pool.beat(IDLE_GRACE_S + 2)
    assert [head.session for head in worker.heads if isinstance(head, wire.SessionGone)] == [idle]
    pool.beat(SESSION_GRACE_S - IDLE_GRACE_S)
    assert pool.core.state.sessions == {}


def test_an_owners_session_with_the_name_of_a_key_is_not_that_of_the_key() -> None:
    pool = Pool("mallory")
    worker = pool.register()
    mallory = SessionId("mallory", "job1")
    pool.hello("mallory/job1")
    pool.hello(mallory)
    assert not pool.got(mallory, wire.Welcome)[0].resumed
    call = pool.call("fs/readFile", {"path": "/etc/passwd"}, session=mallory)
    assert pool.error(call)["code"] == NOT_ALLOWED and not worker.open
    pool.call("fs/readFile", {"path": "/etc/passwd"}, session="mallory/job1")
    assert [head.session for head, _ in worker.open.values()] == [SessionId("", "mallory/job1")]


def test_what_names_nobody_is_nobodys() -> None:
    """An entry without the id of its principal would be the owner."""
    policy = AccessPolicy([Identity(name="alice", sandbox="danger-full-access")])
    assert policy.name_of("") == "" and policy.admit("alice", 0) is not None
    assert policy.may_touch("", None) and not policy.may_touch("alice", None)


# Keys that end.


@pytest.mark.parametrize("back", [True, False])
def test_a_key_that_ends_takes_its_sessions_along_wherever_they_are(back: bool) -> None:
    alice, bob = "A" * 32, "B" * 32
    pool = Pool(alice, bob)
    worker = pool.register()
    here, away, other = SessionId(alice, "here"), SessionId(alice, "away"), SessionId(bob, "here")
    for session in (here, away, other, "here"):
        pool.hello(session)
    pool.apply(pool.core.client_unreachable(pool.connections[away].encode(), pool.now))
    # The principal is the same; only what came in with the old key is over.
    old, pool.keys[alice] = pool.keys[alice], "another key"
    new = SessionId(alice, "new")
    pool.hello(new)
    if back:
        pool.hello(away)
    pool.heads.clear()
    pool.apply(pool.core.end_sessions(lambda who, key: who == alice and key == old, pool.now))
    left = {new, other, SessionId("", "here")} | ({away} if back else set())
    assert set(pool.core.state.sessions) == left
    assert [to for to, head in pool.heads if isinstance(head, wire.Closed)] == [here]
    assert (wire.SessionGone(away) in worker.heads) is not back and wire.SessionGone(here) in worker.heads
    assert wire.SessionGone(other) not in worker.heads
    assert any("of n0: its key has been revoked" in note for note in pool.notes), "people read names"


def test_a_key_that_ends_while_a_broker_waits_for_its_workers_gets_no_session() -> None:
    alice, bob = "A" * 32, "B" * 32
    pool = restarted(Pool(alice, bob))
    first, second = SessionId(alice, "s"), SessionId(bob, "s")
    for session in (first, second):
        pool.hello(session)
    effects = pool.apply(pool.core.end_sessions(lambda who, key: who == alice and key == pool.keys[alice], pool.now))
    assert [effect.frames for effect in effects if hasattr(effect, "frames")] == [[REVOKED]]
    pool.register()
    assert list(pool.core.state.sessions) == [second] and pool.got(first, wire.Welcome) == []


# Ids that others may choose.


def test_a_log_in_is_cancelled_by_its_principal_or_the_owner_only() -> None:
    alice, bob = SessionId("A" * 32, "s"), SessionId("B" * 32, "s")
    pool = Pool(alice.principal, bob.principal)
    granted = [
        Identity(name=f"n{number}", principal=each, sandbox="danger-full-access", methods=("account/*",))
        for number, each in enumerate(pool.keys)
    ]
    pool.policy.replace(granted)
    worker = pool.register()
    for session in (alice, bob, "own"):
        pool.hello(session)
    pool.call("account/login/start", {"type": "chatgpt"}, session=alice)
    (number,) = worker.open
    pool.answer_with(worker, number, {"id": 1, "result": {"type": "chatgpt", "loginId": "l1"}})
    denied = pool.call("account/login/cancel", {"loginId": "l1"}, session=bob)
    assert pool.answers[bob, denied[1]] == [{"id": denied[1], "result": {"status": "notFound"}}] and not worker.open
    for session in (alice, "own"):
        assert pool.dispatched(pool.call("account/login/cancel", {"loginId": "l1"}, session=session))


# The worker.


@given(pairs, pairs)
def test_a_worker_keeps_two_sessions_apart(first: SessionId, second: SessionId) -> None:
    assume(first != second)
    bench = worker_bench.Bench().start()
    for number, session in enumerate((first, second)):
        bench.thread(f"t{number}", session=session)  # type: ignore[arg-type]
        bench.dispatch("turn/start", {"threadId": f"t{number}"}, session=session, id="same")  # type: ignore[arg-type]
    starts = [line for line in bench.sent if line.get("method") == "turn/start"]
    keys = {line["params"]["clientUserMessageId"] for line in starts}
    assert len(starts) == len(keys) == 2, "both are done, and found again by different keys"
    for number, line in enumerate(starts):
        bench.answer(line["id"], {"turn": {"id": f"u{number}"}})
        bench.complete(f"u{number}", f"t{number}")
    assert set(bench.events) == {(named(first), "u0"), (named(second), "u1")}
    assert [each.owner for each in bench.new_broker().records] == [first.principal, second.principal]
    bench.apply(bench.core.broker_message(wire.SessionGone(first), [], bench.now))
    holdings = bench.new_broker()
    assert holdings.followers == {"t0": [], "t1": [second]} and {call.session for call in holdings.calls} == {second}


@given(
    st.lists(
        st.tuples(pairs, st.one_of(st.integers(-3, 3), st.sampled_from(PARTS))), min_size=2, max_size=2, unique=True
    )
)
def test_a_call_has_a_key_of_its_own(calls: list[tuple[SessionId, int | str]]) -> None:
    keys = []
    for session, id in calls:
        bench = worker_bench.Bench().start()
        line = encode({"id": id, "method": "turn/start", "params": {"threadId": "t"}})
        bench.apply(bench.core.broker_message(wire.Dispatch(1, session), [line], bench.now))
        keys.append(bench.sent[-1]["params"]["clientUserMessageId"])
    assert keys[0] != keys[1]


@pytest.mark.parametrize("id", [1, "1", "a/b", "/", "w0/1", ""])
def test_the_id_of_a_question_leads_back_to_it(id: int | str) -> None:
    """The app-server chooses it; the pool puts the name of the worker in front."""
    bench = worker_bench.Bench().start()
    bench.thread()
    bench.turn("u1")
    params = {"threadId": "t1", "turnId": "u1"}
    for each in (id, 1 if id != 1 else "1"):
        bench.say({"id": each, "method": "item/commandExecution/requestApproval", "params": params})
    asked = [lines[0]["id"] for _, lines in bench.lines[-2:]]
    assert len(set(asked)) == 2
    pool = Pool()
    pool.register()
    pool.hello()
    pool.from_client(wire.Call(), encode({"id": asked[0], "result": {"decision": "accept"}}))
    ((worker, line),) = pool.tells
    assert worker == "w0"
    bench.apply(bench.core.broker_message(wire.ServerRequestAnswer(sid("s1")), [json.dumps(line).encode()], bench.now))
    assert bench.sent[-1] == {"id": id, "result": {"decision": "accept"}}
