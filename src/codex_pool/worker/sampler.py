"""Looks at the processes below a worker, on a thread of its own: the kernel may take its time to count memory."""

from __future__ import annotations

import os
import threading
import time

from ..runtime import processes
from ..runtime.processes import Memory, ProcessId
from .census import ProcessSnapshot

# Reading PSS takes about 1 ms for an app-server and 0.1 ms for a small server; a look without it 1 ms for all.
MEMORY_EVERY_S = 2.0
# At most this share of a core goes into memory, however large the tree.
MEMORY_SHARE = 0.02
LOOK_AT_MOST_EVERY_S = 0.5
# While the worker rests.
REST_EVERY_S = 20.0
# After threads were loaded it looks every so often, until their processes have settled.
BUSY_S, BUSY_EVERY_S = 3.0, 0.75


class Sampler:
    """Looks every MEMORY_EVERY_S, soon after `ask`, and often for BUSY_S after that; while the worker rests, rarely.

    Readable (`fileno`) when there is a look to take.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._counts = 0, 0
        self._look: ProcessSnapshot | None = None
        self._memory: dict[ProcessId, Memory] = {}
        self._memory_due = 0.0
        self._asked, self._closing = threading.Event(), threading.Event()
        self._readable, self._writable = os.pipe()
        for fd in (self._readable, self._writable):
            os.set_blocking(fd, False)
        self._rests = False
        self._thread = threading.Thread(target=self._run, name="tree", daemon=True)

    def start(self) -> None:
        """Begin. Raises RuntimeError if the system gives no thread."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def fileno(self) -> int:
        return self._readable

    def snapshot_now(self, loads: int, threads: int) -> ProcessSnapshot:
        """ProcessSnapshot on the caller's thread, without memory: before `start`, and where there is no thread."""
        return ProcessSnapshot(processes.tree(self._root), {}, loads, threads)

    def ask(self, loads: int, threads: int) -> None:
        """Ask for a look soon; it will bear these counts."""
        self._counts = loads, threads
        self._asked.set()

    def rest(self, rests: bool) -> None:
        """Look every REST_EVERY_S only, because nothing happens below the worker; with False go on as before."""
        if self._rests and not rests:
            self._asked.set()
        self._rests = rests

    def take(self) -> ProcessSnapshot | None:
        """The last look that has not been taken."""
        try:
            os.read(self._readable, 4096)
        except BlockingIOError:
            return None
        look, self._look = self._look, None
        return look

    def close(self) -> None:
        """End the thread, unless the kernel holds it up."""
        self._closing.set()
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        if not self._thread.is_alive():
            os.close(self._readable)
            os.close(self._writable)

    def _run(self) -> None:
        busy_until = 0.0
        while not self._closing.is_set():
            if self._asked.is_set():
                busy_until = time.monotonic() + BUSY_S
            self._asked.clear()
            loads, threads = self._counts
            try:
                found = processes.tree(self._root)
                began = time.monotonic()
                if began >= self._memory_due:
                    self._memory = self._sizes([processes.identify(self._root), *(each.id for each in found)])
                    took_s = time.monotonic() - began
                    self._memory_due = began + max(MEMORY_EVERY_S, took_s / MEMORY_SHARE)
                self._look = ProcessSnapshot(found, self._memory, loads, threads)
                os.write(self._writable, b"l")
            except OSError:
                # No descriptor is free, or the pipe is full of looks that were not taken: there is a next time.
                pass
            self._closing.wait(LOOK_AT_MOST_EVERY_S)
            is_busy = time.monotonic() < busy_until
            every_s = BUSY_EVERY_S if is_busy else REST_EVERY_S if self._rests else MEMORY_EVERY_S
            self._asked.wait(every_s - LOOK_AT_MOST_EVERY_S)

    def _sizes(self, found: list[ProcessId | None]) -> dict[ProcessId, Memory]:
        sizes = {process: processes.memory(process) for process in found if process is not None}
        return {process: memory for process, memory in sizes.items() if memory is not None}
