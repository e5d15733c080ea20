"""Where the pool's processes run. There is one place so far: this machine."""

from __future__ import annotations

import sys
from typing import Protocol

import msgspec

from codex_pool.supervisor.process import Child


class Launcher(Protocol):
    """Starts a module of the pool as a process."""

    def launch(self, module: str, arguments: msgspec.Struct, *, inherit: tuple[int, ...] = ()) -> Child:
        """`python -m module` with these start arguments. `inherit` are descriptors that it is to hold too."""


class LocalLauncher:
    """Spawns (never forks) on this machine, with the interpreter that runs the supervisor."""

    def launch(self, module: str, arguments: msgspec.Struct, *, inherit: tuple[int, ...] = ()) -> Child:
        return Child([sys.executable, "-m", module], arguments, inherit)
