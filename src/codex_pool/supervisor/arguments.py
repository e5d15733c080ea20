"""Start arguments of a supervisor: what its parent writes, and it reads, as the first line on its stdin."""

from __future__ import annotations

from typing import Any

import msgspec

from ..gateway.sessions import ListenerConfig
from ..option_sources import ConfigSource
from ..options import PoolOptions


class SupervisorArguments(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Start arguments. `environ` comes on top of the supervisor's own environment.

    `options` have an endpoint, and the absolute path of the keys where clients connect with a key.
    """

    options: PoolOptions
    argv: list[str]
    cwd: str | None
    environ: dict[str, str]
    initialize: dict[str, Any]
    sqlite_root: str
    # Whose tokens the pool's holder refreshes.
    auth_json: str
    # Whether argv is a codex command, which takes --config options.
    configurable: bool = False
    # Where a daemon reads its options again; None for a pool that belongs to a program.
    source: ConfigSource | None = None
    # Whether the parent runs the pool until it is asked to stop, and reads that (see `steering`).
    is_daemon: bool = False
    # Where the gateway lets clients in; None for a pool without a gateway.
    listeners: ListenerConfig | None = None

    @property
    def endpoint(self) -> str:
        """The address for clients."""
        assert self.options.endpoint is not None
        return self.options.endpoint
