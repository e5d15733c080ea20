"""The broker with clients that have a key: bounds, answers, lists, news, and keys that are revoked."""

from __future__ import annotations

from typing import Any

import pytest
from broker_bench import Bench, encode

from codex_pool.auth.policy import NOT_ALLOWED, AccessPolicy
from codex_pool.auth.principal import Identity
from codex_pool.broker.effects import ToClient, ToWorker
from codex_pool.broker.sessions import REVOKED
from codex_pool.broker.steering import METHODS
from codex_pool.protocol import wire
from codex_pool.protocol.wire import SessionId

READ_ONLY = {"sandbox": '{"type":"readOnly"}', "approval_policy": '"never"', "cwd": "/srv"}


class KeyedBench(Bench):
    """Sessions named NAME-... are those of NAME, whose principal is P-NAME; others are the pool owner's."""

    def __init__(self, *identities: Identity, **options: Any) -> None:
        policy = AccessPolicy(identities, default_cwd="/srv", realpath=lambda path: path)
        super().__init__(slots=1, turns_per_worker=8, policy=policy, **options)

    def who(self, session: str) -> str:
        return "P-" + session.partition("-")[0] if "-" in session else ""

    def hello(self, session: str = "s1", **options: Any) -> None:
        self.connections[session] = session
        frames = [wire.encode(wire.Hello(session, session))]
        self.apply(self.core.client_message(session.encode(), frames, self.now, self.who(session)))

    def from_client(self, head: Any, *frames: bytes, session: str = "s1") -> None:
        message = [wire.encode(head), *frames]
        self.apply(self.core.client_message(session.encode(), message, self.now, self.who(session)))

    def keyed_thread(self, thread_id: str, session: str) -> None:
        self.call("thread/start", session=session)
        (call,) = self.workers["w0"].open
        self.answer(self.workers["w0"], call, record=wire.ThreadRecord(thread_id, False, turns=1, **READ_ONLY))


def identity(name: str, **fields: Any) -> Identity:
    return Identity(name=name, principal=f"P-{name}", cwd_roots=("/srv",), **fields)


@pytest.fixture
def bench() -> KeyedBench:
    bench = KeyedBench(identity("alice", max_turns=1, max_sessions=1), identity("mallory"))
    bench.register()
    for session in ("alice-1", "mallory-1", "own"):
        bench.hello(session)
    return bench


def test_a_thread_is_its_makers(bench: KeyedBench) -> None:
    bench.keyed_thread("t1", "alice-1")
    for method in ("thread/read", "turn/start", "turn/interrupt", "pool/turn/follow", "thread/unsubscribe"):
        call = bench.call(method, {"threadId": "t1", "turnId": "u1"}, session="mallory-1")
        assert bench.error(call)["code"] == NOT_ALLOWED and not bench.workers["w0"].open
    bench.call("thread/read", {"threadId": "t1"}, session="alice-1")
    ((dispatch, line),) = bench.workers["w0"].open.values()
    assert line["params"] == {"threadId": "t1"} and dispatch.session == SessionId("P-alice", "alice-1")
    assert bench.core.state.refused["thread"] == 5


def test_what_reaches_the_worker_is_what_was_judged(bench: KeyedBench) -> None:
    bench.raw(b'{"id":1,"method":"thread/start","params":{"sandbox":"read-only","sandbox":null}}', session="alice-1")
    ((_, line),) = bench.workers["w0"].open.values()
    params = {name: value for name, value in line["params"].items() if name not in ("cwd", "config")}
    assert params == {"sandbox": "read-only", "approvalPolicy": "never"}


