"""MessageRouter: every line to whom it belongs, once and in order, whatever comes first."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from codex_app_server._core.deliveries import (
    Delivery,
    GlobalRun,
    Malformed,
    OversizedServerRequest,
    Reply,
    ServerRequest,
    ThreadRun,
    Token,
    TurnBroken,
    TurnRun,
)
from codex_app_server._core.listeners import MAX_FORGOTTEN_REQUESTS
from codex_app_server._core.router import MessageRouter
from codex_app_server._protocol.framing import LongLine
from codex_app_server.errors import TransportClosedError, TurnEndedError, UnknownTurnError

NOTHING_HELD = {"requests": 0, "turns": 0, "early": 0, "starting": 0}


def line(**members: Any) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def note(thread: str | None, turn: str | None, number: int) -> bytes:
    """A numbered notification; its ids stand last, as in `item/completed`."""
    ids = {name: value for name, value in (("threadId", thread), ("turnId", turn)) if value is not None}
    return line(method="item/completed" if turn else "thread/status/changed", params={"number": number, **ids})


def delta(thread: str, turn: str, number: int, **members: Any) -> bytes:
    params = {"threadId": thread, "turnId": turn, "number": number}
    return line(method="item/agentMessage/delta", params=params, emittedAtMs=1795335453166, **members)


def completed(thread: str, turn: str, number: int = -1) -> bytes:
    turn_value = {"id": turn, "status": "completed"}
    return line(method="turn/completed", params={"number": number, "threadId": thread, "turn": turn_value})


def started(id: int | str, turn: str) -> bytes:
    return line(id=id, result={"turn": {"id": turn}})


def numbers(lines: list[bytes]) -> list[int]:
    return [json.loads(each)["params"]["number"] for each in lines]


def start(router: MessageRouter, id: int, thread: str | None = "th", turn: Token = "turn token") -> None:
    router.expect(id, f"call {id}", thread_id=thread, starts_turn=True, turn=turn)


def seen(router: MessageRouter, *turns: str) -> None:
    """Turns that were begun by nobody here are seen running."""
    router.receive([note("th", turn, -1) for turn in turns])


# Blocks.


def stamped(turn: str, number: int, ms: int, method: str = "item/agentMessage/delta") -> bytes:
    params = {"threadId": "th", "turnId": turn, "number": number}
    return line(method=method, params=params, emittedAtMs=1795335453000 + ms)


block_lines = st.lists(
    st.one_of(
        st.builds(stamped, st.sampled_from(["a", "a", "a", "b", "nobody's"]), st.integers(0, 99), st.integers(0, 1)),
        st.builds(stamped, st.just("a"), st.integers(0, 9), st.just(0), st.just("item/reasoning/textDelta")),
        st.builds(note, st.just("th"), st.sampled_from(["a", None]), st.integers(0, 99)),
        st.just(completed("th", "b")),
        st.just(line(id=7, method="item/tool/call", params={"threadId": "th", "turnId": "a"})),
        st.sampled_from([b"no JSON", b"", stamped("a", 1, 0)[:-3], stamped("a", 1, 0) + b"x", stamped("a", 1, 0)[9:]]),
    ),
    max_size=40,
)


@given(st.lists(block_lines, min_size=1, max_size=4))
def test_lines_that_begin_alike_go_where_each_by_itself_would_go(reads: list[list[bytes]]) -> None:
    """However lines of several turns alternate, and whatever stands between them."""
    remembering, looking = MessageRouter(), MessageRouter()
    for router in (remembering, looking):
        seen(router, "a", "b")
        router.follow("a", "one")
        router.follow("b", "two")
    for lines in reads:
        got = remembering.receive(lines)
        with mock.patch("codex_app_server._protocol.envelope.is_end", return_value=False):
            expected = looking.receive(lines)
        assert got == expected
    assert remembering.received == looking.received


def test_a_line_after_the_end_of_its_turn_does_not_join_its_run() -> None:
    router = MessageRouter()
    seen(router, "a")
    router.follow("a", "one")
    deltas = [stamped("a", number, 0) for number in range(3)]
    run, rest = router.receive([*deltas, completed("th", "a"), stamped("a", 9, 0)])
    assert isinstance(run, TurnRun) and isinstance(rest, GlobalRun)
    assert (run.lines, run.ended, rest.lines) == ([*deltas, completed("th", "a")], True, [stamped("a", 9, 0)])


# What one thing does.


def test_a_response_goes_to_its_request_in_any_order() -> None:
    router = MessageRouter()
    for id in (1, "two", 3):
        router.expect(id, f"token {id}")
    got = router.receive([line(id=3, result={}), line(id="two", error={"code": 1}), line(id=1, result=None)])
    assert [(reply.token, reply.is_error) for reply in got if isinstance(reply, Reply)] == [
        ("token 3", False),
        ("token two", True),
        ("token 1", False),
    ]
    assert router.held == NOTHING_HELD


def test_an_id_in_flight_cannot_be_used_twice() -> None:
    router = MessageRouter()
    router.expect(1, "a")
    with pytest.raises(ValueError, match="request id 1 is already in flight"):
        router.expect(1, "b")
    router.receive([line(id=1, result={})])
    router.expect(1, "c")


def test_lines_keep_their_order_around_an_answer() -> None:
    """A thread/resume gives the state as of its answer."""
    router = MessageRouter()
    start(router, 1)
    router.receive([started(1, "t")])
    router.expect(2, "resume", thread_id="th")
    lines = [delta("th", "t", 1), line(id=2, result={}), delta("th", "t", 2)]
    kinds = [type(delivery).__name__ for delivery in router.receive(lines)]
    assert kinds == ["TurnRun", "Reply", "TurnRun"]


def test_responses_nobody_asked_for_are_reported() -> None:
    router = MessageRouter()
    router.expect(1, "a")
    got = router.receive([line(id=1, result={}), line(id=1, result={}), line(id="1", result={}), line(id=99, error={})])
    assert isinstance(got[0], Reply)
    assert [each.reason for each in got[1:] if isinstance(each, Malformed)] == [
        "a response to request 1, which was never sent",
        "a response to request '1', which was never sent",
        "a response to request 99, which was never sent",
    ]


def test_early_lines_come_right_after_the_answer() -> None:
    router = MessageRouter()
    start(router, 1)
    assert router.receive([note("th", "tu", 0)]) == []
    assert router.receive([note("th", "tu", 1)]) == []
    reply, run, rest = router.receive([started(1, "tu"), note("th", "tu", 2)])
    assert isinstance(reply, Reply)
    assert reply.turn_id == "tu"
    assert isinstance(run, TurnRun)
    assert (run.tokens, numbers(run.lines), run.ended) == (["turn token"], [0, 1], False)
    assert isinstance(rest, TurnRun)
    assert numbers(rest.lines) == [2]


def test_a_turn_may_be_over_before_its_answer() -> None:
    """Nothing is lost when the whole turn came before the caller knew its id."""
    router = MessageRouter()
    start(router, 1)
    got = router.receive([note("th", "tu", 0), completed("th", "tu", 1), started(1, "tu")])
    assert [type(each) for each in got] == [Reply, TurnRun]
    assert isinstance(got[1], TurnRun)
    assert (numbers(got[1].lines), got[1].ended) == ([0, 1], True)
    assert router.held == NOTHING_HELD
    with pytest.raises(TurnEndedError, match="tu has already ended"):
        router.follow("tu", "late")


def test_lines_kept_for_a_start_that_fails_go_to_everybody() -> None:
    router = MessageRouter()
    start(router, 1)
    router.receive([note("th", "tu", 0)])
    got = router.receive([line(id=1, error={"code": -32001, "message": "busy"})])
    assert [type(each) for each in got] == [Reply, GlobalRun]
    assert router.held == NOTHING_HELD


def test_what_is_let_go_stays_in_order_with_what_follows() -> None:
    """Lines of one turn, partly kept and partly not, in one read."""
    router = MessageRouter()
    start(router, 1)
    got = router.receive(
        [
            note("th", None, 0),
            note("th", "foreign", 1),
            line(id=1, error={"code": 1}),
            note("th", "foreign", 2),
            note("th", None, 3),
        ]
    )
    everybody = [number for each in got if isinstance(each, GlobalRun) for number in numbers(each.lines)]
    assert everybody == [0, 1, 2, 3]


def test_lines_for_everybody_keep_their_order_across_threads() -> None:
    router = MessageRouter()
    got = router.receive([note("a", None, 0), note("b", None, 1), note(None, None, 2), note("a", None, 3)])
    assert [numbers(each.lines) for each in got if isinstance(each, GlobalRun)] == [[0, 1, 2, 3]]


def test_a_start_holds_back_only_what_it_may_claim() -> None:
    router = MessageRouter()
    start(router, 1, thread="th")
    [other] = router.receive([note("other", "x", 0)])
    assert isinstance(other, GlobalRun)
    start(router, 2, thread=None)
    assert router.receive([note("other", "x", 1)]) == []
    router.receive([line(id=1, error={}), line(id=2, error={})])
    assert router.held == NOTHING_HELD


def test_a_line_that_names_only_its_turn_may_be_early_too() -> None:
    router = MessageRouter()
    start(router, 1)
    assert router.receive([note(None, "tu", 0)]) == []
    _, run = router.receive([started(1, "tu")])
    assert isinstance(run, TurnRun)
    assert numbers(run.lines) == [0]


def test_what_comes_after_the_end_of_a_turn_is_not_the_turns() -> None:
    router = MessageRouter()
    seen(router, "tu")
    router.follow("tu", "a")
    start(router, 1)
    got = router.receive([note("th", "tu", 0), completed("th", "tu", 1), note("th", "tu", 2)])
    assert by_token(got) == {"a": [0, 1], "everybody": [2]}
    # Nor is it kept for the start under way, which can only name another turn or one that is over.
    assert by_token(router.receive([note("th", "tu", 3)])) == {"everybody": [3]}
    assert router.held["early"] == 0


def test_runs_that_are_known_to_belong_to_a_turn() -> None:
    """Runs from a transport that sorted the lines already."""
    router = MessageRouter()
    start(router, 1)
    assert router.receive_run("th", "tu", [note("th", "tu", 0), note("th", "tu", 1)], False) == []
    [unclaimed] = router.receive_run("other", "foreign", [note("other", "foreign", 2)], True)
    assert isinstance(unclaimed, GlobalRun)
    got = router.receive([started(1, "tu")])
    got += router.receive_run("th", "tu", [note("th", "tu", 3)], False)
    got += router.receive_run("th", "tu", [completed("th", "tu", 4)], True)
    assert by_token(got) == {"turn token": [0, 1, 3, 4]}
    assert router.held == NOTHING_HELD
    for turn_id in ("tu", "foreign"):
        with pytest.raises(TurnEndedError):
            router.follow(turn_id, "late")


def test_a_second_start_joins_the_running_turn() -> None:
    router = MessageRouter()
    start(router, 1, turn="first")
    start(router, 2, turn="second")
    got = router.receive(
        [started(1, "tu"), note("th", "tu", 0), started(2, "tu"), note("th", "tu", 1), completed("th", "tu", 2)]
    )
    logs = by_token(got)
    assert logs["first"] == [0, 1, 2]
    assert logs["second"] == [1, 2]
    assert router.held == NOTHING_HELD


def test_a_joined_turn_that_ended_before_the_answer_does_not_hang_its_follower() -> None:
    router = MessageRouter()
    start(router, 1, turn="first")
    router.receive([started(1, "tu")])
    start(router, 2, turn="second")
    got = router.receive([completed("th", "tu", 0), started(2, "tu")])
    assert [type(each) for each in got] == [TurnRun, Reply, TurnBroken]
    assert isinstance(got[2], TurnBroken)
    assert (got[2].tokens, got[2].turn_id, got[2].ended) == (["second"], "tu", True)
    assert router.held == NOTHING_HELD


def test_a_review_makes_the_thread_that_it_runs_on_busy() -> None:
    router = MessageRouter()
    for request_id, review_thread in ((1, "th"), (2, "other")):
        router.expect(request_id, "request", starts_turn=True, turn="reader")
        result = {"turn": {"id": f"tu{request_id}"}, "reviewThreadId": review_thread}
        router.receive([line(id=request_id, result=result)])
        assert router.running_turn(review_thread) == (True, f"tu{request_id}")
        router.receive([completed(review_thread, f"tu{request_id}")])
        assert router.running_turn(review_thread) == (False, None)


def begun(thread_id: str, turn_id: str, root: str | None = None) -> bytes:
    turn = {"id": turn_id, "rootTurnId": root or turn_id, "status": "inProgress", "items": []}
    return line(method="turn/started", params={"threadId": thread_id, "turn": turn})


@pytest.mark.parametrize("read", [True, False])
def test_a_turn_that_nobody_here_has_started_makes_its_thread_busy(read: bool) -> None:
    router = MessageRouter()
    for number in range(3):
        turn_id = f"own{number}"
        if read:
            router.receive([begun("th", turn_id)])
        else:
            router.receive_run("th", turn_id, [begun("th", turn_id)], False)
        assert router.running_turn("th") == (True, turn_id)
        assert router.running_turn("other") == (False, None)
        if number == 1:
            router.follow(turn_id, "reader")
        if number == 2:
            router.receive(
                [line(method="thread/status/changed", params={"threadId": "th", "status": {"type": "idle"}})]
            )
        elif read:
            router.receive([completed("th", turn_id)])
        else:
            router.receive_run("th", turn_id, [completed("th", turn_id)], True)
        assert router.running_turn("th") == (False, None)
    # Whatever else names a turn does not say that it runs.
    router.receive([note("th", "stored", 0)])
    assert router.running_turn("th") == (False, None)


def test_a_review_of_somebody_else_is_busy_by_its_own_id() -> None:
    """No end is told of the turn within the review."""
    router = MessageRouter()
    router.receive([note("th", "review", 0), begun("th", "inner", "review")])
    assert router.running_turn("th") == (True, "review")
    router.receive([completed("th", "review")])
    assert router.running_turn("th") == (False, None)
    # Of a sub-agent it is the turn itself that ends.
    router.receive([begun("th", "root"), begun("child", "sub", "root")])
    assert router.running_turn("child") == (True, "sub")
    router.receive([completed("th", "root"), completed("child", "sub")])
    assert router.running_turn("th") == router.running_turn("child") == (False, None)


def test_the_turn_within_a_review_that_is_followed_changes_nothing() -> None:
    router = MessageRouter()
    router.expect(1, "request", starts_turn=True, turn="reader")
    router.receive([line(id=1, result={"turn": {"id": "review"}, "reviewThreadId": "th"}), begun("th", "in", "review")])
    assert router.running_turn("th") == (True, "review")
    router.receive([completed("th", "review")])
    assert router.running_turn("th") == (False, None)


def test_a_turn_that_was_followed_before_a_start_joined_it_does_not_keep_its_thread_busy() -> None:
    router = MessageRouter()
    seen(router, "tu")
    router.follow("tu", "first")
    router.expect(1, "request", thread_id="th", starts_turn=True, turn="second")
    router.receive([started(1, "tu")])
    assert router.running_turn("th") == (True, "tu")
    router.receive([completed("th", "tu")])
    assert router.running_turn("th") == (False, None)


def test_a_forgotten_request_is_recognised_and_its_turn_is_not_followed() -> None:
    router = MessageRouter()
    start(router, 1)
    router.receive([note("th", "tu", 0)])
    router.forget(1)
    router.forget(1)
    router.forget("never")
    assert router.held == NOTHING_HELD
    # What was kept for it is not lost.
    first, reply, *rest = router.receive([started(1, "tu"), note("th", "tu", 1), completed("th", "tu", 2)])
    assert isinstance(first, GlobalRun)
    assert isinstance(reply, Reply)
    assert (reply.token, reply.turn_id, reply.forgotten) == ("call 1", "tu", True)
    assert [numbers(run.lines) for run in (first, *rest) if isinstance(run, GlobalRun)] == [[0], [1, 2]]
    assert isinstance(router.receive([started(1, "tu")])[0], Malformed)


def test_a_start_that_is_never_answered_keeps_nothing_for_ever() -> None:
    """The runtime may drop a request under load: after its deadline the thread's other turns flow again."""
    router = MessageRouter()
    start(router, 1)
    router.forget(1)
    [run] = router.receive([note("th", "foreign", 0)])
    assert isinstance(run, GlobalRun)
    for id in range(2, MAX_FORGOTTEN_REQUESTS + 100):
        router.expect(id, "x")
        router.forget(id)
    assert router.in_flight == MAX_FORGOTTEN_REQUESTS


