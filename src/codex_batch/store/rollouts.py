"""Rollouts: the session files of codex that are kept of an attempt, each as one gzip member.

An attempt has one for its thread, one for each thread that this one was forked from, and one for each sub-agent's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from .statements import Start

# Relations of a thread to its attempt.
OWN, ORIGIN, SUB_AGENT = "own", "origin", "sub-agent"
# A line of this type stands where something was left out.
CUT = "codex_pool_cut"


class Rollout(msgspec.Struct, frozen=True):
    """The session file of one thread, to be stored. `lines` is a gzip member, None where there is no file.

    `parent_id` is the thread that was forked from this one, or the one whose sub-agent this is. `size_bytes` is the
    size of the file, `cut_bytes` what was left out of it; `note` has the reason, or why it is missing.
    """

    thread_id: str
    relation: str = OWN
    parent_id: str | None = None
    size_bytes: int = 0
    cut_bytes: int = 0
    note: str | None = None
    lines: bytes | None = None


class RolloutRow(msgspec.Struct, frozen=True):
    """A stored session file, as `Rollout` has it. `at`: segment, offset and length, None where there is none."""

    thread_id: str
    relation: str
    parent_id: str | None
    size_bytes: int
    cut_bytes: int
    note: str | None
    at: tuple[int, int, int] | None


def insert_rollouts(
    db: sqlite3.Connection,
    start: Start,
    rollouts: Sequence[Rollout],
    append: Callable[[bytes], tuple[int, int, int]],
) -> None:
    """Store the session files of an attempt; `append` writes a member and returns where it is."""
    for place, one in enumerate(rollouts):
        at = (None, None, None) if one.lines is None else append(one.lines)
        about = (one.thread_id, one.relation, one.parent_id, one.size_bytes, one.cut_bytes, one.note)
        db.execute(
            "INSERT OR REPLACE INTO rollouts (n, attempt, place, thread_id, relation, parent_id, bytes, cut_bytes, "
            "note, segment, offset, length) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (start.n, start.attempt, place, *about, *at),
        )


def rollout_of(row: Mapping[str, Any]) -> RolloutRow:
    """Return a row of the table as a value."""
    return RolloutRow(
        thread_id=row["thread_id"],
        relation=row["relation"],
        parent_id=row["parent_id"],
        size_bytes=row["bytes"],
        cut_bytes=row["cut_bytes"],
        note=row["note"],
        at=None if row["length"] is None else (row["segment"], row["offset"], row["length"]),
    )
