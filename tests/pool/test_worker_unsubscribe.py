"""Threads that nobody follows: unsubscribed where the app-server can unload them, and resumed at their next request."""

from __future__ import annotations

import pytest
from session_ids import sid
from worker_bench import WORKSPACE_WRITE, Bench, record, thread_result

from codex_app_server import errors
from codex_pool.protocol import wire
from codex_pool.worker.unfollowed import ABANDON_AFTER_S, UNLOADED_AFTER_S, UNSUBSCRIBE_AFTER_S

UNSUBSCRIBE, RESUME = "thread/unsubscribe", "thread/resume"


@pytest.fixture
def bench() -> Bench:
    """A thread with a turn that is over, followed by s1."""
    bench = Bench().start()
    bench.thread("t1", sandbox=WORKSPACE_WRITE)
    bench.turn("u1")
    bench.complete("u1")
    return bench


def unfollow(bench: Bench, thread_id: str = "t1", session: str = "s1") -> None:
    bench.dispatch(UNSUBSCRIBE, {"threadId": thread_id}, session=session)


def follow(bench: Bench, thread_id: str = "t1", session: str = "s1") -> None:
    bench.apply(bench.core.broker_message(wire.Follow(sid(session), thread_id), [], bench.now))


def methods(bench: Bench) -> list[str]:
    return [message["method"] for message in bench.open.values()]


def put_to_sleep(bench: Bench) -> None:
    unfollow(bench)
    bench.tick(UNSUBSCRIBE_AFTER_S)
    bench.answer(bench.request(UNSUBSCRIBE), {"status": "unsubscribed"})


def test_a_thread_that_nobody_follows_is_unsubscribed(bench: Bench) -> None:
    follow(bench, session="s2")
    unfollow(bench)
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == [], "s2 follows it"
    bench.gone("s2")
    bench.tick(UNSUBSCRIBE_AFTER_S - 1)
    assert methods(bench) == []
    bench.tick(1)
    assert bench.open[bench.request(UNSUBSCRIBE)]["params"] == {"threadId": "t1"}
    bench.answer(bench.request(UNSUBSCRIBE), {"status": "unsubscribed"})
    bench.tick(60)
    assert methods(bench) == ["thread/loaded/list"], "once"
    assert bench.core.loaded_threads == 1 and bench.routed(wire.ThreadGone) == []


def test_one_that_is_followed_again_is_left_alone(bench: Bench) -> None:
    unfollow(bench)
    bench.tick(1)
    follow(bench)
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == []


def test_neither_a_running_turn_nor_a_request_is_cut_off(bench: Bench) -> None:
    bench.turn("u2")
    unfollow(bench)
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == []
    bench.complete("u2")
    bench.dispatch("thread/read", {"threadId": "t1"})
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == ["thread/read"]
    bench.answer(bench.request("thread/read"), {})
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == [UNSUBSCRIBE]


def test_a_turn_of_a_sub_agent_keeps_its_tree_thread(bench: Bench) -> None:
    bench.notify("thread/started", thread={"id": "child", "parentThreadId": "t1"})
    bench.notify("turn/started", threadId="child", turn={"id": "u9", "rootTurnId": "u9"})
    unfollow(bench)
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == []
    bench.complete("u9", "child")
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == [UNSUBSCRIBE]


def test_a_thread_with_a_goal_may_begin_turns_by_itself(bench: Bench) -> None:
    bench.notify("thread/goal/updated", threadId="t1", goal={"status": "active"})
    unfollow(bench)
    bench.tick(60)
    bench.answer(bench.request("thread/loaded/list"), {})
    assert methods(bench) == []
    bench.notify("thread/goal/updated", threadId="t1", goal={"status": "complete"})
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == [UNSUBSCRIBE]


@pytest.fixture
def fleeting() -> Bench:
    """Two threads that cannot be resumed, one ephemeral and one without a turn; s1 follows both."""
    bench = Bench().start()
    bench.thread("ephemeral", ephemeral=True)
    bench.turn("u1", "ephemeral")
    bench.complete("u1", "ephemeral")
    bench.thread("no turn")
    return bench


def test_what_cannot_be_resumed_is_let_go_with_its_last_follower(fleeting: Bench) -> None:
    for thread_id in ("ephemeral", "no turn"):
        unfollow(fleeting, thread_id)
    fleeting.tick(UNSUBSCRIBE_AFTER_S)
    assert fleeting.routed(wire.ThreadGone) == [wire.ThreadGone(each, keep=True) for each in ("ephemeral", "no turn")]
    assert methods(fleeting) == [UNSUBSCRIBE, UNSUBSCRIBE]
    for _ in range(2):
        fleeting.answer(fleeting.request(UNSUBSCRIBE), {"status": "unsubscribed"})
    assert fleeting.core.loaded_threads == 2, "the app-server has them for a while"
    # On its way when the broker heard of it.
    call = fleeting.dispatch("turn/start", {"threadId": "ephemeral"})
    answered, line = fleeting.answered[call]
    assert not answered.ok and methods(fleeting) == [], "the end of that turn would never come"
    assert line["error"]["code"] == errors.THREAD_LOST and line["error"]["data"] == {"safeToRetry": True}
    for _ in range(40):
        fleeting.tick(UNLOADED_AFTER_S / 40)
        if "thread/loaded/list" in methods(fleeting):
            fleeting.answer(fleeting.request("thread/loaded/list"), {})
    fleeting.tick(1)
    assert fleeting.core.loaded_threads == 0


