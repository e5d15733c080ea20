"""LiveTranscripts: events of attempts that run, written to the run directory while somebody looks at them.

An attempt's events are stored when it ends. A viewer asks for those so far with a request to the run
(`manage.control`), and again before FOLLOW_S have passed; a file in `layout.LIVE` has them then, redacted as all else.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from codex_app_server._runtime.files import write_atomic

from ..store import EventLog, layout

# So long after a request the events are written, each EVERY_S.
FOLLOW_S = 15.0
EVERY_S = 1.0
# Of each, all events so far are written each time.
MAX_FOLLOWED = 8


class LiveTranscripts:
    """Writes the events so far of the attempts that are followed. `clock` counts seconds."""

    def __init__(self, run: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = run / layout.LIVE
        self._clock = clock
        self._running: dict[int, tuple[int, EventLog]] = {}
        self._until: dict[int, float] = {}
        self._written_at = 0.0
        self._sizes: dict[int, int] = {}

    @contextlib.contextmanager
    def attempt(self, n: int, attempt: int, events: EventLog) -> Iterator[None]:
        """Make the events of an attempt at sample `n` known for as long as it runs."""
        self._running[n] = attempt, events
        try:
            yield
        finally:
            del self._running[n]

    def follow(self, n: int) -> None:
        """Write the events of what runs of sample `n`, for FOLLOW_S seconds from now on."""
        if n in self._until or len(self._until) < MAX_FOLLOWED:
            self._until[n] = self._clock() + FOLLOW_S

    def refresh(self) -> None:
        """Write what has come, at most each EVERY_S. Raises OSError."""
        now = self._clock()
        if not self._until or now - self._written_at < EVERY_S:
            return
        self._written_at = now
        for n, until in list(self._until.items()):
            if now >= until:
                del self._until[n]
                self._sizes.pop(n, None)
            elif n in self._running:
                self._write(n, *self._running[n])

    def _write(self, n: int, attempt: int, events: EventLog) -> None:
        member = events.snapshot()
        if member is not None and self._sizes.get(n) != len(member):
            self._directory.mkdir(exist_ok=True)
            write_atomic(path_of(self._directory, n, attempt), member)
            self._sizes[n] = len(member)

    def clear(self) -> None:
        """Remove the files: of what has ended, all is stored."""
        shutil.rmtree(self._directory, ignore_errors=True)


def path_of(directory: Path, n: int, attempt: int) -> Path:
    """Return the file with the events so far of an attempt at sample `n`."""
    return directory / f"{n}-{attempt}.gz"