def test_turn_then_thread_then_everybody() -> None:
    router = MessageRouter()
    router.follow_thread("th", "thread token")
    seen(router, "tu")
    router.follow("tu", "turn token")
    got = router.receive([note("th", "tu", 0), note("th", None, 1), note("th", "unfollowed", 2), note("x", None, 3)])
    turn_run, thread_run, global_run = got
    assert isinstance(turn_run, TurnRun)
    assert isinstance(thread_run, ThreadRun)
    assert isinstance(global_run, GlobalRun)
    assert (turn_run.tokens, numbers(turn_run.lines)) == (["turn token"], [0])
    assert (thread_run.tokens, numbers(thread_run.lines)) == (["thread token"], [1, 2])
    assert numbers(global_run.lines) == [3]
    router.unfollow_thread("th", "thread token")
    router.unfollow_thread("th", "thread token")
    assert isinstance(router.receive([note("th", None, 4)])[0], GlobalRun)


def test_a_turn_and_a_thread_of_the_same_id_are_two_things() -> None:
    router = MessageRouter()
    seen(router, "same")
    router.follow("same", "turn token")
    got = router.receive([note("th", "same", 0), note("same", None, 1), note("th", "same", 2)])
    assert by_token(got) == {"turn token": [0, 2], "everybody": [1]}


