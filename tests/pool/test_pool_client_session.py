"""The client's side of a session: every line once and in order, every answer once, whatever happens to connections."""

from __future__ import annotations

import itertools
import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from codex_app_server._protocol.framing import LongLine
from codex_app_server.errors import CANCELLED, TURN_LOST
from codex_app_server.transport import TurnLines
from codex_pool.client import connections, received_requests
from codex_pool.client.acks import ACK_BYTES, MESSAGE_OVERHEAD_BYTES
from codex_pool.client.connections import FIRST_LIMIT_S, RECONNECT_LIMIT_S, SILENT_S
from codex_pool.client.effects import Connect, Deliver, Disconnect, Effect, Failed, Send, Welcomed
from codex_pool.client.sequence import MAX_ENDED_TURNS, TurnSequences
from codex_pool.client.session import Session
from codex_pool.protocol import packs, wire

NOTHING_HELD = {"calls": 0, "held": 0, "server_requests": 0, "turns": 0, "bound": 0}


def line(**members: Any) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def note(number: int) -> bytes:
    return line(method="item/agentMessage/delta", params={"number": number})


def numbers(lines: list[bytes]) -> list[int]:
    return [json.loads(each)["params"]["number"] for each in lines]


def events(
    turn: str,
    after: int,
    runs: list[tuple[list[bytes], wire.Class]],
    *,
    last: int | None = None,
    ended: bool = False,
    start: int = 0,
) -> list[bytes]:
    """A message of a turn whose runs are given as lines; `last` is more where an interest left something out."""
    heads = [wire.Run(len(lines), cls) for lines, cls in runs]
    last = after + sum(run.count for run in heads) if last is None else last
    head = wire.Events("th", turn, after, last, heads, ended, "w1", start)
    return [wire.encode(head), *(b"" if cls == "dropped" else b"\n".join(lines) for lines, cls in runs)]


def some(turn: str, first: int, last: int, *, ended: bool = False, start: int = 0) -> list[bytes]:
    """Notifications `first` to `last` of a turn, which the session gets from behind `start` on."""
    notes = [note(number) for number in range(first, last + 1)]
    return events(turn, first - 1, [(notes, "droppable")], ended=ended, start=start)


def lines(*each: bytes) -> list[bytes]:
    return [wire.encode(wire.Lines()), b"\n".join(each)]


WELCOME = [wire.encode(wire.Welcome(1)), b"{}"]
RESUMED = [wire.encode(wire.Welcome(1, resumed=True)), b"{}"]
BEAT = [wire.encode(wire.Beat())]


@dataclass
class Bench:
    """A session, and what has come out of it."""

    now: float = 1000.0
    identities: list[str] = field(default_factory=list)
    connected: bool = False
    # On the connection of the moment.
    sent: list[tuple[wire.Head, list[bytes]]] = field(default_factory=list)
    delivered: list[bytes | LongLine | TurnLines] = field(default_factory=list)
    welcomed: int = 0
    failure: str | None = None
    ack_delay_s: float = 0.0
    all_turns: bool = False

    def __post_init__(self) -> None:
        self.session = Session(
            "s",
            "test",
            endpoint="ipc:///pool",
            no_pool=lambda why: f"no pool: {why}",
            jitter=lambda: 0.5,
            ack_delay_s=self.ack_delay_s,
            all_turns=self.all_turns,
        )
        self.apply(self.session.start(self.now))

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert self.failure is None, "nothing follows a failure"
            match effect:
                case Connect():
                    assert not self.connected, "one connection at a time"
                    self.identities.append(effect.identity)
                    self.connected, self.sent = True, []
                case Disconnect():
                    self.connected = False
                case Send():
                    assert self.connected
                    self.sent.append((wire.decode_from_client(effect.frames[0]), effect.frames[1:]))
                case Deliver():
                    self.delivered += effect.batch
                case Welcomed():
                    self.welcomed += 1
                case Failed():
                    self.failure = effect.message

    def get(self, *messages: list[bytes]) -> None:
        self.apply(self.session.messages([*messages], self.now))

    def put(self, each: bytes, interest: Any = "full") -> None:
        self.apply(self.session.line(each, interest))

    def lose(self) -> None:
        self.apply(self.session.lost("cut", self.now))

    def pass_time(self, seconds: float) -> None:
        """Let time pass as the loop does: a tick at each deadline."""
        until = self.now + seconds
        while self.failure is None and self.session.next_deadline <= until:
            self.now = max(self.now, self.session.next_deadline)
            self.apply(self.session.tick(self.now))
        self.now = until

    def come_back(self, welcome: list[bytes] = RESUMED) -> None:
        """Lose the connection and be welcomed on the next."""
        self.lose()
        self.pass_time(1)
        assert self.connected
        self.get(welcome)

    def of(self, kind: type) -> list[Any]:
        """Heads and bodies of one kind that were sent on this connection."""
        return [(head, bodies) for head, bodies in self.sent if isinstance(head, kind)]

    def calls(self) -> list[tuple[Any, bool]]:
        """List what was sent on this connection as calls: id or method, and whether it says that it was sent before."""
        return [
            (found.get("id", found.get("method")), head.again)
            for head, (body,) in self.of(wire.Call)
            for found in [json.loads(body)]
        ]


