"""The start arguments of a canary."""

from __future__ import annotations

from typing import Any

import msgspec


class CanaryArguments(msgspec.Struct, forbid_unknown_fields=True):
    """`argv`: the command of the app-server; `environ` comes on top of the process's own; `home`: the CODEX_HOME of the
    pool; `databases`: a SQLite home to be copied; `directory`: where its own home is made, which it removes again.

    `initialize`: as the workers send it. `probe_turn`: run a turn too.
    """

    argv: list[str]
    cwd: str | None
    environ: dict[str, str]
    initialize: dict[str, Any]
    home: str
    databases: str
    directory: str
    probe_turn: bool
