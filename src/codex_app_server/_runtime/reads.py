"""Sizes of reads from pipes and sockets: little while little comes.

For a buffer of 128 KiB or more, glibc maps memory and unmaps it afterwards. A process that is woken for each delta
spends more on that than on all else it does.
"""

from __future__ import annotations

LITTLE_BYTES = 64 * 1024


def next_bytes(read_bytes: int, most_bytes: int) -> int:
    """The size of the next read, after one that gave `read_bytes`: `most_bytes` while reads are filled."""
    return most_bytes if read_bytes >= LITTLE_BYTES else LITTLE_BYTES