def test_following_and_unfollowing() -> None:
    router = MessageRouter()
    seen(router, "tu")
    router.follow("tu", "a")
    router.follow("tu", "a")
    router.follow("tu", "b")
    router.unfollow("tu", "never followed")
    router.unfollow("unknown", "a")
    assert router.turn_followers("tu") == ["a", "b"]
    [run] = router.receive([note("th", "tu", 0)])
    assert isinstance(run, TurnRun)
    assert run.tokens == ["a", "b"]
    router.unfollow("tu", "a")
    router.unfollow("tu", "b")
    assert router.held == NOTHING_HELD
    assert isinstance(router.receive([note("th", "tu", 1)])[0], GlobalRun)


def test_turns_nobody_follows_leave_nothing_behind() -> None:
    router = MessageRouter()
    for number in range(10_000):
        router.receive([note("th", f"tu{number}", number), completed("th", f"tu{number}")])
        router.receive([note("th", f"endless{number}", number)])
    assert router.held == NOTHING_HELD
    assert router._turns.sizes == {"followed": 0, "unfollowed": 4096, "ended": 4096}


def test_only_turns_that_run_can_be_followed() -> None:
    """A follower of any other id would wait for ever."""
    router = MessageRouter()
    with pytest.raises(UnknownTurnError, match=r"turn tu is not known .* thread\.read\(include_turns=True\)") as caught:
        router.follow("tu", "a")
    assert caught.value.turn_id == "tu"
    seen(router, "tu")
    router.follow("tu", "a")
    router.unfollow("tu", "a")
    router.follow("tu", "b")
    assert by_token(router.receive([note("th", "tu", 1), completed("th", "tu", 2)])) == {"b": [1, 2]}
    with pytest.raises(TurnEndedError, match="tu has already ended"):
        router.follow("tu", "c")
    # A start in flight holds back what another turn of the thread sends, but not that it ran, or ended.
    start(router, 1)
    router.receive([note("th", "over", 0), completed("th", "over"), note("th", "runs", 0)])
    with pytest.raises(TurnEndedError):
        router.follow("over", "d")
    router.receive([started(1, "another")])
    router.follow("runs", "d")
    assert router.held["turns"] == 2


