"""Where the pool's processes run. There is one place so far: this machine."""

from __future__ import annotations

from typing import Protocol

import msgspec

from codex_pool import start
from codex_pool.supervisor.process import Child


class Launcher(Protocol):
    """Starts a module of the pool as a process."""

    def launch(self, module: str, arguments: msgspec.Struct, *, inherit: tuple[int, ...] = ()) -> Child:
        """Run the module with these start arguments. `inherit` are descriptors that it is to hold too.

        Raises StartError.
        """


class LocalLauncher:
    """Spawns (never forks) on this machine, with the interpreter that runs the supervisor."""

    def launch(self, module: str, arguments: msgspec.Struct, *, inherit: tuple[int, ...] = ()) -> Child:
        return Child(start.python(module), arguments, inherit)
