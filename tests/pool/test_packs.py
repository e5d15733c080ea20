"""packs: messages of notifications that are put together come out as they were, in their order."""

from __future__ import annotations

from collections import defaultdict

import pytest
from broker_bench import Bench
from hypothesis import given
from hypothesis import strategies as st
from session_ids import sid

from codex_pool.broker.effects import LogLine
from codex_pool.protocol import packs, wire

ROUTES = [wire.encode(wire.ToSessions([sid(name)])) for name in ("s1", "s2", "s3", "s4", "s5")]
LINES = wire.encode(wire.Lines())


def events(turn: str, after: int, *bodies: bytes) -> list[bytes]:
    runs = [wire.Run(body.count(b"\n") + 1, "kept") for body in bodies]
    return [wire.encode(wire.Events("th", turn, after, after + sum(run.count for run in runs), runs)), *bodies]


def messages_of(sent: list[list[bytes]]) -> list[list[bytes]]:
    """The messages of a worker, those of stacks in place of the stacks."""
    found = []
    for route, *frames in sent:
        head = wire.decode_from_worker(route)
        found += packs.unstacked(head, frames) if isinstance(head, wire.Stack) else [[route, *frames]]
    return found


bodies = st.lists(st.sampled_from([b"{}", b'{"a":1}\n{}', b"", b"x" * packs.PACKED_BYTES]), min_size=1, max_size=3)
messages = st.lists(
    st.one_of(
        st.builds(lambda route, found: [route, *events("u", 0, *found)], st.sampled_from(ROUTES), bodies),
        st.builds(lambda route, line: [route, LINES, line], st.sampled_from(ROUTES), st.binary(max_size=9)),
        st.builds(
            lambda found: [wire.encode(wire.TurnEnded("th", "u", "completed", [])), *events("u", 0, *found)], bodies
        ),
        st.just([wire.encode(wire.TurnEnded("th", "u", "lost", []))]),
    ),
    max_size=12,
)


@given(messages)
def test_what_is_packed_comes_out_as_it_was(sent: list[list[bytes]]) -> None:
    by_route: dict[bytes, list[list[bytes]]] = defaultdict(list)
    got: dict[bytes, list[list[bytes]]] = defaultdict(list)
    for route, *frames in sent:
        by_route[route].append(frames)
    for route, *frames in messages_of(packs.packed(sent)):
        got[route] += packs.unpacked(frames) if frames else [frames]
    assert got == by_route


def test_messages_of_notifications_are_one_and_no_other_is_overtaken() -> None:
    first, second, third = (events("u", number, b"{}") for number in range(3))
    lines = [ROUTES[0], LINES, b"{}"]
    sent = [[ROUTES[0], *first], [ROUTES[1], *first], [ROUTES[0], *second], lines, [ROUTES[0], *third]]
    found = packs.packed(sent)
    assert [packs.is_pack(frames[1:]) for frames in found] == [True, False, False, False]
    assert found[1:] == [sent[1], lines, sent[4]]
    assert packs.unpacked(found[0][1:]) == [first, second]


@pytest.mark.parametrize("sizes", [[3], [1], [3, -1], [], [2, 2]])
def test_sizes_that_do_not_add_up_are_refused(sizes: list[int]) -> None:
    frames = [wire.encode(wire.Pack([events("u", 0, b"{}")[0]], [sizes])), b"{}"]
    with pytest.raises(wire.WireError, match="add up to its 2 bytes"):
        packs.unpacked(frames)


@pytest.mark.parametrize("sizes", [[[3]], [[1]], [[3, -1]], [], [[2], [2]]])
def test_a_stack_whose_sizes_do_not_add_up_is_logged_and_ignored(sizes: list[list[int]]) -> None:
    with pytest.raises(wire.WireError, match="a stack of"):
        packs.unstacked(wire.Stack(sizes), [b"{}"])
    bench = Bench()
    bench.register()
    (effect,) = bench.core.worker_message(b"w0", [wire.encode(wire.Stack(sizes)), b"{}"], bench.now)
    assert isinstance(effect, LogLine) and "a stack of" in effect.message


def test_the_broker_sends_each_session_its_part_of_a_stack() -> None:
    bench = Bench()
    bench.register()
    for session in ("s1", "s2", "s3", "s4"):
        bench.core.client_message(session.encode(), [wire.encode(wire.Hello(session, "x"))], bench.now)
    sent = [[route, *events("u", number, b"{}", b"")] for number, route in enumerate(ROUTES[:4])]
    assert packs.packed(sent[:3]) == sent[:3], "to make a stack of so few is not worth it"
    (stack,) = packs.packed(sent)
    # The first time the routes are not known.
    for _ in range(2):
        effects = bench.core.worker_message(b"w0", stack, bench.now)
        got = [(effect.peer, effect.frames) for effect in effects]
        assert got == [(b"s%d" % number, frames[1:]) for number, frames in enumerate(sent, 1)]


@pytest.mark.parametrize(
    ("accepts", "opted_out"), [(True, False), (False, False), (True, True)], ids=["pack", "older client", "opted out"]
)
def test_a_client_gets_packs_if_it_takes_them_and_nothing_that_it_has_opted_out_of(
    accepts: bool, opted_out: bool
) -> None:
    bench = Bench()
    bench.register()
    bench.core.client_message(b"s1", [wire.encode(wire.Hello("s1", "x", accepts_packs=accepts))], bench.now)
    if opted_out:
        bench.core.state.sessions[sid("s1")].opted_out = (b'{"method":"item/agentMessage/delta"',)
    delta, item = b'{"method":"item/agentMessage/delta"}', b'{"method":"item/started"}'
    sent = [events("u", 0, delta), events("v", 0, item)]
    (message,) = packs.packed([[ROUTES[0], *frames] for frames in sent])
    got = [effect.frames for effect in bench.core.worker_message(b"w0", message, bench.now)]
    if opted_out:
        heads = [wire.decode_to_client(frame) for frame, *_ in got]
        assert [(head.turn_id, head.last, len(head.runs)) for head in heads] == [("u", 1, 0), ("v", 1, 1)]
        assert got[1] == sent[1]
    else:
        assert got == ([message[1:]] if accepts else sent)
