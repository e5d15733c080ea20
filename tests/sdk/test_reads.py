"""Sizes of reads: little while little comes, and much for what is long."""

from __future__ import annotations

from codex_app_server._runtime import reads

MOST_BYTES = 256 * 1024
# From this size on, glibc maps memory for a buffer by default.
MAPPED_BYTES = 128 * 1024
# What an object of Python needs beside its bytes, and to spare.
OVERHEAD_BYTES = 1024


def test_a_read_that_was_filled_is_followed_by_a_large_one_until_one_is_not() -> None:
    size, seen = reads.LITTLE_BYTES, []
    for comes in (300, reads.LITTLE_BYTES, MOST_BYTES, reads.LITTLE_BYTES - 1, 300):
        size = reads.next_bytes(min(comes, size), MOST_BYTES)
        seen.append(size)
    assert seen == [reads.LITTLE_BYTES, MOST_BYTES, MOST_BYTES, reads.LITTLE_BYTES, reads.LITTLE_BYTES]


def test_no_memory_is_mapped_for_a_little_read() -> None:
    assert reads.LITTLE_BYTES + OVERHEAD_BYTES < MAPPED_BYTES