def test_a_follower_of_an_early_turn_and_its_starter_have_it_all() -> None:
    router = MessageRouter()
    start(router, 1)
    got = router.receive([note("th", "tu", 0)])
    router.follow("tu", "a")
    got += router.receive([note("th", "tu", 1)]) + router.receive([])
    # The follower does not wait for the answer, which may be long in coming.
    assert by_token(got) == {"a": [1]}
    got += router.receive([note("th", "tu", 2), started(1, "tu"), note("th", "tu", 3), completed("th", "tu", 4)])
    assert by_token(got) == {"turn token": [0, 1, 2, 3, 4], "a": [1, 2, 3, 4]}
    assert router.held == NOTHING_HELD


def test_a_follower_of_a_turn_that_a_start_held_back_in_vain() -> None:
    router = MessageRouter()
    start(router, 1)
    got = router.receive([note("th", "foreign", 0)])
    router.follow("foreign", "a")
    got += router.receive([note("th", "foreign", 1), started(1, "tu"), note("th", "foreign", 2)])
    assert by_token(got) == {"everybody": [0], "a": [1, 2]}
    # What is too much to keep for the start is not too much for who has it already.
    router = MessageRouter(max_early_bytes=150)
    start(router, 1)
    router.receive([note("th", "tu", 0)])
    router.follow("tu", "a")
    got = router.receive([note("th", "tu", 1), note("th", "tu", 2), started(1, "tu"), note("th", "tu", 3)])
    assert by_token(got) == {"a": [1, 2, 3]}
    assert [each.tokens for each in got if isinstance(each, TurnBroken)] == [["turn token"]]
    assert router.receive([LongLine(note("th", "tu", 4)[:-1], b"", 5)])[0] == TurnBroken(
        ["a"], "th", "tu", "a line of 5 bytes (item/completed) is beyond the size cap"
    )
    assert router.held == NOTHING_HELD


