"""Launchers: they start the pool's processes, so far on this machine only."""

from __future__ import annotations

from typing import Protocol

import msgspec

from ..runtime import startup
from .child_process import Child


class Launcher(Protocol):
    """Starts a module of the pool as a process."""

    def launch(self, module: str, arguments: msgspec.Struct, *, inherit: tuple[int, ...] = ()) -> Child:
        """Run the module with these start arguments. `inherit` are descriptors that it is to hold too.

        Raises StartError.
        """


class LocalLauncher:
    """Spawns (never forks) on this machine, with the interpreter that runs the supervisor.

    `log_file`: the file that this process's stderr is, if it is one that processes open again when it is replaced.
    """

    def __init__(self, log_file: str | None = None) -> None:
        self._arguments = () if log_file is None else (log_file,)

    def launch(self, module: str, arguments: msgspec.Struct, *, inherit: tuple[int, ...] = ()) -> Child:
        return Child(startup.python(module, *self._arguments), arguments, inherit)