@pytest.fixture
def bench() -> Bench:
    """A session that has begun."""
    bench = Bench()
    bench.get(WELCOME)
    return bench


# Connections.


def test_a_session_begins_with_a_hello_and_nothing_is_sent_before_its_answer() -> None:
    bench = Bench()
    bench.put(line(id=1, method="initialize"))
    ((hello, bodies),) = bench.sent
    assert hello == wire.Hello("s", "test", accepts_parts=True, accepts_packs=True) and bodies == []
    bench.get(WELCOME)
    assert bench.welcomed == 1 and bench.calls() == [(1, False)]


def test_each_connection_has_an_identity_of_its_own_and_says_how_far_the_turns_came(bench: Bench) -> None:
    bench.get(some("t1", 1, 3), some("t2", 1, 1), some("t3", 1, 2, ended=True))
    bench.lose()
    bench.pass_time(1)
    assert bench.identities == ["s/1", "s/2"]
    ((hello, (body,)),) = bench.of(wire.Hello)
    assert hello.session == "s"
    assert wire.decode_positions(body) == [wire.Position("t1", 3, "th"), wire.Position("t2", 1, "th")]
    assert not bench.of(wire.Call)


def test_a_beat_goes_out_every_second_and_silence_for_three_ends_the_connection(bench: Bench) -> None:
    for _ in range(5):
        bench.pass_time(1)
        bench.get(BEAT)
    assert 4 <= len(bench.of(wire.Beat)) <= 5 and bench.identities == ["s/1"]
    bench.pass_time(SILENT_S - 0.1)
    assert bench.identities == ["s/1"]
    bench.pass_time(0.4)
    assert bench.identities == ["s/1", "s/2"]


def test_a_process_that_slept_reads_what_came_before_it_speaks_of_silence(bench: Bench) -> None:
    bench.now += 60
    bench.apply(bench.session.tick(bench.now))
    assert bench.identities == ["s/1"] and bench.connected
    bench.pass_time(1.5)
    assert bench.identities == ["s/1", "s/2"]


def test_tries_come_ever_slower_until_the_limit_and_the_error_says_why(bench: Bench) -> None:
    tries = []
    began = bench.now
    bench.lose()
    while bench.failure is None:
        bench.pass_time(0.01)
        if bench.connected:
            tries.append(bench.now)
            bench.apply(bench.session.lost("nothing listens", bench.now))
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert tries[0] - began <= 0.11 and gaps[0] < 0.25 and 1.0 <= max(gaps) <= 2.02
    assert bench.now - began == pytest.approx(RECONNECT_LIMIT_S, abs=0.05)
    assert bench.failure == (
        "no pool: the connection was lost (cut) and did not come back within 60 s: nothing listens"
    )


def test_a_first_connection_that_nobody_answers_is_given_up_after_its_own_limit() -> None:
    bench = Bench()
    bench.pass_time(FIRST_LIMIT_S - 0.1)
    assert bench.failure is None
    bench.pass_time(0.2)
    assert bench.failure == "no pool: no answer within 10 s" and bench.welcomed == 0


def test_a_first_connection_that_is_refused_ends_it_and_a_later_one_is_tried_again(bench: Bench) -> None:
    refused = [wire.encode(wire.Refused("full"))]
    first = Bench()
    first.get(refused)
    assert first.failure == "the pool at ipc:///pool: full"
    bench.come_back(refused)
    assert bench.failure is None
    bench.pass_time(1)
    bench.get(RESUMED)
    assert bench.session.open


def test_closed_ends_the_session_unless_it_says_again(bench: Bench) -> None:
    bench.get([wire.encode(wire.Closed("unknown", again=True))])
    assert bench.failure is None and not bench.connected
    bench.pass_time(1)
    bench.get(RESUMED, [wire.encode(wire.Closed("the pool was stopped"))])
    assert bench.failure == "the pool at ipc:///pool: the pool was stopped"


def test_what_nobody_understands_ends_the_session_and_what_came_before_is_delivered(bench: Bench) -> None:
    bench.get(some("t", 1, 1), [b"\x01garbage"], some("t", 2, 2))
    assert bench.failure is not None and "does not understand" in bench.failure
    assert [numbers(each.lines) for each in bench.delivered if isinstance(each, TurnLines)] == [[1]]


def test_a_pack_is_the_messages_that_it_holds_and_a_broken_one_ends_the_session(bench: Bench) -> None:
    route = wire.encode(wire.ToSessions([]))
    ((_, *pack),) = packs.packed([[route, *some("t", 1, 2)], [route, *some("u", 1, 1)], [route, *some("t", 3, 3)]])
    bench.get(pack, some("u", 2, 2), [pack[0], b"short"], some("u", 3, 3))
    got = [(each.turn_id, numbers(each.lines)) for each in bench.delivered if isinstance(each, TurnLines)]
    assert got == [("t", [1, 2]), ("u", [1]), ("t", [3]), ("u", [2])]
    assert bench.failure is not None and "sizes do not add up" in bench.failure


# Calls and answers.


