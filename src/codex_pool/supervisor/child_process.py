"""The supervisor's relatives: a child - a Python process of the pool, its death pipe, its reports - and the parent."""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

import msgspec

from codex_app_server._protocol.framing import LineSplitter, LongLine
from codex_app_server._runtime import child_process
from codex_app_server._runtime.start_failures import start_error

from ..runtime import startup
from .handover import KeptChild, bytes_of, text_of


class Child:
    """A process that got its start arguments as one JSON line on stdin, which stays open as its death pipe.

    It reports JSON lines on stdout; the end of stdout is its sentinel: it comes within milliseconds of its death,
    however it died. Raises StartError.
    """

    def __init__(self, argv: Sequence[str], arguments: msgspec.Struct, inherit: tuple[int, ...] = ()) -> None:
        try:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=inherit)
        except OSError as error:
            raise start_error(error, argv, os.environ) from error
        assert process.stdin is not None and process.stdout is not None
        self._begin(process, process.stdin, process.stdout)
        self._unsent += startup.encode_arguments(arguments)
        self.flush()

    @classmethod
    def taken_over(cls, kept: KeptChild) -> Child:
        """A child of this process from before it became another program (see `handover`)."""
        child = cls.__new__(cls)
        child._begin(TakenOverProcess(kept.pid), os.fdopen(kept.stdin, "wb", 0), os.fdopen(kept.stdout, "rb", 0))
        child.is_taken_over = True
        child.last_report, child.lost_lines = kept.last_report, kept.lost_lines
        child._unsent += bytes_of(kept.unsent)
        child._lines.feed(bytes_of(kept.held))
        return child

    def _begin(self, process: subprocess.Popen[bytes] | TakenOverProcess, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._process = process
        self._stdin, self._stdout = stdin, stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._lines = LineSplitter()
        self.pid = self._process.pid
        self.is_taken_over = False
        self.last_report: dict[str, Any] = {}
        self.lost_lines = 0
        """Number of lines of its log that were lost, by its last report."""
        self._unsent = bytearray()
        # A child that is stopped reads nothing, and must not stop its parent.
        os.set_blocking(self._stdin.fileno(), False)
        # The selector that waits until more can be written.
        self._writes_in: selectors.BaseSelector | None = None

    def kept(self) -> KeptChild:
        """Return the state that the next supervisor needs to go on with this child."""
        return KeptChild(
            pid=self.pid,
            stdin=self._stdin.fileno(),
            stdout=self._stdout.fileno(),
            unsent=text_of(self._unsent),
            held=text_of(self._lines.rest()),
            last_report=self.last_report,
            lost_lines=self.lost_lines,
        )

    def fileno(self) -> int:
        return self._stdout.fileno()

    def watch(self, selector: selectors.BaseSelector, on_reports: Callable[[], None]) -> None:
        """Have `on_reports` called when it has reported, or ended; what it has not read yet is written as it reads."""
        selector.register(self, selectors.EVENT_READ, on_reports)
        if self._unsent:
            selector.register(self._stdin, selectors.EVENT_WRITE, self._write)
            self._writes_in = selector

    def unwatch(self, selector: selectors.BaseSelector) -> None:
        """End `watch`."""
        selector.unregister(self)
        self._end_writing()

    def _write(self) -> None:
        if self.flush():
            self._end_writing()

    def _end_writing(self) -> None:
        if self._writes_in is not None:
            self._writes_in.unregister(self._stdin)
            self._writes_in = None

    def send(self, record: dict[str, Any]) -> None:
        """Write one JSON line to its stdin, now or when it reads again; nothing to a dead child."""
        self._unsent += msgspec.json.encode(record) + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Write what waits for the child; whether nothing does any more."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self._stdin.fileno(), self._unsent)]
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            self._unsent.clear()
        return True

    def reports(self) -> tuple[list[dict[str, Any]], bool]:
        """Return its reports since the last call, and whether these were the last: it is dead."""
        records: list[dict[str, Any]] = []
        while True:
            try:
                chunk = os.read(self._stdout.fileno(), 65536)
            except BlockingIOError:
                return records, False
            for line in self._lines.feed(chunk):
                if isinstance(line, LongLine):
                    continue
                with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
                    record = msgspec.json.decode(line, type=dict[str, Any])
                    self.last_report = record
                    self.lost_lines = record.get("lost_lines", self.lost_lines)
                    records.append(record)
            if not chunk:
                return records, True

    def close_stdin(self) -> None:
        """Ask it to end."""
        self._end_writing()
        with contextlib.suppress(OSError):
            self._stdin.close()

    def kill(self) -> None:
        """SIGKILL: works on a stopped process too."""
        self._process.kill()

    def reap(self, timeout_s: float) -> str | None:
        """Wait for its end and close its pipes; how it ended, or None if it has not."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self.close_stdin()
        self._stdout.close()
        return child_process.describe_exit(code)


class TakenOverProcess:
    """A child of this process, by its pid: what Popen is for one that this program has started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code, as of Popen. Raises TimeoutExpired."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # It was reaped as one that nobody knew.
                self._code = 0
                break
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            else:
                time.sleep(0.01)
        return self._code

    def kill(self) -> None:
        """SIGKILL, unless it was reaped."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Reports:
    """JSON lines for the parent, on stdout. It may be stopped, and must not stop the pool: of the states of the slots
    only the last ones wait for it."""

    def __init__(self) -> None:
        os.set_blocking(1, False)
        self._unsent = bytearray()
        self._waiting: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Report, now or once the parent reads again."""
        self._waiting = [other for other in self._waiting if other["event"] != record["event"]]
        self._waiting.append(record)
        self.flush()

    def flush(self) -> None:
        """Write what can be written."""
        with contextlib.suppress(BlockingIOError):
            try:
                while self._unsent or self._waiting:
                    if not self._unsent:
                        self._unsent += startup.encode_arguments(self._waiting.pop(0))
                    del self._unsent[: os.write(1, self._unsent)]
            except BrokenPipeError:
                self._unsent.clear()
                self._waiting.clear()

    def kept(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the part that is not written yet: bytes of a line, and further reports."""
        return text_of(self._unsent), self._waiting

    def restore(self, unsent: str, waiting: list[dict[str, Any]]) -> None:
        """Go on with what `kept` has returned."""
        self._unsent += bytes_of(unsent)
        self._waiting += waiting
        self.flush()

    def last(self, record: dict[str, Any]) -> None:
        """Report, and wait until it is written: there is nothing else left to do."""
        os.set_blocking(1, True)
        self.add(record)
