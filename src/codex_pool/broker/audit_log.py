"""AuditLog: JSON lines for decisions, in a file of this user's, by a writer that neither blocks nor raises.

A line that cannot be written - the disk is full, a pipe has no reader - is lost and counted; where lines are missing
the next one says how many: {"event": "lost", "lines": 3}.
"""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import msgspec

from ..runtime.rotation import Rotation
from ..runtime.writer import Writer

# What waits to be written; beyond it lines are lost.
MAX_WAITING_BYTES = 4 * 1024 * 1024
MODE = 0o600


class AuditLog:
    """See the module's docstring. `max_bytes` and `files`: as of Rotation."""

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self.path = path
        rotation = Rotation(path, max_bytes, files)
        self._writer = Writer(None, MAX_WAITING_BYTES, _marker, path=path, mode=MODE, make_room=rotation.make_room)

    @property
    def lost(self) -> int:
        """Count the lines that were lost so far."""
        return self._writer.lost

    def write(self, record: dict[str, Any]) -> None:
        """Write a record, with the time. Neither blocks nor raises."""
        self._writer.write(_line(record))

    def close(self) -> None:
        """Wait for what is to be written, for a moment."""
        self._writer.close()


def _line(record: dict[str, Any]) -> bytes:
    at = dt.datetime.fromtimestamp(time.time(), dt.timezone.utc)
    stamp = at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
    return msgspec.json.encode({"time": stamp, **record}) + b"\n"


def _marker(lines: int) -> bytes:
    return _line({"event": "lost", "lines": lines})
