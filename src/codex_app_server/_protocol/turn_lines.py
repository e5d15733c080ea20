"""Lines of one turn as a transport hands them over, and what a request says of its turn. Loads nothing else."""

from __future__ import annotations

from typing import Literal, NamedTuple

DEFAULT_TIMEOUT_S = 60.0

Interest = Literal["full", "items", "final"]


class TurnLines(NamedTuple):
    """Notifications known to belong to one turn, in order. `ended` when the last of them ends it.

    `methods` runs parallel to `lines`, where any is known: "" is one that is not.
    """

    thread_id: str
    turn_id: str
    lines: list[bytes]
    ended: bool
    methods: list[str] | None = None