def test_unanswered_calls_are_sent_again_and_marked_so_and_new_ones_are_not(bench: Bench) -> None:
    for number in (1, 2):
        bench.put(line(id=number, method="thread/list"), "items")
    bench.get(lines(line(id=1, result={})))
    bench.lose()
    bench.put(line(id=3, method="thread/list"))
    bench.put(line(method="initialized"))
    bench.pass_time(1)
    assert bench.calls() == []
    bench.get(RESUMED)
    assert bench.calls() == [(2, True), (3, False), ("initialized", False)]
    assert bench.of(wire.Call)[0][0].interest == "items"


def test_an_answer_that_comes_twice_is_passed_on_once(bench: Bench) -> None:
    bench.put(line(id=1, method="thread/list"))
    answer = line(id=1, result={})
    bench.get(lines(answer))
    bench.come_back()
    bench.get(lines(answer, answer))
    assert bench.delivered == [answer] and bench.session.held == NOTHING_HELD


def test_a_new_broker_hears_what_the_handshake_asked_for(bench: Bench) -> None:
    handshake = line(id=1, method="initialize", params={"capabilities": {"optOutNotificationMethods": ["x"]}})
    bench.put(handshake)
    answer = line(id=1, result={})
    bench.get(lines(answer))
    bench.put(line(id=2, method="thread/list"))
    for _ in range(2):
        bench.come_back()
        assert [body for _, (body,) in bench.of(wire.Call)] == [handshake, line(id=2, method="thread/list")]
        bench.get(lines(answer))
    assert bench.delivered == [answer]


def test_cancel_takes_back_what_was_not_sent_and_says_so_of_what_was(bench: Bench) -> None:
    bench.put(line(id=1, method="turn/start"))
    bench.apply(bench.session.cancel(1))
    (_, (cancel,)) = bench.of(wire.Call)[-1]
    assert json.loads(cancel) == {"method": "pool/cancel", "params": {"requestId": 1}}
    bench.lose()
    bench.put(line(id=2, method="turn/start"))
    bench.apply(bench.session.cancel(2))
    bench.apply(bench.session.cancel(77))
    bench.pass_time(1)
    bench.get(RESUMED)
    # The pool may have begun it, so that it must hear of it again, and that it is not wanted.
    assert bench.calls() == [(1, True), ("pool/cancel", False)]
    (answer,) = bench.delivered
    assert isinstance(answer, bytes) and json.loads(answer)["error"]["code"] == CANCELLED


# Turns.


def test_what_comes_again_after_a_reconnect_is_left_out_line_by_line(bench: Bench) -> None:
    bench.get(some("t", 1, 3))
    bench.come_back()
    bench.get(
        some("t", 1, 2), some("t", 2, 5), some("t", 1, 5), some("t", 6, 7, ended=True), some("t", 1, 7, ended=True)
    )
    got = [numbers(each.lines) for each in bench.delivered if isinstance(each, TurnLines)]
    assert got == [[1, 2, 3], [4, 5], [6, 7]] and bench.session.held == NOTHING_HELD


def test_a_hole_ends_the_turn_loudly_and_nothing_of_it_is_heard_after_that(bench: Bench) -> None:
    bench.get(some("t", 1, 2), some("t", 5, 6), some("t", 7, 8, ended=True))
    _first, second = bench.delivered
    assert isinstance(second, TurnLines) and second.ended
    ended, completed = (json.loads(each) for each in second.lines)
    assert ended["params"]["kind"] == "failed"
    assert ended["params"]["message"] == "notifications 3 to 4 of this turn never came"
    assert completed["method"] == "turn/completed" and bench.session.held == NOTHING_HELD


def test_what_overtakes_the_resending_after_a_return_is_passed_over_and_comes_again(bench: Bench) -> None:
    bench.get(some("t", 1, 2))
    bench.come_back()
    # Sent before the worker heard of the return: 3 and 4 went to the connection that is gone.
    bench.get(some("t", 5, 6), some("new", 3, 3))
    assert [ack.positions for ack, _ in bench.of(wire.Ack)] == [[wire.Position("t", 2)]]
    bench.get(some("t", 3, 4), some("t", 5, 6), some("new", 1, 2), some("new", 3, 3))
    got = [(each.turn_id, numbers(each.lines)) for each in bench.delivered if isinstance(each, TurnLines)]
    assert got == [("t", [1, 2]), ("t", [3, 4]), ("t", [5, 6]), ("new", [1, 2]), ("new", [3])]
    # From then on a hole is a hole.
    bench.get(some("t", 9, 9))
    last = bench.delivered[-1]
    assert isinstance(last, TurnLines) and last.ended


def test_what_is_never_sent_again_after_a_return_is_loud_after_a_while(bench: Bench) -> None:
    bench.get(some("t", 1, 2), some("quiet", 1, 1))
    bench.come_back()
    bench.get(some("t", 5, 6, ended=True))
    for _ in range(11):
        bench.pass_time(1)
        bench.get(BEAT)
    last = bench.delivered[-1]
    assert isinstance(last, TurnLines) and last.turn_id == "t" and last.ended
    assert b"notifications 3 to 6 of this turn never came" in last.lines[0]
    assert bench.session.held["turns"] == 1 and bench.identities == ["s/1", "s/2"]


