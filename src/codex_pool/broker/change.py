"""Change: one change of what every app-server has in memory, and the step that it waits for. Data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .change_kinds import Plan
from .request import Request


@dataclass(slots=True, eq=False)
class Change:
    """One change. Without a `request` it is the pool's own: for all but `done`, or a replay for `only` one."""

    plan: Plan
    lines: list[bytes]
    request: Request | None = None
    only: str = ""
    # Of replayed requests: the time of the last one.
    kept_at: float = 0.0
    done: dict[str, None] = field(default_factory=dict)
    # Workers that were late or would not, with the reason.
    failed: dict[str, str] = field(default_factory=dict)
    refusal: bytes = b""
    out_of_step: str = ""
    response: bytes = b""
    notifications: list[bytes] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Step:
    """Request that the running change waits for: this worker's answer to this line."""

    request: Request
    number: int
    worker: str
    phase: Literal["apply", "check"]
    line: int
    since: float
    tries: int = 1
    notifications: list[bytes] = field(default_factory=list)
