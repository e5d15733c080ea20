"""The I/O threads of a child process: they read its stdout and stderr, write its stdin, and see its end.

`write` and `stop` take no lock and wait for nothing; `on_end` is called on an I/O thread, and has the process ended.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import threading
from collections import deque

from . import child_process, reads
from .wakeup import WakePipe

READ_BYTES = 512 * 1024
QUIET_S = 1.0


class PollPump:
    """One thread over stdin, stdout, stderr and a wake-up pipe (POSIX).

    A child of the app-server may hold its stdout open after its death, so that is looked for too, when all is quiet.
    """

    def __init__(self, process, on_stdout, on_stderr, on_end, stop_process):  # type: ignore[no-untyped-def]
        self._process = process
        self._on_stdout, self._on_stderr, self._on_end = on_stdout, on_stderr, on_end
        self._outgoing: deque[bytes | memoryview] = deque()
        self._stopping = False
        self._wake: WakePipe | None = WakePipe()
        os.set_blocking(process.stdin.fileno(), False)
        child_process.widen(process.stdout.fileno(), READ_BYTES)
        self._thread = threading.Thread(target=self._run, name="codex-app-server-io", daemon=True)

    def start(self) -> None:
        """Raises RuntimeError when no thread can be started."""
        self._thread.start()

    @property
    def thread_ids(self) -> tuple[int | None, ...]:
        return (self._thread.ident,)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors besides those of the process."""
        wake = self._wake
        return wake.descriptors if wake is not None else ()

    def write(self, data: bytes) -> None:
        self._outgoing.append(data)
        self._look()

    def stop(self) -> None:
        self._stopping = True
        self._look()

    def close(self) -> None:
        """Drop the wake-up pipe: nothing is written any more. Called by the thread at its end."""
        self._wake = None

    def _look(self) -> None:
        wake = self._wake
        if wake is not None:
            wake.wake()

    def _clear(self) -> None:
        if self._wake is not None:
            self._wake.clear()

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._pump()
        except BaseException as error:
            failure = error
        self._on_end(failure)

    def drain_stderr(self) -> None:
        """The last words of a process that has just died are still in the pipe."""
        with contextlib.suppress(OSError, ValueError):
            os.set_blocking(self._process.stderr.fileno(), False)
            while chunk := os.read(self._process.stderr.fileno(), reads.LITTLE_BYTES):
                self._on_stderr(chunk)

    def _pump(self) -> None:
        stdin, stdout, stderr = (
            pipe.fileno() for pipe in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        # No variable has the pipe: the traceback of an error would hold it open.
        (wake, _) = self.descriptors
        size = reads.LITTLE_BYTES
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            writing = False
            while True:
                ready = [key.fd for key, _ in selector.select(QUIET_S)]
                if not ready and self._process.poll() is not None:
                    return
                if wake in ready:
                    self._clear()
                if self._stopping:
                    return
                if stderr in ready:
                    chunk = os.read(stderr, reads.LITTLE_BYTES)
                    if chunk:
                        self._on_stderr(chunk)
                    else:
                        selector.unregister(stderr)
                if stdout in ready:
                    chunk = os.read(stdout, size)
                    if not chunk:
                        return
                    size = reads.next_bytes(len(chunk), READ_BYTES)
                    self._on_stdout(chunk)
                pending = self._flush(stdin)
                if pending != writing:
                    writing = pending
                    if pending:
                        selector.register(stdin, selectors.EVENT_WRITE)
                    else:
                        selector.unregister(stdin)

    def _flush(self, stdin: int) -> bool:
        """Write what fits; return True if something is left. A closed pipe is reported by the end of stdout."""
        while self._outgoing:
            data = self._outgoing.popleft()
            try:
                written = os.write(stdin, data)
            except BlockingIOError:
                written = 0
            except OSError:
                self._outgoing.clear()
                return False
            if written < len(data):
                self._outgoing.appendleft(memoryview(data)[written:])
                return True
        return False


class ThreadPump:
    """The same with a thread per pipe, for platforms whose pipes cannot be polled (Windows).

    Nothing wakes a read or a write, so another thread waits to end the process when the client closes.
    """

    descriptors: tuple[int, ...] = ()

    def __init__(self, process, on_stdout, on_stderr, on_end, stop_process):  # type: ignore[no-untyped-def]
        self._process = process
        self._on_stdout, self._on_stderr, self._on_end = on_stdout, on_stderr, on_end
        self._stop_process = stop_process
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stopping = False
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()
        targets = {"stderr": self._read_stderr, "stdin": self._write, "end": self._end, "io": self._read}
        self._stderr, self._writer, self._ender, self._reader = (
            threading.Thread(target=target, name=f"codex-app-server-{name}", daemon=True)
            for name, target in targets.items()
        )

    def start(self) -> None:
        """Raises RuntimeError when no thread can be started."""
        # The reader of stdout last: it may see the end at once, and then needs the others.
        for thread in (self._stderr, self._writer, self._ender, self._reader):
            thread.start()

    @property
    def thread_ids(self) -> tuple[int | None, ...]:
        return self._stderr.ident, self._writer.ident, self._ender.ident, self._reader.ident

    def write(self, data: bytes) -> None:
        self._outgoing.put(data)

    def stop(self) -> None:
        self._stopping = True
        self._stops.put(None)

    def close(self) -> None:
        """Note that the process has ended: a thread that waits for work is to end too."""
        self._outgoing.put(None)
        self._stops.put(None)

    def drain_stderr(self) -> None:
        self._stderr.join(QUIET_S)

    def _read(self) -> None:
        failure: BaseException | None = None
        size = reads.LITTLE_BYTES
        try:
            while chunk := os.read(self._process.stdout.fileno(), size):
                size = reads.next_bytes(len(chunk), READ_BYTES)
                self._on_stdout(chunk)
        except BaseException as error:
            failure = error
        self._on_end(failure)

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._process.stderr.fileno(), reads.LITTLE_BYTES):
                self._on_stderr(chunk)

    def _write(self) -> None:
        while (line := self._outgoing.get()) is not None:
            data = memoryview(line)
            # A closed pipe is left to stdout's end to report.
            with contextlib.suppress(OSError, ValueError):
                while data:
                    data = data[os.write(self._process.stdin.fileno(), data) :]

    def _end(self) -> None:
        self._stops.get()
        if not self._stopping:
            return
        self._stop_process()
        # Bounded: a child of the app-server that outlived it may hold the pipes open.
        if self._reader.ident is not None:
            self._reader.join(child_process.EXIT_AFTER_KILL_S)
        self._outgoing.put(None)
        self._on_end(None)
