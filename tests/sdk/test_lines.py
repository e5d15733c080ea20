"""LineSplitter: any chunking of the same bytes gives the same lines, and memory stays bounded."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codex_app_server._protocol.framing import _KEPT_BYTES, LineSplitter, LongLine

# Few letters, so that newlines stand next to each other, at the ends and just where the cap is.
streams = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\r", b"\xff", b"0123456789"]), max_size=40).map(b"".join)
caps = st.integers(1, 25)


def split_whole(stream: bytes, cap: int) -> tuple[list[bytes | LongLine], bytes]:
    """Split as the docstring of `LineSplitter` says, with the whole stream at hand."""
    *complete, rest = stream.split(b"\n")
    kept = min(cap, _KEPT_BYTES)
    lines: list[bytes | LongLine] = [
        line if len(line) <= cap else LongLine(line[:kept], line[-kept:], len(line)) for line in complete if line
    ]
    return lines, rest


def feed_in_pieces(stream: bytes, cuts: list[int], cap: int) -> tuple[list[bytes | LongLine], LineSplitter]:
    splitter = LineSplitter(cap)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    lines: list[bytes | LongLine] = []
    for start, end in itertools.pairwise(edges):
        lines += splitter.feed(stream[start:end])
    return lines, splitter


@given(streams, st.lists(st.integers(0, 400), max_size=20), caps)
@example(b"0123456789012345678901234\nx\n", [3, 7, 24, 25, 26], 5)
def test_any_chunking_gives_the_same_lines(stream: bytes, cuts: list[int], cap: int) -> None:
    lines, rest = split_whole(stream, cap)
    got, splitter = feed_in_pieces(stream, cuts, cap)
    assert got == lines
    assert splitter.rest() == (rest if len(rest) <= cap else rest[: min(cap, _KEPT_BYTES)])


@given(streams, caps)
def test_one_byte_at_a_time(stream: bytes, cap: int) -> None:
    got, _ = feed_in_pieces(stream, list(range(len(stream))), cap)
    assert got == split_whole(stream, cap)[0]


def test_an_empty_chunk_changes_nothing() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"ab") == []
    assert splitter.feed(b"") == []
    assert splitter.feed(b"c\n") == [b"abc"]
    assert splitter.rest() == b""


@pytest.mark.parametrize("chunk", [1000, 65536, 10**7])
def test_a_line_beyond_the_cap_keeps_head_and_tail(chunk: int) -> None:
    line = b'{"method":"x",' + b"y" * 3_000_000 + b',"turnId":"t"}'
    stream = b"before\n" + line + b"\nafter\n"
    splitter = LineSplitter(1_000_000)
    lines: list[bytes | LongLine] = []
    for start in range(0, len(stream), chunk):
        lines += splitter.feed(stream[start : start + chunk])
    assert lines == [b"before", LongLine(line[:_KEPT_BYTES], line[-_KEPT_BYTES:], len(line)), b"after"]


def test_a_line_of_exactly_the_cap_is_whole() -> None:
    splitter = LineSplitter(10)
    assert splitter.feed(b"0123456789\n01234567890\n") == [b"0123456789", LongLine(b"0123456789", b"1234567890", 11)]


def test_memory_is_bounded_by_the_cap() -> None:
    """A line of 400 MB, of which never more than the cap and its two ends are held."""
    chunk = b"z" * 256 * 1024
    splitter = LineSplitter(2 * 1024 * 1024)
    tracemalloc.start()
    try:
        for _ in range(1600):
            splitter.feed(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The parts and the line that is made of them, once.
    assert peak < 6 * 1024 * 1024
    [line] = splitter.feed(b"\n")
    assert isinstance(line, LongLine)
    assert line.size_bytes == 1600 * len(chunk)