def test_what_cannot_be_resumed_outlives_its_client_for_a_while(fleeting: Bench) -> None:
    fleeting.gone("s1")
    fleeting.tick(ABANDON_AFTER_S - 1)
    assert UNSUBSCRIBE not in methods(fleeting)
    follow(fleeting, "ephemeral", "s2")
    fleeting.tick(1)
    assert [each.thread_id for each in fleeting.routed(wire.ThreadGone)] == ["no turn"]


def test_a_turn_that_was_to_go_on_can_be_read_by_the_next_client(fleeting: Bench) -> None:
    fleeting.turn("u2", "ephemeral")
    fleeting.apply(fleeting.core.broker_message(wire.SessionGone(sid("s1"), keep=True), [], fleeting.now))
    fleeting.complete("u2", "ephemeral")
    fleeting.tick(ABANDON_AFTER_S)
    assert fleeting.routed(wire.ThreadGone) == []
    call = fleeting.dispatch("thread/read", {"threadId": "ephemeral"}, session="s2")
    fleeting.answer(fleeting.request("thread/read"), {})
    assert fleeting.answered[call][0].ok


def test_its_next_request_resumes_it_as_it_was(bench: Bench) -> None:
    put_to_sleep(bench)
    call = bench.dispatch("turn/start", {"threadId": "t1"})
    assert methods(bench) == [RESUME]
    params = bench.open[bench.request(RESUME)]["params"]
    assert (params["sandbox"], params["approvalPolicy"]) == ("workspace-write", "never")
    bench.answer(bench.request(RESUME), thread_result("t1", sandbox=WORKSPACE_WRITE))
    start = bench.open[bench.request("turn/start")]
    assert start["params"]["sandboxPolicy"]["writableRoots"] == ["/data"]
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u2"}})
    assert bench.answered[call][0].ok
    bench.complete("u2")
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == [UNSUBSCRIBE], "still nobody follows it"


def test_a_client_that_resumes_it_follows_it(bench: Bench) -> None:
    put_to_sleep(bench)
    bench.dispatch(RESUME, {"threadId": "t1"}, session="s2")
    bench.answer(bench.request(RESUME), thread_result("t1", sandbox=WORKSPACE_WRITE))
    bench.answer(bench.request(RESUME), thread_result("t1", sandbox=WORKSPACE_WRITE))
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == []


@pytest.mark.parametrize("refused", [False, True])
def test_a_request_that_crosses_the_unsubscribe_waits_for_it(bench: Bench, refused: bool) -> None:
    unfollow(bench)
    bench.tick(UNSUBSCRIBE_AFTER_S)
    bench.dispatch("turn/start", {"threadId": "t1"})
    assert methods(bench) == [UNSUBSCRIBE]
    bench.answer(bench.request(UNSUBSCRIBE), {}, error="no" if refused else None)
    assert methods(bench) == [RESUME]
    assert [known.thread_id for known in bench.new_broker().records] == ["t1"]


def test_an_unsubscribe_that_fails_changes_nothing(bench: Bench) -> None:
    unfollow(bench)
    bench.tick(UNSUBSCRIBE_AFTER_S)
    bench.answer(bench.request(UNSUBSCRIBE), error="no")
    bench.dispatch("turn/start", {"threadId": "t1"})
    assert methods(bench) == ["turn/start"]


@pytest.mark.parametrize("method", ["thread/read", "thread/archive", "thread/delete"])
def test_some_requests_need_no_subscription(bench: Bench, method: str) -> None:
    put_to_sleep(bench)
    bench.dispatch(method, {"threadId": "t1"})
    assert methods(bench) == [method]


def test_a_sleeping_thread_that_is_unloaded_stays_with_its_worker(bench: Bench) -> None:
    put_to_sleep(bench)
    bench.notify("thread/closed", threadId="t1")
    assert bench.routed(wire.ThreadGone) == []
    bench.dispatch("turn/start", {"threadId": "t1"})
    assert methods(bench) == [RESUME]


def test_one_that_cannot_be_resumed_is_refused_by_its_name(bench: Bench) -> None:
    put_to_sleep(bench)
    call = bench.dispatch("turn/start", {"threadId": "t1"})
    bench.answer(bench.request(RESUME), thread_result("t1"))
    answered, line = bench.answered[call]
    assert not answered.ok and line["error"]["code"] == errors.THREAD_LOST
    assert "thread t1 was unsubscribed and could not be resumed as it was: its sandbox" in line["error"]["message"]
    assert bench.routed(wire.ThreadGone) == [wire.ThreadGone("t1", keep=True)]


def test_a_sleeping_thread_can_leave_for_another_worker(bench: Bench) -> None:
    put_to_sleep(bench)
    bench.apply(bench.core.broker_message(wire.Release(77, "t1"), [], bench.now))
    bench.answer(bench.request("thread/archive"), {})
    bench.answer(bench.request("thread/unarchive"), {})
    assert bench.answered[77][0].ok and bench.core.loaded_threads == 0


def test_one_that_leaves_is_not_unsubscribed(bench: Bench) -> None:
    unfollow(bench)
    bench.apply(bench.core.broker_message(wire.Release(77, "t1"), [], bench.now))
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == ["thread/archive"]


def test_a_thread_that_was_adopted_for_somebody_who_does_not_follow_it_is_let_go() -> None:
    bench = Bench().start()
    bench.dispatch("thread/name/set", {"threadId": "t9", "name": "N"}, adopt=record())
    bench.answer(bench.request(RESUME), thread_result("t9", sandbox=WORKSPACE_WRITE))
    for _ in range(2):
        bench.answer(bench.request("thread/name/set"), {})
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert methods(bench) == [UNSUBSCRIBE]
