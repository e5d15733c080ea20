"""ProcessCounts: the last count of the processes below this worker, and of the threads that came after it. Pure."""

from __future__ import annotations

import msgspec

from ..protocol import wire
from .census import Census, ProcessSnapshot
from .threads import Threads


class ProcessCounts:
    """See the module's docstring. `enabled`: the loop takes snapshots of the processes below this worker."""

    def __init__(self, census: Census, threads: Threads, *, enabled: bool) -> None:
        self._census = census
        self._threads = threads
        # The last count, None where there is none; how many threads had been loaded when it was taken.
        self._tree = wire.ProcessTree() if enabled else None
        self._loads = 0

    @property
    def thread_counts(self) -> tuple[int, int]:
        """Numbers of threads that the app-server was made to load, and that it has loaded, for a process snapshot."""
        return self._threads.loads, len(self._threads)

    @property
    def memory_bytes(self) -> int:
        """Memory of this worker and all below it, without tool commands of turns that run; 0 where not known."""
        return self._tree.memory_bytes if self._tree is not None else 0

    @property
    def is_empty(self) -> bool:
        """Return True if nothing but the app-server is known to run below this worker."""
        tree = self._tree
        return tree is not None and not (tree.servers or tree.left or tree.commands)

    @property
    def tree(self) -> wire.ProcessTree | None:
        """The last count, with the threads that came after it; None where processes are not counted."""
        if self._tree is None:
            return None
        return msgspec.structs.replace(self._tree, fresh=self._fresh(self._loads))

    def take(self, snapshot: ProcessSnapshot, *, begun: int, oldest: int, now: float) -> wire.ProcessTree | None:
        """Count a snapshot, as `Census.take` does; None if it tells nothing."""
        tree = self._census.take(snapshot, begun=begun, oldest=oldest, now=now)
        if tree is not None:
            # The broker adds the threads that are reported to it after this.
            self._loads = snapshot.loads
            tree = self._tree = msgspec.structs.replace(tree, fresh=self._fresh(snapshot.loads))
        return tree

    def _fresh(self, loads: int) -> int:
        """Count the threads that are loaded now and came after the first `loads`."""
        return min(self._threads.loads - loads, len(self._threads))
