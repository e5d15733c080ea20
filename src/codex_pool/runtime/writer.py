"""A writer for a descriptor that may block or fail: lines wait for a thread that alone writes, up to a bound.

A terminal that was stopped or closed, a pipe without a reader, a full disk or a file server that is away hold up that
thread and nothing else. The descriptor's flags are left alone: others may share its open file description. The thread
is a daemon thread, which the end of the process does not wait for.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import select
import stat
import threading
from collections.abc import Callable

from .line_queue import LineQueue

DEFAULT_MODE = 0o666
# How often the number of lost lines is tried to be written while no line comes, before which it would be.
RETRY_S = 5.0
# How long the end of a process waits for lines, as long as none is written meanwhile.
EXIT_S = 0.5


class Writer:
    """Writes lines to `fd`. Methods may be called from any thread, from signal handlers and from finalisers.

    `mode`: of a file that is made; where it is not the default, a file that is there gets it too. `make_room` is called
    on the writer's thread with the descriptor of the file and the bytes to come; it may move the file away.
    `path`: the file that is written to. When it was removed or replaced it is opened again, under the number `fd`; with
    `fd` None it is opened at the first line. `on_loss` is called, on the writer's thread or that of a caller, with the
    first line that is lost for each reason: the error, or None when there is no reader.
    """

    def __init__(
        self,
        fd: int | None,
        max_bytes: int,
        marker: Callable[[int], bytes] | None = None,
        *,
        path: str | None = None,
        mode: int = DEFAULT_MODE,
        make_room: Callable[[int, int], None] | None = None,
        on_loss: Callable[[OSError | None], None] | None = None,
    ) -> None:
        self._fd = fd
        self._owns_fd = fd is None
        self._path = path
        self._mode, self._make_room = mode, make_room
        self._on_loss = on_loss
        self._queue = LineQueue(max_bytes, marker)
        # Reentrant, and held for a moment only: a finaliser may log while this thread holds it.
        self._lock = threading.RLock()
        # One entry for each line, and locks to be released once all before them is written. Its `put` is reentrant.
        self._news: queue.SimpleQueue[threading.Lock | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = self._closing = False
        self._steps = 0
        self._stuck_at = -1
        self._reasons: set[int | None] = set()
        atexit.register(self.settle, EXIT_S)

    @property
    def lost(self) -> int:
        """Count the lines that were lost so far."""
        return self._queue.lost

    def write(self, line: bytes) -> None:
        """Queue a line; it is lost if too much waits already. Neither blocks nor raises."""
        with self._lock:
            accepted = self._queue.add(line)
        if not accepted:
            self._note_loss(None)
            return
        self._news.put(None)
        if self._thread is None and not self._starting:
            self._start()

    def settle(self, limit_s: float) -> bool:
        """Wait until all is written that was given to `write`, at most `limit_s` from the last success; return True if
        it is, or has failed. Where nothing was written since a wait that was in vain, this one is over at once."""
        if self._thread is None or self._thread is threading.current_thread():
            return self._thread is not None or not self._queue.waiting_bytes
        while True:
            steps = self._steps
            if steps == self._stuck_at:
                return False
            done = threading.Lock()
            done.acquire()
            self._news.put(done)
            if done.acquire(timeout=limit_s):
                return True
            if self._steps == steps:
                self._stuck_at = steps
                return False

    def close(self) -> None:
        """Wait as at the end of the process, and end the thread unless it is held up. The descriptor is closed then, if
        the writer has opened it itself."""
        atexit.unregister(self.settle)
        if not self.settle(EXIT_S):
            # It may still be written to.
            return
        self._closing = True
        self._news.put(None)
        if self._thread is not None:
            self._thread.join()
        if self._owns_fd and self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _start(self) -> None:
        self._starting = True
        try:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            thread.start()
            self._thread = thread
        except (RuntimeError, MemoryError):
            # No thread can be had now: with the next line.
            pass
        finally:
            self._starting = False

    # The thread.

    def _run(self) -> None:
        while True:
            done = None
            with contextlib.suppress(queue.Empty):
                done = self._news.get(timeout=RETRY_S if self._queue.has_unsaid else None)
            # Without memory the line waits for the next one.
            with contextlib.suppress(MemoryError):
                self._drain()
            if done is not None:
                done.release()
            elif self._closing:
                return

    def _drain(self) -> None:
        while True:
            with self._lock:
                head = self._queue.head()
            if not head:
                return
            try:
                count = self._write(head)
            except OSError as error:
                with self._lock:
                    self._queue.failed()
                    goes_on = self._queue.waiting_bytes > 0
                self._note_loss(error)
                self._steps += 1
                if not goes_on:
                    return
                continue
            with self._lock:
                self._queue.wrote(count)
            self._steps += 1

    def _write(self, data: bytes) -> int:
        if self._path is not None:
            self._follow(self._path)
            if self._make_room is not None and self._fd is not None:
                self._make_room(self._fd, len(data))
                self._follow(self._path)
        assert self._fd is not None
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:
                # Another program has made it non-blocking.
                poller = select.poll()
                poller.register(self._fd, select.POLLOUT)
                poller.poll()

    def _follow(self, path: str) -> None:
        """Open the path again if it is not the file that is written to. Raises OSError."""
        if self._fd is not None:
            try:
                if os.path.samestat(os.stat(path), os.fstat(self._fd)):
                    return
            except FileNotFoundError:
                pass
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, self._mode)
        if self._mode != DEFAULT_MODE and stat.S_ISREG(os.fstat(opened).st_mode):
            with contextlib.suppress(OSError):
                os.fchmod(opened, self._mode)
        if self._fd is None:
            self._fd = opened
            return
        try:
            os.dup2(opened, self._fd, inheritable=os.get_inheritable(self._fd))
        finally:
            os.close(opened)

    def _note_loss(self, error: OSError | None) -> None:
        reason = None if error is None else error.errno
        if self._on_loss is not None and reason not in self._reasons:
            self._reasons.add(reason)
            self._on_loss(error)