def test_a_long_line_breaks_an_early_turn_for_its_follower_too() -> None:
    router = MessageRouter()
    start(router, 1)
    router.receive([note("th", "tu", 0)])
    router.follow("tu", "a")
    got = router.receive([note("th", "tu", 1), LongLine(note("th", "tu", 2)[:-1], b"", 5), started(1, "tu")])
    assert by_token(got) == {"a": [1]}
    assert [each.tokens for each in got if isinstance(each, TurnBroken)] == [["a"], ["turn token"]]
    assert router.held == NOTHING_HELD
    start(router, 2, turn="second")
    router.receive([note("th", "next", 0)])
    router.follow("next", "b")
    assert set(router.fail(TransportClosedError("gone"))) == {"call 2", "second", "b"}


def test_a_question_too_long_to_keep_is_to_be_declined() -> None:
    router = MessageRouter()
    raw = line(id=7, method="item/tool/call", params={"threadId": "th", "turnId": "tu", "arguments": "x" * 100})
    [got] = router.receive([LongLine(raw[:80], raw[-20:], len(raw))])
    assert isinstance(got, OversizedServerRequest)
    assert (got.request.id, got.request.method, got.request.thread_id, got.request.turn_id) == (
        7,
        "item/tool/call",
        "th",
        "tu",
    )
    assert f"a line of {len(raw)} bytes" in got.reason


def test_an_unreadable_answer_fails_its_request_as_far_as_it_can_be_told() -> None:
    router = MessageRouter()
    start(router, 1)
    router.expect("two", "call two")
    for raw in (
        b'{"id":1',
        b'{"id":1,"res',
        b'{"id":1,"method":"x","params":{',
        b'{"id":9,"result":{',
        b'{"method":"x"',
    ):
        assert router.receive_unreadable(raw, "cut") == []
    router.receive([note("th", "tu", 0)])
    reply, let_go = router.receive_unreadable(b'{"id":1,"result":{"turn":{"id":"t', "cut")
    assert isinstance(reply, Reply) and isinstance(let_go, GlobalRun)
    assert (reply.token, reply.is_error, reply.turn_id) == ("call 1", True, None)
    assert json.loads(reply.line)["error"] == {"code": -32603, "message": "the answer is unreadable: cut"}
    [reply] = router.receive_unreadable(b' { "jsonrpc": "2.0", "id": "two", "error": {', "cut")
    assert isinstance(reply, Reply) and reply.token == "call two"
    assert router.held == NOTHING_HELD


def test_a_question_stands_between_what_came_before_and_after() -> None:
    router = MessageRouter()
    seen(router, "tu")
    router.follow("tu", "turn token")
    ask = line(method="item/commandExecution/requestApproval", id=0, params={"threadId": "th", "turnId": "tu"})
    before, question, after = router.receive([note("th", "tu", 0), ask, note("th", "tu", 1)])
    assert isinstance(before, TurnRun)
    assert numbers(before.lines) == [0]
    assert isinstance(question, ServerRequest)
    assert (question.id, question.thread_id, question.turn_id, question.line) == (0, "th", "tu", ask)
    assert isinstance(after, TurnRun)
    assert numbers(after.lines) == [1]


def test_bad_lines_do_not_stop_the_others() -> None:
    router = MessageRouter()
    router.expect(1, "call")
    deep = b'{"method":"x","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    got = router.receive([b"oops", b"{}", b"\xff", deep, line(id=1, result={})])
    assert [type(each) for each in got] == [Malformed, Malformed, Malformed, Malformed, Reply]


def test_lines_that_begin_alike_go_where_the_first_of_them_went() -> None:
    router = MessageRouter()
    start(router, 1)
    router.receive([started(1, "tu")])
    other = b'{"method":"item/reasoning/textDelta","params":{"threadId":"th","turnId":"tu","number":5}}'
    lines = [delta("th", "tu", 1), delta("th", "tu", 2), other, delta("th", "tu", 6), delta("th", "other", 7)]
    run, others = router.receive([*lines, delta("th", "tu", 8), completed("th", "tu", 9), delta("th", "tu", 10)])
    assert isinstance(run, TurnRun) and isinstance(others, GlobalRun)
    assert (numbers(run.lines), run.ended) == ([1, 2, 5, 6, 8, 9], True)
    piece = "item/agentMessage/delta"
    assert run.methods == [piece, piece, "item/reasoning/textDelta", piece, piece, "turn/completed"]
    assert (numbers(others.lines), others.methods) == ([7, 10], [piece, piece])


def test_a_line_is_not_taken_for_the_one_before_by_its_beginning_alone() -> None:
    router = MessageRouter()
    start(router, 1)
    router.receive([started(1, "tu")])
    half, question = delta("th", "tu", 2)[:-20], delta("th", "tu", 3, id=7)
    deliveries = router.receive([delta("th", "tu", 1), half, question, delta("th", "tu", 4)])
    before, bad, ask, after = deliveries
    assert isinstance(before, TurnRun) and isinstance(after, TurnRun)
    assert (numbers(before.lines), numbers(after.lines)) == ([1], [4])
    assert isinstance(bad, Malformed) and bad.line == half
    assert isinstance(ask, ServerRequest) and ask.id == 7


