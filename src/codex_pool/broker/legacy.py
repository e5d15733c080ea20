"""What a broker leaves to the one after it, in a file beside its socket: the threads that no worker holds.

Everything else the workers and the clients tell the next broker. It is read only by a broker of the same supervisor;
that it is there at all says that there was one before.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from codex_pool import endpoints, processes
from codex_pool.wire import ThreadRecord


class _Content(msgspec.Struct, array_like=True):
    supervisor: list[int]
    records: list[ThreadRecord]


class Legacy:
    """See the module's docstring. `endpoint` is that of the clients."""

    def __init__(self, endpoint: str) -> None:
        self._path = Path(f"{endpoints.ipc_path(endpoint)}.threads")
        self._supervisor = list(processes.identify(os.getppid()) or (os.getppid(), 0))

    def read(self) -> list[ThreadRecord] | None:
        """The threads that the broker before this one knew to be with no worker; None if there was none."""
        try:
            content = msgspec.msgpack.decode(self._path.read_bytes(), type=_Content)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return content.records if content.supervisor == self._supervisor else None

    def write(self, records: list[ThreadRecord]) -> None:
        """At once or not at all. What it is for is the death of a process, so it need not be on the disk."""
        partial = self._path.with_name(self._path.name + ".new")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.msgpack.encode(_Content(self._supervisor, records)))
        os.replace(partial, self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
