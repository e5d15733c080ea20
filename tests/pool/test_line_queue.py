"""The queue of lines that may be lost: order, bounds, and a count that is right whatever fails when."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from codex_pool.runtime.line_queue import LineQueue

MAX_BYTES = 100


def marker(number: int) -> bytes:
    return b"# %d lost\n" % number


class Destination:
    """Takes what the queue writes, up to `room` bytes."""

    def __init__(self, queue: LineQueue) -> None:
        self.queue = queue
        self.text = b""

    def write(self, room: int) -> None:
        """One attempt to write."""
        head = self.queue.head()
        if not head:
            return
        if not room:
            self.queue.failed()
            return
        self.text += head[:room]
        self.queue.wrote(min(room, len(head)))

    def drain(self) -> None:
        while self.queue.head():
            self.write(7)


def test_lines_are_written_in_order_and_whole() -> None:
    queue = LineQueue(MAX_BYTES, marker)
    out = Destination(queue)
    assert queue.head() == b"" and not queue.has_unsaid
    assert queue.add(b"one\n") and queue.add(b"two\n")
    out.drain()
    assert (out.text, queue.lost, queue.waiting_bytes) == (b"one\ntwo\n", 0, 0)


def test_as_many_lines_are_written_at_once_as_a_pipe_takes_without_parting_them() -> None:
    queue = LineQueue(100_000, marker)
    lines = [b"%d\n" % number * 300 for number in range(10)] + [b"x" * 5000 + b"\n", b"y\n"]
    for line in lines:
        queue.add(line)
    heads = []
    while head := queue.head():
        heads.append(head)
        queue.wrote(len(head))
    assert heads == [b"".join(lines[:6]), b"".join(lines[6:10]), lines[10], lines[11]]
    assert queue.waiting_bytes == queue.lost == 0


def test_lines_beyond_the_bound_are_lost_and_their_number_stands_where_they_would_have() -> None:
    queue = LineQueue(10, marker)
    out = Destination(queue)
    assert queue.add(b"one\n") and queue.add(b"two\n")
    assert not queue.add(b"three\n") and not queue.add(b"four\n")
    assert queue.add(b"5\n") and queue.waiting_bytes == 10
    out.drain()
    assert out.text == b"one\ntwo\n# 2 lost\n5\n" and queue.lost == 2


def test_the_number_is_written_although_no_line_comes_after_it() -> None:
    queue = LineQueue(4, marker)
    out = Destination(queue)
    queue.add(b"one\n")
    queue.add(b"two\n")
    out.drain()
    assert out.text == b"one\n# 1 lost\n" and not queue.has_unsaid


def test_a_line_that_cannot_be_written_is_lost_and_half_a_line_is_ended() -> None:
    queue = LineQueue(MAX_BYTES, marker)
    out = Destination(queue)
    queue.add(b"first\n")
    queue.add(b"second\n")
    out.write(2)
    out.write(0)
    # It would begin with the end of the half line: one attempt, and one line less.
    out.write(0)
    assert (out.text, queue.lost, queue.has_unsaid) == (b"fi", 2, True)
    queue.add(b"third\n")
    out.drain()
    assert out.text == b"fi\n# 2 lost\nthird\n"


def test_a_line_of_which_only_the_end_was_not_written_is_none_that_is_lost() -> None:
    queue = LineQueue(MAX_BYTES, marker)
    out = Destination(queue)
    queue.add(b"first\n")
    out.write(5)
    out.write(0)
    queue.add(b"second\n")
    out.drain()
    assert (out.text, queue.lost) == (b"first\nsecond\n", 0)


def test_without_a_marker_lines_are_counted_only() -> None:
    queue = LineQueue(4)
    out = Destination(queue)
    queue.add(b"one\n")
    queue.add(b"two\nthree\n")
    out.drain()
    assert (out.text, queue.lost, queue.has_unsaid) == (b"one\n", 2, False)
    queue.add(b"4\n")
    out.drain()
    assert out.text == b"one\n4\n"


steps = st.one_of(st.integers(1, 30).map(lambda n: ("add", n)), st.integers(0, 40).map(lambda n: ("write", n)))


@settings(max_examples=500, deadline=None)
@given(st.lists(steps, max_size=60))
def test_each_line_is_written_once_or_counted_once(steps: list[tuple[str, int]]) -> None:
    queue = LineQueue(MAX_BYTES, marker)
    out = Destination(queue)
    added = 0
    for what, number in steps:
        if what == "add":
            queue.add(b"<%d %s>\n" % (added, b"x" * number))
            added += 1
        else:
            out.write(number)
        assert queue.waiting_bytes <= MAX_BYTES
    out.drain()
    lines = out.text.split(b"\n")
    whole = [int(match[1]) for line in lines if (match := re.fullmatch(rb"<(\d+) x+>", line))]
    said = [int(match[1]) for line in lines if (match := re.fullmatch(rb"# (\d+) lost", line))]
    assert whole == sorted(set(whole)), "in order, each once"
    assert len(whole) + sum(said) == added and queue.lost == sum(said)
    assert not queue.has_unsaid and queue.waiting_bytes == 0