def test_failure_is_sticky_and_names_everybody_once() -> None:
    router = MessageRouter()
    router.expect(1, "call")
    start(router, 2, turn="starting")
    seen(router, "tu", "tv")
    router.follow("tu", "follower")
    router.follow("tv", "follower")
    router.follow_thread("th", "thread token")
    router.expect(3, "forgotten")
    router.forget(3)
    error = TransportClosedError("gone")
    assert sorted(map(str, router.fail(error))) == ["call", "call 2", "follower", "starting", "thread token"]
    assert router.fail(TransportClosedError("again")) == []
    assert router.held == NOTHING_HELD
    for use in (
        lambda: router.expect(4, "x"),
        lambda: router.follow("tu", "x"),
        lambda: router.follow_thread("th", "x"),
        lambda: router.receive([b"{}"]),
        lambda: router.receive_run("th", "tu", [b"{}"], False),
    ):
        with pytest.raises(TransportClosedError, match="gone"):
            use()
    # Undoing is always allowed.
    router.forget(4)
    router.unfollow("tu", "x")
    router.unfollow_thread("th", "x")


# Lines beyond the cap.


def long_line(raw: bytes, size: int = 10**8) -> LongLine:
    return LongLine(raw, raw, size)


def test_a_long_line_fails_its_turn_and_no_other() -> None:
    router = MessageRouter()
    seen(router, "tu", "other")
    router.follow("tu", "a")
    router.follow("other", "b")
    got = router.receive(
        [note("th", "tu", 0), long_line(note("th", "tu", 1)), note("th", "tu", 2), note("th", "other", 3)]
    )
    assert by_token(got) == {"a": [0], "b": [3], "everybody": [2]}
    broken = next(each for each in got if isinstance(each, TurnBroken))
    assert (broken.tokens, broken.turn_id, broken.ended) == (["a"], "tu", False)
    assert "100000000 bytes (item/completed) is beyond the size cap" in broken.reason
    router.receive([completed("th", "other")])
    assert router.held == NOTHING_HELD


def test_a_long_completion_ends_its_turn() -> None:
    """`turn/completed` carries the answer, so it is long when the answer is."""
    router = MessageRouter()
    seen(router, "tu")
    router.follow("tu", "a")
    raw = line(method="turn/completed", params={"threadId": "th", "turn": {"id": "tu", "items": []}})
    [broken] = router.receive([long_line(raw)])
    assert isinstance(broken, TurnBroken)
    assert router.held == NOTHING_HELD


def test_a_long_early_line_fails_the_turn_once_it_is_known() -> None:
    router = MessageRouter()
    start(router, 1)
    router.receive([note("th", "tu", 0), long_line(note("th", "tu", 1)), note("th", "tu", 2)])
    reply, broken = router.receive([started(1, "tu")])
    assert isinstance(reply, Reply)
    assert isinstance(broken, TurnBroken)
    assert broken.tokens == ["turn token"]
    assert "beyond the size cap" in broken.reason
    assert router.held == NOTHING_HELD


def test_a_long_answer_fails_its_request() -> None:
    router = MessageRouter()
    start(router, 1)
    [reply] = router.receive([long_line(b'{"id":1,"result":{"turn":{"id":"tu","items":["')])
    assert isinstance(reply, Reply)
    assert reply.is_error
    error = json.loads(reply.line)["error"]
    assert error["code"] == -32603
    assert "100000000 bytes" in error["message"]
    assert router.held == NOTHING_HELD


def test_a_long_line_of_nobody_is_reported() -> None:
    router = MessageRouter()
    got = router.receive([long_line(note("th", "tu", 0)), long_line(b"garbage"), long_line(b'{"id":77,"result":"')])
    assert [type(each) for each in got] == [Malformed, Malformed, Malformed]


def test_early_lines_are_bounded() -> None:
    router = MessageRouter(max_early_bytes=1000)
    start(router, 1)
    for number in range(100):
        router.receive([note("th", "tu", number)])
    router.receive([completed("th", "tu")])
    reply, broken = router.receive([started(1, "tu")])
    assert isinstance(reply, Reply)
    assert isinstance(broken, TurnBroken)
    assert "more than 1000 bytes came before the answer" in broken.reason
    assert router.held == NOTHING_HELD


# Any interleaving.


def by_token(deliveries: list[Delivery]) -> dict[Any, list[int]]:
    logs: dict[Any, list[int]] = {}
    for each in deliveries:
        if isinstance(each, TurnRun | ThreadRun):
            assert len(each.lines) == len(each.methods)
            for token in each.tokens:
                logs.setdefault(token, []).extend(numbers(each.lines))
        elif isinstance(each, GlobalRun):
            logs.setdefault("everybody", []).extend(numbers(each.lines))
    return logs


@dataclass
class Turn:
    """A turn as the server knows it: the numbers it sent, in order."""

    id: str
    thread: str
    sent: list[int] = field(default_factory=list)
    over: bool = False


@dataclass
class Start:
    id: int
    thread: str | None
    turn: Turn
    joined: bool
    answered: bool = False
    forgotten: bool = False
    bound: bool = False
    ended_before: bool = False
    """The joined turn's end was received before the answer."""
    sent_before: int = 0
    """How many lines of the turn stand before the answer."""

    @property
    def token(self) -> tuple[str, int]:
        return ("start", self.id)