def test_an_overlap_that_cannot_be_told_apart_is_loud() -> None:
    held = TurnSequences()
    head = wire.Events("th", "t", 0, 4, [wire.Run(1, "kept")])
    assert held.events(head, [note(1)]) is not None
    again = held.events(wire.Events("th", "t", 2, 9, [wire.Run(3, "kept")]), [b"a\nb\nc"])
    assert again is not None and again.ended and b"3 to 9" in again.lines[0]


def test_numbers_that_an_interest_left_out_are_no_hole(bench: Bench) -> None:
    bench.get(events("t", 0, [([note(3)], "kept")], last=10), events("t", 10, [([note(11)], "kept")], ended=True))
    assert [numbers(each.lines) for each in bench.delivered if isinstance(each, TurnLines)] == [[3], [11]]


def test_dropped_runs_become_a_notification_that_counts_what_is_new(bench: Bench) -> None:
    dropped: tuple[list[bytes], wire.Class] = ([b""] * 4, "dropped")
    bench.get(some("t", 1, 2), events("t", 0, [dropped, ([note(5)], "kept")]))
    _, run = bench.delivered
    assert isinstance(run, TurnLines)
    assert json.loads(run.lines[0]) == {
        "method": "sdk/deltas/dropped",
        "params": {"threadId": "th", "turnId": "t", "count": 2},
    }
    assert numbers(run.lines[1:]) == [5]


def test_a_session_whose_first_welcome_was_lost_is_resumed_all_the_same() -> None:
    bench = Bench()
    bench.lose()
    while not bench.connected:
        bench.pass_time(0.1)
    bench.get(RESUMED)
    bench.get(some("t1", 2, 2))
    assert bench.delivered == [], "what comes before it is sent again"
    bench.get(some("t1", 1, 1))
    bench.get(some("t1", 2, 2, ended=True))
    assert [json.loads(line)["params"]["number"] for each in bench.delivered for line in each.lines] == [1, 2]


def test_acks_are_sent_once_a_batch_and_worker_also_for_what_ended_or_came_again(bench: Bench) -> None:
    bench.get(some("t1", 1, 1), some("t1", 2, 4), some("t2", 1, 1, ended=True))
    ((ack, _),) = bench.of(wire.Ack)
    assert ack == wire.Ack("w1", [wire.Position("t1", 4), wire.Position("t2", 1)])
    bench.come_back()
    bench.get(some("t2", 1, 1, ended=True))
    ((ack, _),) = bench.of(wire.Ack)
    assert ack == wire.Ack("w1", [wire.Position("t2", 1)])


