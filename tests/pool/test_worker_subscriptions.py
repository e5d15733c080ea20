"""Numbers, receipt and credit: what each session gets of each turn, however it reads, acknowledges and comes back."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from session_ids import named, sid
from worker_bench import Reader

from codex_pool.protocol import wire
from codex_pool.worker.subscription import LIMITS, MESSAGE_OVERHEAD_BYTES, Limits
from codex_pool.worker.subscriptions import KEEP_ENDED_S, MAX_ENDED, Subscriptions
from codex_pool.worker.turn_stream import Turn

DELTA, ITEM, DONE = "item/agentMessage/delta", "item/completed", "turn/completed"


class Desk:
    """Subscriptions, and the readers that their messages go to."""

    def __init__(self, limits: Limits = LIMITS, readers: tuple[str, ...] = ("s1",)) -> None:
        self.subscriptions = Subscriptions("w0", limits)
        self.limits = limits
        self.now = 100.0
        self.readers = {name: Reader(name) for name in readers}
        self.turns: dict[str, Turn] = {}

    def turn(self, turn_id: str = "u1", *sessions: str, interest: wire.Interest = "full") -> Turn:
        turn = self.turns[turn_id] = Turn(turn_id, "t1")
        for session in sessions or ("s1",):
            self.subscriptions.join(turn, sid(session), interest)
        return turn

    def say(self, turn_id: str, *methods: str, size: int = 0) -> None:
        turn = self.turns[turn_id]
        lines = [
            msgspec.json.encode({"method": method, "number": turn.last + number, "x": "x" * size})
            for number, method in enumerate(methods, 1)
        ]
        ended = "completed" if DONE in methods else None
        messages = self.subscriptions.publish(turn, lines, list(methods), ended=ended, now=self.now)
        ends = [route for route, *_ in messages if isinstance(wire.decode_from_worker(route), wire.TurnEnded)]
        assert len(ends) == (ended is not None)
        self.take(messages)

    def take(self, messages: list[list[bytes]]) -> None:
        for route, *frames in messages:
            to = wire.decode_from_worker(route)
            assert isinstance(to, wire.ToSessions | wire.TurnEnded) and bool(to.sessions) == bool(frames)
            for session in to.sessions:
                self.readers[named(session)].on_the_way.append(frames)

    def read(self, session: str = "s1", *, ack: bool = True) -> bool:
        position = self.readers[session].read()
        if position is not None and ack:
            self.ack(session, position)
        return position is not None

    def ack(self, session: str, *positions: wire.Position) -> None:
        self.take(self.subscriptions.acked(sid(session), positions, self.now))

    def back(self, session: str = "s1") -> None:
        """The connection was lost with all that was on the way; a new one is there."""
        reader = self.readers[session]
        reader.on_the_way.clear()
        reader.ended_before_reconnect |= set(reader.ended)
        positions = [wire.Position(turn, last) for turn, last in reader.last.items() if turn not in reader.ended]
        self.take(self.subscriptions.back(sid(session), positions, self.now))

    def drain(self, session: str = "s1") -> Reader:
        while self.read(session):
            pass
        return self.readers[session]


def test_what_is_acknowledged_is_forgotten_and_an_ended_turn_costs_nothing() -> None:
    desk = Desk()
    desk.turn()
    desk.say("u1", DELTA, DELTA)
    assert desk.subscriptions.held["kept_bytes"] > 0
    desk.read()
    assert desk.subscriptions.held == {"subscriptions": 1, "kept_bytes": 0}
    desk.say("u1", DONE)
    assert desk.subscriptions.ended_turns == ["u1"]
    desk.read()
    assert desk.subscriptions.held == {"subscriptions": 0, "kept_bytes": 0} and desk.subscriptions.ended_turns == []


def test_an_acknowledgement_forgets_no_more_than_it_says() -> None:
    desk = Desk()
    desk.turn()
    for _ in range(5):
        desk.say("u1", ITEM)
    desk.read()
    desk.read()
    desk.back()
    reader = desk.drain()
    assert [line["number"] for line in reader.lines["u1"]] == [1, 2, 3, 4, 5] and reader.dropped == {}


def test_sessions_of_one_interest_share_one_message() -> None:
    desk = Desk(readers=("s1", "s2", "s3"))
    turn = desk.turn("u1", "s1", "s2")
    desk.subscriptions.join(turn, "s3", "items")
    lines = [b'{"x":"%s"}' % (b"x" * 1000)]
    messages = desk.subscriptions.publish(turn, lines, [DELTA], now=0)
    assert [wire.decode_from_worker(message[0]) for message in messages] == [wire.ToSessions([sid("s1"), sid("s2")])]
    (kept,) = {id(each.sent[0].frames[1]) for each in turn.subscribers.values() if each.sent}
    assert kept == id(messages[0][2])


def test_credit_bounds_what_is_on_the_way_and_one_message_is_always_let_through() -> None:
    desk = Desk(Limits(window=5000, session_window=20_000))
    desk.turn()
    reader = desk.readers["s1"]
    desk.say("u1", ITEM, size=50_000)
    assert len(reader.on_the_way) == 1, "larger than any window"
    desk.say("u1", ITEM)
    assert len(reader.on_the_way) == 1
    desk.read()
    assert len(reader.on_the_way) == 1
    for _ in range(20):
        desk.say("u1", ITEM, size=1000)
    assert sum(MESSAGE_OVERHEAD_BYTES + sum(map(len, frames)) for frames in reader.on_the_way) <= 5000
    desk.drain()
    assert [line["number"] for line in reader.lines["u1"]] == list(range(1, 23))


def test_a_session_that_is_full_is_served_in_turn_when_it_reads() -> None:
    desk = Desk(Limits(window=10_000, session_window=10_000))
    for turn_id in ("u1", "u2", "u3"):
        desk.turn(turn_id)
    for _ in range(10):
        for turn_id in desk.turns:
            desk.say(turn_id, ITEM, size=2000)
    for _ in range(12):
        desk.read()
    got = [len(desk.readers["s1"].lines.get(turn_id, ())) for turn_id in desk.turns]
    assert max(got) - min(got) <= 2, got
    desk.drain()
    assert desk.subscriptions.held["kept_bytes"] == 0
    assert all(len(lines) == 10 for lines in desk.readers["s1"].lines.values())


def test_who_comes_back_gets_what_it_has_not_got() -> None:
    desk = Desk()
    desk.turn("u1")
    desk.turn("u2")
    desk.say("u1", DELTA, ITEM)
    desk.read(ack=False)
    desk.say("u1", DELTA)
    desk.say("u2", ITEM, DONE)
    desk.say("u1", DONE)
    desk.back()
    reader = desk.drain()
    assert [line["number"] for line in reader.lines["u1"]] == [1, 2, 3, 4]
    assert [line["number"] for line in reader.lines["u2"]] == [1, 2]
    assert desk.subscriptions.held == {"subscriptions": 0, "kept_bytes": 0}


def test_what_is_not_kept_any_more_is_covered_by_a_marker() -> None:
    """A client that has forgotten what it acknowledged: it is told that there was something."""
    desk = Desk()
    desk.turn()
    desk.say("u1", DELTA, ITEM, DELTA)
    desk.read()
    desk.say("u1", ITEM)
    reader = desk.readers["s1"] = Reader("s1")
    desk.take(desk.subscriptions.back(sid("s1"), [], desk.now))
    desk.drain()
    assert reader.dropped == {"u1": 3} and [line["number"] for line in reader.lines["u1"]] == [4]
    desk.take(desk.subscriptions.back(sid("s1"), [wire.Position("u1", 2)], desk.now))
    assert (head := wire.decode_to_client(reader.on_the_way[0][0])) and isinstance(head, wire.Events)
    assert (head.after, head.last, head.runs) == (2, 4, [wire.Run(2, "dropped")])


def test_deltas_give_way_beyond_the_waiting_bound_and_items_do_not() -> None:
    desk = Desk(Limits(window=1000, waiting=5000))
    desk.turn()
    for _ in range(100):
        desk.say("u1", DELTA, DELTA, ITEM, size=100)
    for _ in range(1000):
        desk.say("u1", DELTA, DELTA, size=100)
    kept = desk.subscriptions.held["kept_bytes"]
    assert kept < 1100 + 5000 + 100 * (MESSAGE_OVERHEAD_BYTES + 400), "a marker grows, it does not pile up"
    desk.say("u1", DONE)
    reader = desk.drain()
    numbers = [line["number"] for line in reader.lines["u1"] if line["method"] == ITEM]
    assert numbers == [3 * n for n in range(1, 101)]
    assert reader.dropped["u1"] + len(reader.lines["u1"]) == 2301
    assert reader.dropped["u1"] == desk.subscriptions.dropped > 2000


def test_a_subscription_that_overflows_ends_and_the_turn_goes_on_for_others() -> None:
    desk = Desk(Limits(window=1000, waiting=2000, overflow=10_000), readers=("s1", "s2"))
    turn = desk.turn("u1", "s1", "s2")
    for _ in range(30):
        desk.say("u1", ITEM, size=1000)
        desk.read("s2")
    assert list(turn.subscribers) == [sid("s2")]
    desk.say("u1", DONE)
    reader = desk.drain("s1")
    assert reader.ended == {"u1": "overflow"} and reader.dropped["u1"] == desk.subscriptions.dropped > 0
    end = reader.lines["u1"][-1]
    assert end["method"] == "turn/completed" and end["params"]["turn"]["status"] == "failed"
    assert "reads too slowly" in end["params"]["turn"]["error"]["message"]
    assert [line["number"] for line in desk.drain("s2").lines["u1"]] == list(range(1, 32))
    assert desk.subscriptions.held == {"subscriptions": 0, "kept_bytes": 0}


def test_who_overflowed_may_follow_again() -> None:
    desk = Desk(Limits(window=1000, waiting=2000, overflow=3000))
    turn = desk.turn()
    for _ in range(10):
        desk.say("u1", ITEM, size=1000)
    assert turn.subscribers == {}
    desk.subscriptions.join(turn, sid("s1"), "full")
    reader = desk.readers["s1"] = Reader("s1")
    reader.last["u1"] = 10
    desk.say("u1", DONE)
    desk.drain()
    assert [line["number"] for line in reader.lines["u1"]] == [11]
    assert desk.subscriptions.held == {"subscriptions": 0, "kept_bytes": 0}


def test_all_subscriptions_together_keep_no_more_than_their_bound() -> None:
    desk = Desk(Limits(window=10_000, total=50_000), readers=("s1", "s2"))
    desk.turn("u1", "s1")
    desk.turn("u2", "s2")
    desk.say("u2", ITEM, size=1000)
    for _ in range(100):
        desk.say("u1", ITEM, size=1000)
        assert desk.subscriptions.held["kept_bytes"] <= 50_000
    assert desk.turns["u1"].subscribers == {} and list(desk.turns["u2"].subscribers) == [sid("s2")]
    assert desk.drain().ended == {"u1": "overflow"}


def test_what_ended_is_kept_a_while_for_who_may_come_back() -> None:
    desk = Desk()
    desk.turn()
    desk.say("u1", ITEM, DONE)
    desk.now += KEEP_ENDED_S - 1
    desk.take(desk.subscriptions.expire(desk.now))
    desk.back()
    desk.now += KEEP_ENDED_S - 1
    desk.take(desk.subscriptions.expire(desk.now))
    assert desk.subscriptions.held["subscriptions"] == 1, "it has moved since"
    desk.now += 1
    desk.take(desk.subscriptions.expire(desk.now))
    assert desk.subscriptions.held == {"subscriptions": 0, "kept_bytes": 0}
    for number in range(MAX_ENDED + 10):
        desk.turn(f"v{number}")
        desk.say(f"v{number}", DONE)
    desk.take(desk.subscriptions.expire(desk.now))
    assert desk.subscriptions.held["subscriptions"] == MAX_ENDED


def test_credit_of_what_is_forgotten_goes_to_what_waits() -> None:
    desk = Desk(Limits(window=2000, session_window=2000))
    desk.turn("u1")
    desk.turn("u2")
    desk.say("u1", DONE, size=1000)
    desk.say("u2", ITEM, size=1000)
    reader = desk.readers["s1"]
    assert len(reader.on_the_way) == 1
    desk.now += KEEP_ENDED_S
    desk.take(desk.subscriptions.expire(desk.now))
    assert len(reader.on_the_way) == 2


def test_positions_of_strangers_and_of_the_future_are_harmless() -> None:
    desk = Desk()
    desk.turn()
    desk.say("u1", ITEM)
    for position in (wire.Position("u9", 4), wire.Position("u1", -1), wire.Position("u1", 10**9)):
        desk.take(desk.subscriptions.acked(sid("s1"), [position], desk.now))
        assert desk.subscriptions.acked("nobody", [position], desk.now) == []
        assert desk.subscriptions.back("nobody", [position], desk.now) == []
    assert desk.subscriptions.forget(sid("nobody")) == []
    desk.say("u1", DONE)
    assert desk.drain().ended == {"u1": ""}


# Everything at once.

SESSIONS = ("s1", "s2", "s3")
INTERESTS: list[wire.Interest] = ["full", "items", "final"]
SMALL = Limits(window=3000, session_window=8000, waiting=4000, overflow=20_000, total=40_000)


class SubscriptionsMachine(RuleBasedStateMachine):
    """Any order of notifications, reads, acknowledgements, lost connections and sessions that end."""

    @initialize()
    def begin(self) -> None:
        self.desk = Desk(SMALL, SESSIONS)
        self.numbers = itertools.count(1)
        self.unacked: dict[str, list[wire.Position]] = {name: [] for name in SESSIONS}
        self.interest: dict[tuple[str, str], wire.Interest] = {}
        self.gone: set[str] = set()
        self.running: list[str] = []
        self.published: dict[str, list[str]] = {}

    @rule(sessions=st.sets(st.sampled_from(SESSIONS), min_size=1), data=st.data())
    def start(self, sessions: set[str], data: st.DataObject) -> None:
        turn_id = f"u{next(self.numbers)}"
        turn = self.desk.turns[turn_id] = Turn(turn_id, "t1")
        self.published[turn_id] = []
        self.running.append(turn_id)
        for session in sorted(sessions - self.gone):
            interest: wire.Interest = data.draw(st.sampled_from(INTERESTS))
            self.interest[session, turn_id] = interest
            self.desk.subscriptions.join(turn, sid(session), interest)

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        methods=st.lists(st.sampled_from([DELTA, DELTA, ITEM]), min_size=1, max_size=6),
        size=st.sampled_from([0, 0, 500, 5000]),
    )
    def say(self, data: st.DataObject, methods: list[str], size: int) -> None:
        turn_id = data.draw(st.sampled_from(self.running))
        self.published[turn_id] += methods
        self.desk.say(turn_id, *methods, size=size)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        turn_id = data.draw(st.sampled_from(self.running))
        self.running.remove(turn_id)
        self.published[turn_id].append(DONE)
        self.desk.say(turn_id, DONE)

    @rule(session=st.sampled_from(SESSIONS), count=st.integers(1, 20))
    def read(self, session: str, count: int) -> None:
        for _ in range(count):
            position = self.desk.readers[session].read()
            if position is not None:
                self.unacked[session].append(position)

    @rule(session=st.sampled_from(SESSIONS), data=st.data())
    def ack(self, session: str, data: st.DataObject) -> None:
        positions = data.draw(st.permutations(self.unacked[session]))
        self.unacked[session] = []
        if session not in self.gone:
            self.desk.ack(session, *positions)

    @rule(session=st.sampled_from(SESSIONS), acks_are_lost=st.booleans())
    def reconnect(self, session: str, acks_are_lost: bool) -> None:
        if acks_are_lost:
            self.unacked[session].clear()
        if session not in self.gone:
            self.desk.back(session)

    @rule(session=st.sampled_from(SESSIONS[1:]))
    def leave(self, session: str) -> None:
        self.gone.add(session)
        self.desk.subscriptions.forget(sid(session))
        self.desk.readers[session].on_the_way.clear()

    @invariant()
    def bounded(self) -> None:
        """Credit and memory: what the books say is what is there, and within the bounds."""
        subscriptions = self.desk.subscriptions
        total = 0
        for session in subscriptions._sessions.values():
            sent = 0
            for each in session.subscriptions.values():
                assert each.sent_bytes == sum(message.size_bytes for message in each.sent)
                assert each.waiting_bytes == sum(message.size_bytes for message in each.waiting)
                assert each.sent_bytes <= SMALL.window or len(each.sent) == 1
                # What was on the way when the connection was lost waits again, beside all that waited.
                resent = max([SMALL.window, *(message.size_bytes for message in each.waiting)])
                assert each.waiting_bytes <= SMALL.overflow + resent or each.overflowed
                sent += each.sent_bytes
                total += each.kept_bytes
            assert session.sent_bytes == sent
            assert sent <= SMALL.session_window or sum(len(each.sent) for each in session.subscriptions.values()) == 1
            assert sent or not any(each.waiting for each in session.subscriptions.values()), "nobody waits for nothing"
        assert subscriptions.held["kept_bytes"] == total
        ends = sum(each.overflowed for s in subscriptions._sessions.values() for each in s.subscriptions.values())
        assert total <= SMALL.total + ends * 2000
        assert len(subscriptions._ended) <= len(self.published) * len(SESSIONS)

    def teardown(self) -> None:
        """All read to the end: everything that was said has come, in order, or is covered; nothing is kept."""
        if not hasattr(self, "desk"):
            return
        for turn_id in list(self.running):
            self.published[turn_id].append(DONE)
            self.desk.say(turn_id, DONE)
        for session in set(SESSIONS) - self.gone:
            self.desk.back(session)
            self.desk.drain(session)
        assert self.desk.subscriptions.held == {"subscriptions": 0, "kept_bytes": 0}
        for (session, turn_id), interest in self.interest.items():
            if session in self.gone:
                continue
            reader = self.desk.readers[session]
            lines, methods = reader.lines[turn_id], self.published[turn_id]
            own = [line for line in lines if "number" in line]
            assert all(methods[line["number"] - 1] == line["method"] for line in own)
            numbers = [line["number"] for line in own]
            assert numbers == sorted(set(numbers))
            if reader.ended[turn_id] == "overflow":
                continue
            kept = [number for number, method in enumerate(methods, 1) if method != DELTA]
            assert [number for number in numbers if number in kept] == kept, "kept lines never give way"
            if interest == "full":
                assert len(numbers) + reader.dropped.get(turn_id, 0) == len(methods) == reader.last[turn_id]


TestSubscriptionsMachine = SubscriptionsMachine.TestCase
TestSubscriptionsMachine.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