def test_what_is_sent_again_is_not_counted_twice(bench: KeyedBench) -> None:
    bench.keyed_thread("t1", "alice-1")
    bench.call("turn/start", {"threadId": "t1"}, session="alice-1", id=7)
    (call,) = bench.workers["w0"].open
    bench.answer(bench.workers["w0"], call)
    over = bench.call("turn/start", {"threadId": "t1"}, session="alice-1", id=8)
    assert bench.error(over)["code"] == -32001 and bench.error(over)["data"]["retryAfterMs"] > 0
    # Nor does it get past the bound to call something new a repetition.
    liar = bench.call("turn/start", {"threadId": "t1"}, session="alice-1", id=9, again=True)
    assert bench.error(liar)["code"] == -32001
    bench.call("turn/start", {"threadId": "t1"}, session="alice-1", id=7, again=True)
    ((dispatch, line),) = bench.workers["w0"].open.values()
    assert dispatch.again and line["id"] == 7


def test_an_approval_beyond_the_ceiling_reaches_the_worker_as_a_refusal(bench: KeyedBench) -> None:
    effects = bench.core.client_message(
        b"alice-1", [wire.encode(wire.Call()), encode({"id": "w0/1", "result": {"decision": "accept"}})], 1.0, "P-alice"
    )
    (sent,) = [effect for effect in effects if isinstance(effect, ToWorker)]
    assert b"accept" not in sent.frames[1] and b'"error"' in sent.frames[1]


def test_what_is_of_no_thread_goes_to_the_own_user_only(bench: KeyedBench) -> None:
    line = encode({"method": "account/updated", "params": {}})
    effects = bench.from_worker(bench.workers["w0"], wire.ToSessions([]), wire.encode(wire.Lines()), line)
    assert [effect.peer for effect in effects if isinstance(effect, ToClient)] == [b"own"]
    effects = bench.from_worker(
        bench.workers["w0"], wire.ToSessions([SessionId("P-alice", "alice-1")]), wire.encode(wire.Lines()), line
    )
    assert [effect.peer for effect in effects if isinstance(effect, ToClient)] == [b"alice-1"]


def test_sessions_of_an_identity_are_bounded_and_others_are_not(bench: KeyedBench) -> None:
    bench.hello("alice-2")
    assert isinstance(bench.heads[-1][1], wire.Refused) and "--max-sessions" in bench.heads[-1][1].message
    bench.hello("mallory-2")
    assert isinstance(bench.heads[-1][1], wire.Welcome)
    bench.hello("eve-1")
    assert isinstance(bench.heads[-1][1], wire.Refused) and "allow-list" in bench.heads[-1][1].message


def test_a_revoked_key_ends_its_sessions_at_once(bench: KeyedBench) -> None:
    effects = bench.core.end_sessions(lambda who, key: who == "P-alice" and key == "", bench.now)
    assert [effect.frames for effect in effects if isinstance(effect, ToClient)] == [[REVOKED]]
    assert bench.core.held["sessions"] == 2
    gone = [wire.decode_to_worker(effect.frames[0]) for effect in effects if isinstance(effect, ToWorker)]
    assert wire.SessionGone(SessionId("P-alice", "alice-1")) in gone
    # What still comes on that connection finds no session.
    bench.call("thread/start", session="alice-1")
    assert not bench.workers["w0"].open


def test_status_shows_a_client_itself(bench: KeyedBench) -> None:
    bench.keyed_thread("t1", "alice-1")
    call = bench.call("pool/status", session="mallory-1")
    (answer,) = bench.answers[call]
    assert answer["result"]["clients"] == ["mallory-1"] and answer["result"]["threads"] == 0
    call = bench.call("pool/status", session="own")
    assert len(bench.answers[call][0]["result"]["clients"]) == 3


def test_only_the_owner_and_admins_steer_the_pool() -> None:
    bench = KeyedBench(identity("alice"), identity("root", admin=True))
    bench.register()
    for session in ("alice-1", "root-1", "own"):
        bench.hello(session)
    for method in sorted(METHODS):
        error = bench.error(bench.call(method, session="alice-1"))
        assert error["code"] == NOT_ALLOWED and "no key but an admin's may call it" in error["message"]
    assert bench.commands == []
    for session in ("root-1", "own"):
        bench.call("pool/pause", session=session)
    assert [command.command for command in bench.commands] == ["pause", "pause"]
