"""The start arguments of a worker."""

from __future__ import annotations

from typing import Any

import msgspec


class WorkerArguments(msgspec.Struct, forbid_unknown_fields=True):
    """What a worker is started with."""

    slot: int
    worker: str
    endpoint: str
    argv: list[str]
    cwd: str | None
    environ: dict[str, str]
    initialize: dict[str, Any]
    # None: there is no limit.
    turn_idle_limit_s: float | None = 600.0
    turn_wall_limit_s: float | None = None