@dataclass
class Follower:
    token: tuple[str, int]
    turn: Turn
    first: int
    """How many lines of the turn had been received when it began to follow."""
    last: int | None = None


THREADS = ["th1", "th2"]


class Interleavings(RuleBasedStateMachine):
    """A server that starts, joins and ends turns; its lines reach the router in reads of any size.

    The router must hand out every numbered line exactly once to each of its turn's followers, or, without any, exactly
    once to the thread's followers or everybody.
    """

    def __init__(self) -> None:
        super().__init__()
        self.router = MessageRouter()
        self.count = 0
        self.turns: list[Turn] = []
        self.starts: list[Start] = []
        self.plain: dict[int, str] = {}
        self.followers: list[Follower] = []
        self.thread_followers: dict[str, str] = {}
        # What the server wrote and the router has not read: lines with what they mean.
        self.unread: list[tuple[bytes, Any]] = []
        self.received: dict[str, int] = {}
        self.turn_of: dict[int, Turn | None] = {}
        self.thread_of: dict[int, str | None] = {}
        self.logs: dict[Any, list[int]] = {}
        self.ends: dict[Any, int] = {}
        self.broken: dict[Any, bool] = {}
        self.replies: dict[Any, list[bool]] = {}
        self.asks: list[int] = []
        self.asked: list[int] = []
        self.bad_expected = self.bad_seen = 0

    def number(self) -> int:
        self.count += 1
        return self.count

    def send(self, turn: Turn | None, thread: str | None, *, ends: bool = False) -> None:
        number = self.number()
        self.turn_of[number], self.thread_of[number] = turn, thread
        if turn is not None:
            turn.sent.append(number)
            turn.over = turn.over or ends
        if turn is not None and (ends or number % 3):
            raw = (completed if ends else delta)(thread or "", turn.id, number)
        else:
            raw = note(thread, turn and turn.id, number)
        self.unread.append((raw, turn))

    def running(self) -> list[Turn]:
        return [turn for turn in self.turns if not turn.over]

    # The client.

    @rule(thread=st.sampled_from([*THREADS, None]), join=st.booleans())
    def start_turn(self, thread: str | None, join: bool) -> None:
        where = thread or THREADS[0]
        running = [turn for turn in self.running() if turn.thread == where]
        joined = join and bool(running)
        turn = running[0] if joined else Turn(f"tu{len(self.turns)}", where)
        if not joined:
            self.turns.append(turn)
        begun = Start(self.number(), thread, turn, joined)
        self.starts.append(begun)
        self.router.expect(begun.id, ("call", begun.id), thread_id=thread, starts_turn=True, turn=begun.token)

    @rule()
    def request(self) -> None:
        id = self.number()
        self.plain[id] = "open"
        self.router.expect(id, ("call", id))

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        open_starts = [each for each in self.starts if not each.bound and not each.forgotten]
        if not open_starts:
            return
        chosen = data.draw(st.sampled_from(open_starts))
        # An answer that was read is no longer there to be forgotten.
        if ("call", chosen.id) not in self.replies:
            chosen.forgotten = True
        self.router.forget(chosen.id)

    @rule(data=st.data())
    def follow(self, data: st.DataObject) -> None:
        if not self.turns:
            return
        turn = data.draw(st.sampled_from(self.turns))
        token = ("follower", self.number())
        seen = self.received.get(turn.id, 0)
        try:
            self.router.follow(turn.id, token)
        except UnknownTurnError:
            assert not seen
            assert not [each for each in self.starts if each.turn is turn and each.bound]
        except TurnEndedError:
            assert turn.over and seen == len(turn.sent)
        else:
            assert not (turn.over and seen == len(turn.sent))
            self.followers.append(Follower(token, turn, seen))

    @rule(data=st.data())
    def unfollow(self, data: st.DataObject) -> None:
        active = [each for each in self.followers if each.last is None]
        if active:
            chosen = data.draw(st.sampled_from(active))
            chosen.last = self.received.get(chosen.turn.id, 0)
            self.router.unfollow(chosen.turn.id, chosen.token)

    @rule(thread=st.sampled_from(THREADS), on=st.booleans())
    def follow_thread(self, thread: str, on: bool) -> None:
        # Lines on their way at a change may go either way: none are.
        self.read(whole_runs=False)
        if on:
            self.router.follow_thread(thread, f"thread {thread}")
            self.thread_followers[thread] = f"thread {thread}"
        else:
            self.router.unfollow_thread(thread, f"thread {thread}")
            self.thread_followers.pop(thread, None)

    # The server.

    @rule(thread=st.sampled_from(THREADS))
    def foreign_turn(self, thread: str) -> None:
        """Begun by somebody else: no answer will ever name it."""
        self.turns.append(Turn(f"tu{len(self.turns)}", thread))

    @rule(data=st.data(), lines=st.integers(1, 3))
    def turn_lines(self, data: st.DataObject, lines: int) -> None:
        if self.running():
            turn = data.draw(st.sampled_from(self.running()))
            for _ in range(lines):
                self.send(turn, turn.thread)

    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        if self.running():
            turn = data.draw(st.sampled_from(self.running()))
            self.send(turn, turn.thread, ends=True)

    @rule(thread=st.sampled_from([*THREADS, None]))
    def other_line(self, thread: str | None) -> None:
        self.send(None, thread)

    @rule(data=st.data(), ok=st.booleans())
    def answer(self, data: st.DataObject, ok: bool) -> None:
        # Those of one turn are answered in the order in which they were sent.
        first_of: dict[str, Start] = {}
        for each in self.starts:
            if not each.answered:
                first_of.setdefault(each.turn.id, each)
        if first_of:
            self.answer_start(data.draw(st.sampled_from(list(first_of.values()))), ok)

    def answer_start(self, begun: Start, ok: bool) -> None:
        begun.answered = True
        raw = started(begun.id, begun.turn.id) if ok else line(id=begun.id, error={"code": -32600})
        self.unread.append((raw, begun if ok else None))

    @rule()
    def answer_plain(self) -> None:
        for id, state in self.plain.items():
            if state == "open":
                self.plain[id] = "answered"
                self.unread.append((line(id=id, result={}), None))
                return

    @rule()
    def nonsense(self) -> None:
        self.unread += [(b"not json", None), (line(id=-1, result={}), None)]
        self.bad_expected += 2

    @rule()
    def ask(self) -> None:
        number = self.number()
        self.asked.append(number)
        raw = line(method="item/tool/call", id=number, params={"threadId": "th1", "turnId": "tu0"})
        self.unread.append((raw, None))

    # What the router reads, and what comes of it.

    @rule(size=st.integers(1, 6), whole_runs=st.booleans())
    def read_some(self, size: int, whole_runs: bool) -> None:
        self.read(size, whole_runs)

    def read(self, size: int | None = None, whole_runs: bool = False) -> None:
        batch = self.unread[:size]
        del self.unread[:size]
        for _, meaning in batch:
            if isinstance(meaning, Turn):
                self.received[meaning.id] = self.received.get(meaning.id, 0) + 1
            elif isinstance(meaning, Start) and not meaning.forgotten:
                meaning.bound = True
                meaning.sent_before = self.received.get(meaning.turn.id, 0)
                over = meaning.turn.over and meaning.sent_before == len(meaning.turn.sent)
                meaning.ended_before = over
        if whole_runs and batch and all(isinstance(meaning, Turn) and meaning is batch[0][1] for _, meaning in batch):
            turn = batch[0][1]
            lines = [raw for raw, _ in batch]
            ended = turn.over and self.received[turn.id] == len(turn.sent)
            self.observe(self.router.receive_run(turn.thread, turn.id, lines, ended))
        else:
            self.observe(self.router.receive([raw for raw, _ in batch]))
        self.observe(self.router.receive([]))

    def observe(self, deliveries: list[Delivery]) -> None:
        for token, got in by_token(deliveries).items():
            self.logs.setdefault(token, []).extend(got)
        for each in deliveries:
            match each:
                case TurnRun():
                    for token in each.tokens:
                        assert token not in self.ends, "something came after the end"
                        assert token not in self.broken
                        if each.ended:
                            self.ends[token] = 1
                case TurnBroken():
                    assert each.ended, "no line was too long"
                    for token in each.tokens:
                        assert token not in self.ends
                        assert token not in self.broken
                        self.broken[token] = True
                case Reply():
                    self.replies.setdefault(each.token, []).append(each.forgotten)
                case ServerRequest():
                    self.asks.append(int(each.id))
                case Malformed():
                    self.bad_seen += 1

    @invariant()
    def no_line_is_given_twice(self) -> None:
        for token, log in self.logs.items():
            assert len(set(log)) == len(log), token

    def teardown(self) -> None:
        for turn in self.running():
            self.send(turn, turn.thread, ends=True)
        for begun in self.starts:
            if not begun.answered:
                self.answer_start(begun, True)
        while "open" in self.plain.values():
            self.answer_plain()
        self.read()
        self.observe(self.router.receive([]))

        assert self.router.held == NOTHING_HELD
        assert self.asks == self.asked
        assert self.bad_seen == self.bad_expected
        for begun in self.starts:
            assert self.replies[("call", begun.id)] == [begun.forgotten]
        for id in self.plain:
            assert self.replies[("call", id)] == [False]
        self.check_starts()
        self.check_followers()
        self.check_everything_arrived()

    def check_starts(self) -> None:
        for begun in self.starts:
            log = self.logs.get(begun.token, [])
            if not begun.bound:
                assert log == []
                assert begun.token not in self.ends
            elif not begun.joined:
                assert log == begun.turn.sent
                assert self.ends[begun.token] == 1
            else:
                # From the answer on at least; what it saw before, without a gap.
                assert log == begun.turn.sent[len(begun.turn.sent) - len(log) :]
                assert len(log) >= len(begun.turn.sent) - begun.sent_before
                if log:
                    assert self.ends[begun.token] == 1
                else:
                    assert begun.ended_before
                    assert self.broken[begun.token]

    def check_followers(self) -> None:
        for each in self.followers:
            assert self.logs.get(each.token, []) == each.turn.sent[each.first : each.last]

    def check_everything_arrived(self) -> None:
        """Each line went to its turn's followers, or else exactly once to the others."""
        others: dict[int, str] = {}
        to_turn: set[int] = set()
        for token, log in self.logs.items():
            if isinstance(token, tuple):
                to_turn.update(log)
                continue
            last: dict[str | None, int] = {}
            for number in log:
                assert number not in others
                others[number] = token
                turn = self.turn_of[number]
                key = turn.id if turn is not None else f"thread {self.thread_of[number]}"
                assert number > last.get(key, 0), "out of order"
                last[key] = number
        assert to_turn.isdisjoint(others)
        assert to_turn | set(others) == set(self.turn_of)
        for number, token in others.items():
            if token != "everybody":
                assert token == f"thread {self.thread_of[number]}"


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
