"""The start arguments of a worker."""

from __future__ import annotations

from typing import Any

import msgspec


class TurnLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of turns, in seconds, of a worker that runs; None is no limit."""

    turn_idle_limit_s: float | None
    turn_wall_limit_s: float | None
    approval_timeout_s: float | None


class WorkerArguments(msgspec.Struct, forbid_unknown_fields=True):
    """Start arguments of a worker."""

    slot: int
    worker: str
    endpoint: str
    argv: list[str]
    cwd: str | None
    environ: dict[str, str]
    initialize: dict[str, Any]
    # None: no limit.
    turn_idle_limit_s: float | None = 600.0
    turn_wall_limit_s: float | None = None
    approval_timeout_s: float | None = 24 * 3600.0
    # Path of the tracer's socket; "" in a pool without one.
    tracer: str = ""