def test_acks_may_wait_for_more_but_not_for_long_and_not_for_much() -> None:
    bench = Bench(ack_delay_s=0.1)
    bench.get(WELCOME)
    bench.get(some("t1", 1, 1))
    bench.now += 0.05
    bench.get(some("t1", 2, 3))
    assert bench.of(wire.Ack) == []
    assert bench.session.next_deadline == pytest.approx(bench.now + 0.05)
    bench.now += 0.06
    bench.apply(bench.session.tick(bench.now))
    ((ack, _),) = bench.of(wire.Ack)
    assert ack == wire.Ack("w1", [wire.Position("t1", 3)])
    bench.sent.clear()
    assert bench.session.next_deadline > bench.now + 0.1, "nothing waits any more"
    bench.get(some("t2", 1, 1, ended=True), some("t1", 4, 4))
    bench.pass_time(0.1)
    ((ack, _),) = bench.of(wire.Ack)
    assert ack == wire.Ack("w1", [wire.Position("t2", 1), wire.Position("t1", 4)])
    bench.sent.clear()
    for number in range(5, 5 + ACK_BYTES // MESSAGE_OVERHEAD_BYTES):
        bench.get(some("t1", number, number))
    ((ack, _),) = bench.of(wire.Ack)
    bench.get(some("t1", number + 1, number + 1))
    bench.come_back()
    bench.pass_time(0.2)
    assert bench.of(wire.Ack) == [], "who comes back says in its Hello how far it is"


def test_acks_are_withheld_while_the_client_takes_nothing() -> None:
    bench = Bench()
    bench.get(WELCOME)
    bench.apply(bench.session.hold_acks(True))
    for number in range(1, 3 + ACK_BYTES // MESSAGE_OVERHEAD_BYTES):
        bench.get(some("t1", number, number))
    bench.pass_time(2 * wire.BEAT_S)
    assert bench.of(wire.Ack) == [] and bench.of(wire.Beat) != []
    bench.apply(bench.session.hold_acks(False))
    bench.apply(bench.session.tick(bench.now))
    ((ack, _),) = bench.of(wire.Ack)
    assert ack == wire.Ack("w1", [wire.Position("t1", number)])
    bench.get(some("t1", number + 1, number + 1))
    assert len(bench.of(wire.Ack)) == 2


def test_the_first_connection_may_take_as_long_as_it_is_given_and_the_answer_to_initialize_is_kept() -> None:
    session = Session("s", "c", endpoint="e", no_pool=str, jitter=lambda: 0.5, first_limit_s=1.0)
    session.start(100.0)
    assert not any(isinstance(effect, Failed) for effect in session.tick(100.9))
    assert [effect.message for effect in session.tick(101.0) if isinstance(effect, Failed)] == ["no answer within 1 s"]
    bench = Bench()
    assert bench.session.server_info == b""
    bench.get([wire.encode(wire.Welcome(1)), b'{"codexHome":"/h"}'])
    assert bench.session.server_info == b'{"codexHome":"/h"}'


def test_the_method_of_deltas_is_known_where_all_of_a_run_have_it() -> None:
    alike = [note(number) for number in range(200)]
    other = line(method="item/reasoning/textDelta", params={"number": 200})
    held = TurnSequences()
    for turn, run in (("t1", alike), ("t2", [*alike, other])):
        frame, *bodies = events(turn, 0, [([line(method="item/completed")], "kept"), (run, "droppable")])
        head = wire.decode_to_client(frame)
        assert isinstance(head, wire.Events)
        got = held.events(head, bodies)
        assert got is not None and got.lines[1:] == run
        assert got.methods == (["", *["item/agentMessage/delta"] * 200] if turn == "t1" else None)


def test_the_end_of_a_turn_whose_worker_died_comes_once(bench: Bench) -> None:
    ended = [wire.encode(wire.Ended("th", "t")), line(method="turn/completed")]
    bench.get(some("t", 1, 2), ended, ended)
    assert [each.ended for each in bench.delivered if isinstance(each, TurnLines)] == [False, True]
    assert bench.session.held == NOTHING_HELD


def test_turns_that_ended_are_remembered_only_so_long() -> None:
    held = TurnSequences()
    for number in range(MAX_ENDED_TURNS + 10):
        held.ended(wire.Ended("th", f"t{number}"), [b"{}"])
    assert len(held._over) == MAX_ENDED_TURNS and held.turns == 0


def test_a_session_that_the_pool_has_let_go_has_its_turns_lost_and_starts_none_twice(bench: Bench) -> None:
    bench.put(line(id=1, method="turn/start", params={"threadId": "th"}))
    bench.get(lines(line(id=1, result={"turn": {"id": "silent"}})), some("t", 1, 2))
    bench.put(line(id=2, method="turn/start", params={"threadId": "th"}))
    bench.put(line(id=3, method="thread/list"))
    bench.delivered.clear()
    bench.come_back(WELCOME)
    assert bench.calls() == [(3, True)]
    silent, streamed, refusal = bench.delivered
    for turn, each in (("silent", silent), ("t", streamed)):
        assert isinstance(each, TurnLines) and each.turn_id == turn and each.ended
        assert json.loads(each.lines[0])["params"]["kind"] == "lost"
    assert isinstance(refusal, bytes)
    error = json.loads(refusal)["error"]
    assert error["code"] == TURN_LOST and error["data"] == {"kind": "lost", "safeToRetry": False}


def test_a_turn_that_was_joined_is_followed_from_the_answer_on(bench: Bench) -> None:
    bench.put(line(id=1, method="pool/turn/follow", params={"threadId": "th", "turnId": "other"}))
    bench.get(lines(line(id=1, result={})))
    assert bench.session.held["turns"] == 1
    # Named from now on, so that its end is told; its numbers begin wherever it was.
    for last in (0, 41):
        bench.lose()
        bench.pass_time(1)
        ((_, (body,)),) = bench.of(wire.Hello)
        assert wire.decode_positions(body) == [wire.Position("other", last, "th")]
        bench.get(RESUMED, some("other", 40, 41, start=39))
    assert [numbers(each.lines) for each in bench.delivered if isinstance(each, TurnLines)] == [[40, 41]]


def test_turns_of_others_begin_where_the_session_joined_them() -> None:
    bench = Bench(all_turns=True)
    bench.get(WELCOME)
    bench.get(some("u", 41, 42, start=40))
    # While it was away it joined another one; what was sent of that before its worker heard of the return comes again.
    bench.lose()
    bench.pass_time(1)
    bench.get(RESUMED, some("v", 9, 9, start=7), some("v", 8, 8, start=7), some("v", 9, 10, start=7))
    bench.get(some("u", 43, 43, start=40))
    bench.pass_time(11)
    found = [(each.turn_id, numbers(each.lines)) for each in bench.delivered if isinstance(each, TurnLines)]
    assert found == [("u", [41, 42]), ("v", [8]), ("v", [9, 10]), ("u", [43])]


def test_a_turn_that_was_left_and_joined_again_goes_on_from_there() -> None:
    bench = Bench(all_turns=True)
    bench.get(WELCOME)
    bench.get(some("u", 1, 3))
    bench.put(line(id=1, method="thread/unsubscribe", params={"threadId": "th"}))
    bench.get(lines(line(id=1, result={"status": "unsubscribed"})))
    assert bench.session.held["turns"] == 0, "no end of it will come"
    bench.get(some("u", 9, 9, start=8, ended=True))
    found = [numbers(each.lines) for each in bench.delivered if isinstance(each, TurnLines)]
    assert found == [[1, 2, 3], [9]]


@pytest.mark.parametrize("method", ["thread/resume", "thread/unsubscribe"])
def test_open_requests_of_a_thread_that_is_resumed_are_asked_again(method: str) -> None:
    bench = Bench(all_turns=True)
    bench.get(WELCOME)
    question = line(id="w0/0", method="item/commandExecution/requestApproval", params={"threadId": "th"})
    bench.get(lines(question))
    bench.put(line(id=1, method=method, params={"threadId": "th"}))
    bench.get(lines(question))
    bench.get(lines(line(id=1, result={})))
    bench.get(lines(question))
    assert bench.delivered.count(question) == 2
    bench.put(line(id="w0/0", result={}))
    bench.put(line(id=2, method=method, params={"threadId": "th"}))
    bench.get(lines(line(id=2, result={})), lines(question))
    assert bench.delivered.count(question) == 2, "it has been answered"


def test_a_broker_that_beats_before_its_welcome_is_waited_for(bench: Bench) -> None:
    bench.lose()
    bench.pass_time(1)
    for _ in range(12):
        bench.pass_time(1)
        bench.get(BEAT)
    assert bench.identities == ["s/1", "s/2"]
    bench.pass_time(connections.WELCOME_LIMIT_S + 1)
    assert bench.identities == ["s/1", "s/2", "s/3"]


# Questions.


def question(id: str, turn: str | None = "t") -> bytes:
    return line(id=id, method="item/commandExecution/requestApproval", params={"threadId": "th", "turnId": turn})


def test_a_question_is_passed_on_once_and_answered_to_whoever_asks_again(bench: Bench) -> None:
    bench.get(lines(question("w1/1")))
    bench.come_back()
    bench.get(lines(question("w1/1")))
    assert bench.delivered == [question("w1/1")] and bench.calls() == []
    answer = line(id="w1/1", result={"decision": "accept"})
    bench.put(answer)
    bench.come_back()
    bench.get(lines(question("w1/1")))
    assert [body for _, (body,) in bench.of(wire.Call)] == [answer, answer]
    assert bench.delivered == [question("w1/1")]


def test_an_answer_given_while_away_is_sent_after_the_return(bench: Bench) -> None:
    bench.get(lines(question("w1/1")))
    bench.lose()
    answer = line(id="w1/1", result={"decision": "accept"})
    bench.put(answer)
    bench.pass_time(1)
    bench.get(RESUMED)
    assert [body for _, (body,) in bench.of(wire.Call)] == [answer]


@pytest.mark.parametrize("how", ["resolved", "turn ended"])
def test_a_question_is_forgotten_when_it_is_resolved_or_its_turn_has_ended(bench: Bench, how: str) -> None:
    bench.get(some("t", 1, 1), lines(question("w1/1")))
    assert bench.session.held["server_requests"] == 1
    if how == "resolved":
        bench.get(lines(line(method="serverRequest/resolved", params={"threadId": "th", "requestId": "w1/1"})))
    else:
        bench.get(some("t", 2, 2, ended=True))
    assert bench.session.held["server_requests"] == 0


def test_that_it_is_resolved_may_come_within_its_turn() -> None:
    bench = Bench(all_turns=True)
    bench.get(WELCOME)
    bench.get(some("t", 1, 1), lines(question("w1/1")))
    assert bench.session.held["server_requests"] == 1
    resolved = line(method="serverRequest/resolved", params={"threadId": "th", "requestId": "w1/1"})
    bench.get(events("t", 1, [([resolved], "kept")]))
    assert bench.session.held["server_requests"] == 0


def test_questions_that_nobody_resolves_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received_requests, "MAX_REQUESTS", 3)
    bench.get(lines(*(question(f"w1/{number}", None) for number in range(10))))
    assert bench.session.held["server_requests"] == 3 and len(bench.delivered) == 10


# Any order of losses, repeats and late messages.


def test_a_long_run_of_output_of_a_process_is_delivered_line_by_line(bench: Bench) -> None:
    output = [
        line(method="process/outputDelta", params={"processHandle": "p", "deltaBase64": name * 3000}) for name in "abc"
    ]
    head = wire.Events("", "1/p", 0, 3, [wire.Run(3, "droppable")], False, "w1")
    bench.get([wire.encode(head), b"\n".join(output)])
    assert bench.delivered == output


@dataclass
class Turn:
    """A turn of the pool: all its numbers (False: left out by the interest), and its messages not acknowledged yet."""

    seen: list[bool] = field(default_factory=list)
    kept: list[tuple[int, int, bool]] = field(default_factory=list)
    ended: bool = False


class PoolAndSession(RuleBasedStateMachine):
    """A pool that keeps its promises, a network that keeps none, and a session between them and its client."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.bench.apply = self.apply  # type: ignore[method-assign]
        # On the connection of the moment, both ways.
        self.to_client: deque[list[bytes]] = deque()
        self.to_pool: deque[tuple[wire.Head, list[bytes]]] = deque(self.bench.sent)
        # What the broker has passed on, and the worker has not heard of yet: returns and acks.
        self.to_worker: deque[list[wire.Position] | wire.Position] = deque()
        self.known = False
        self.welcomed_here = False
        self.turns: dict[str, Turn] = {}
        self.ids = 0
        self.executed: dict[int, int] = {}
        self.answered: set[int] = set()
        self.taken_back: set[int] = set()
        self.questions: dict[str, bool] = {}
        self.asked: list[str] = []
        self.told: dict[str, int] = {}

    def apply(self, effects: list[Effect]) -> None:
        Bench.apply(self.bench, effects)
        for effect in effects:
            if isinstance(effect, Connect):
                self.to_client.clear()
                self.to_pool.clear()
                self.welcomed_here = False
            elif isinstance(effect, Send) and self.bench.connected:
                self.to_pool.append((wire.decode_from_client(effect.frames[0]), effect.frames[1:]))

    # The pool.

    def message(self, turn_id: str, after: int, last: int, ended: bool, *, drop: bool = False) -> list[bytes]:
        turn = self.turns[turn_id]
        visible = [number for number in range(after + 1, last + 1) if turn.seen[number - 1]]
        if drop and len(visible) == last - after and visible and not ended:
            return events(turn_id, after, [([b""] * len(visible), "dropped")])
        runs: list[tuple[list[bytes], wire.Class]] = [([note(number) for number in visible], "kept")] if visible else []
        return events(turn_id, after, runs, last=last, ended=ended)

    def pool_takes(self) -> None:
        head, bodies = self.to_pool.popleft()
        if isinstance(head, wire.Hello):
            positions = wire.decode_positions(bodies[0]) if bodies else []
            self.to_client.append(RESUMED if self.known else WELCOME)
            self.known = self.welcomed_here = True
            self.to_worker.append(positions)
        elif isinstance(head, wire.Ack):
            self.to_worker += head.positions
        elif isinstance(head, wire.Call):
            found = json.loads(bodies[0])
            if "result" in found:
                if self.questions.get(found["id"]):
                    self.questions[found["id"]] = False
                self.told[found["id"]] = self.told.get(found["id"], 0) + 1
            elif "id" in found:
                if found["id"] in self.executed:
                    assert head.again, "a call was sent twice and does not say so"
                self.executed.setdefault(found["id"], 1)
                if found["id"] in self.answered:
                    self.emit(lines(line(id=found["id"], result={})))

    def emit(self, message: list[bytes]) -> None:
        """Send from the worker to the client; lost while the broker knows no connection of it."""
        if self.welcomed_here:
            self.to_client.append(message)

    def worker_hears(self) -> None:
        heard = self.to_worker.popleft()
        if isinstance(heard, wire.Position):
            self.acknowledge(heard)
            return
        for position in heard:
            self.acknowledge(position)
        for turn_id in self.turns:
            self.resend(turn_id)
        for id, open_ in self.questions.items():
            if open_:
                self.emit(lines(question(id, None)))

    def acknowledge(self, position: wire.Position) -> None:
        turn = self.turns[position.turn_id]
        turn.kept = [each for each in turn.kept if each[1] > position.last]

    def resend(self, turn_id: str) -> None:
        for after, last, ended in self.turns[turn_id].kept:
            self.emit(self.message(turn_id, after, last, ended))

    # Rules.

    @rule()
    def client_calls(self) -> None:
        self.ids += 1
        self.bench.put(line(id=self.ids, method="thread/list"))

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def client_cancels(self, data: st.DataObject) -> None:
        id = data.draw(st.integers(1, self.ids))
        before = len(self.bench.delivered)
        self.apply(self.bench.session.cancel(id))
        if len(self.bench.delivered) > before:
            self.taken_back.add(id)

    @precondition(lambda self: self.to_pool and self.bench.connected)
    @rule(count=st.integers(1, 5))
    def pool_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.to_pool))):
            self.pool_takes()

    @precondition(lambda self: set(self.executed) - self.answered)
    @rule(data=st.data())
    def pool_answers(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(set(self.executed) - self.answered)))
        self.answered.add(id)
        self.emit(lines(line(id=id, result={})))

    @precondition(lambda self: self.to_worker)
    @rule()
    def worker_reads(self) -> None:
        self.worker_hears()

    @precondition(lambda self: self.answered)
    @rule(data=st.data())
    def pool_answers_again(self, data: st.DataObject) -> None:
        self.emit(lines(line(id=data.draw(st.sampled_from(sorted(self.answered))), result={})))

    @rule(
        turn_id=st.sampled_from("abc"),
        seen=st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=4),
        ended=st.integers(0, 9).map(lambda roll: roll == 0),
    )
    def turn_sends(self, turn_id: str, seen: list[bool], ended: bool) -> None:
        turn = self.turns.setdefault(turn_id, Turn())
        if turn.ended or not self.known:
            return
        after = len(turn.seen)
        turn.seen += [*seen[:-1], True]
        turn.ended = ended
        turn.kept.append((after, len(turn.seen), ended))
        self.emit(self.message(turn_id, *turn.kept[-1]))

    @precondition(lambda self: any(turn.kept for turn in self.turns.values()))
    @rule(data=st.data(), merge=st.booleans(), drop=st.booleans())
    def pool_repeats(self, data: st.DataObject, merge: bool, drop: bool) -> None:
        turn_id = data.draw(st.sampled_from(sorted(id for id, turn in self.turns.items() if turn.kept)))
        turn = self.turns[turn_id]
        if merge and all(turn.seen):
            first, end = turn.kept[0], turn.kept[-1]
            turn.kept = [(first[0], end[1], end[2])]
        for after, last, ended in turn.kept:
            self.emit(self.message(turn_id, after, last, ended, drop=drop))

    @precondition(lambda self: self.known)
    @rule()
    def pool_asks(self) -> None:
        id = f"w1/{len(self.questions)}"
        self.questions[id] = True
        self.emit(lines(question(id, None)))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def client_answers(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.asked))
        self.asked.remove(id)
        self.bench.put(line(id=id, result={}))

    @precondition(lambda self: self.to_client and self.bench.connected and self.welcomed_here)
    @rule(count=st.integers(1, 5))
    def client_reads(self, count: int) -> None:
        batch = [self.to_client.popleft() for _ in range(min(count, len(self.to_client)))]
        before = len(self.bench.delivered)
        self.bench.get(*batch)
        for each in self.bench.delivered[before:]:
            if isinstance(each, bytes) and b"requestApproval" in each:
                self.asked.append(json.loads(each)["id"])

    @rule()
    def connection_breaks(self) -> None:
        self.bench.lose()

    @precondition(lambda self: self.known)
    @rule()
    def connection_breaks_and_is_made_anew(self) -> None:
        """The worker hears of it later."""
        self.bench.lose()
        self.reach_the_pool()

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0, SILENT_S]))
    def time_passes(self, seconds: float) -> None:
        while self.to_worker:
            self.worker_hears()
        while self.to_client and self.bench.connected and self.welcomed_here:
            self.client_reads(5)
        self.bench.pass_time(seconds)
        # Somebody answers before anybody gives up.
        if self.bench.session.next_deadline and not self.bench.session.open:
            self.reach_the_pool()

    def reach_the_pool(self) -> None:
        for _ in range(100):
            if self.bench.session.open:
                return
            if not self.bench.connected:
                self.bench.pass_time(0.1)
                continue
            while self.to_pool:
                self.pool_takes()
            while self.to_client and self.bench.connected:
                self.client_reads(5)
        raise AssertionError("it never came back")

    # What holds.

    def got(self) -> dict[str, list[bytes]]:
        got: dict[str, list[bytes]] = {}
        for each in self.bench.delivered:
            if isinstance(each, TurnLines):
                got.setdefault(each.turn_id, []).extend(each.lines)
        return got

    def covered(self, turn_id: str, got: list[bytes]) -> int:
        """Return how many visible numbers of a turn are covered, each once and in order."""
        visible = [number for number, seen in enumerate(self.turns[turn_id].seen, 1) if seen]
        position = 0
        for each in got:
            found = json.loads(each)
            if found["method"] == "sdk/deltas/dropped":
                position += found["params"]["count"]
                continue
            assert found["method"] == "item/agentMessage/delta", f"a turn ended loudly: {each!r}"
            assert found["params"]["number"] == visible[position]
            position += 1
        assert position <= len(visible)
        return position

    @invariant()
    def every_line_once_and_in_order(self) -> None:
        assert self.bench.failure is None
        for turn_id, got in self.got().items():
            self.covered(turn_id, got)

    @invariant()
    def every_answer_and_every_question_once(self) -> None:
        seen = [json.loads(each) for each in self.bench.delivered if isinstance(each, bytes)]
        ids = [found["id"] for found in seen]
        assert len(ids) == len(set(ids))
        assert not self.taken_back & set(self.executed)

    def teardown(self) -> None:
        for _ in range(3):
            self.reach_the_pool()
            while self.to_pool or self.to_worker or self.to_client:
                while self.to_pool:
                    self.pool_takes()
                while self.to_worker:
                    self.worker_hears()
                if self.to_client:
                    self.client_reads(5)
            for id in [*self.asked]:
                self.asked.remove(id)
                self.bench.put(line(id=id, result={}))
            while set(self.executed) - self.answered:
                id = min(set(self.executed) - self.answered)
                self.answered.add(id)
                self.emit(lines(line(id=id, result={})))
        self.every_line_once_and_in_order()
        got = self.got()
        for turn_id, turn in self.turns.items():
            assert self.covered(turn_id, got.get(turn_id, [])) == sum(turn.seen)
            assert turn.kept == [], "not acknowledged"
        answers = {json.loads(each)["id"] for each in self.bench.delivered if isinstance(each, bytes)}
        assert answers == set(range(1, self.ids + 1)) | set(self.questions)
        assert not any(self.questions.values())
        assert set(self.executed) == set(range(1, self.ids + 1)) - self.taken_back
        held = self.bench.session.held
        assert held["calls"] == 0 and held["held"] == 0
        assert held["turns"] == sum(1 for turn in self.turns.values() if turn.seen and not turn.ended)


PoolAndSession.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestPoolAndSession = PoolAndSession.TestCase


def test_the_docstring_of_the_connections_has_their_transitions() -> None:
    rows = re.findall(r"^    (\w+) {2,}.+? {4,}([a-z, -]+)$", connections.__doc__ or "", flags=re.MULTILINE)
    documented = {state: {each for each in after.split(", ") if each != "-"} for state, after in rows}
    assert {state: documented[state] for state in connections.TRANSITIONS} == {
        state: {*after} for state, after in connections.TRANSITIONS.items()
    }


def test_a_session_makes_no_other_transition(bench: Bench) -> None:
    with pytest.raises(AssertionError, match="from open to connecting"):
        bench.session._connections._move("connecting")
