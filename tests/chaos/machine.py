"""Faults of the machine around a daemon, in each of its phases: its terminal, its log, its disk, its clock, its codex.

    starting   an app-server waits at a gate, then the fault, then the gate is opened
    idle       both workers have had a turn
    mid-turn   a turn of the caller runs on one of them, and waits at the gate before its end
    draining   the same with the worker of that turn being recycled

After each fault something is written to the log, the gate is opened, and then: the turn ends as it would have, the
caller has another one on the same thread, a client that comes later is served, `pool/status` answers, no process of
the pool has been replaced but for the reason that the cell gives, and SIGTERM ends the daemon with nothing left.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from codex_app_server import AppServerError, Codex, Thread
from codex_app_server.testing import null_app_server
from codex_pool import connect
from codex_pool.runtime import processes

from .driver import INJECT, LIMIT_S, RECYCLE_TURNS, draining, rows, seen, status, wait_until

PHASES = ("starting", "idle", "mid-turn", "draining")
TMPFS_BYTES = 512 * 1024
PIPE_BYTES = 4096
STOP_LIMIT_S = 20.0
NOTICED_S = 15.0
DAY_S = 86_400
JUNK_MESSAGES = 150


@dataclass(frozen=True)
class Expected:
    """Effects that are seen of a fault beside those that all faults have in common."""

    # Words of the daemon's log, where it can be read.
    log: str | None = None
    # Words of `pool/status`, as JSON text.
    status: str | None = None
    # What is made again: a name below the runtime directory, "" for the directory itself.
    made_again: str | None = None
    # The broker may be another one.
    new_broker: bool = False
    # In the phase starting: the daemon ends with this on its stderr.
    no_start: str | None = None


FAULTS: dict[str, Expected] = {
    "terminal closed": Expected(),
    "log pipe blocked": Expected(),
    "log disk full": Expected(),
    "runtime disk full": Expected(),
    "runtime directory removed": Expected(made_again="", new_broker=True),
    "socket removed": Expected(made_again="p.sock", new_broker=True),
    "lock removed": Expected(made_again="p.lock"),
    "clock +2 days": Expected(),
    "clock -1 hour": Expected(),
    "successor that cannot start": Expected(no_start="cannot start|giving up|could not|died"),
}
CELLS = [*itertools.product(FAULTS, PHASES)]


@dataclass
class Daemon:
    """`codex-pool serve` on null app-servers, and what can be done to the machine around it."""

    root: Path
    fault: str
    phase: str
    report: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runtime, self.gate, self.starts = self.root / "run", self.root / "gate", self.root / "starts"
        self.chaos, self.log, self.work = self.root / "chaos", self.root / "log", self.root / "work"
        for path in (self.chaos, self.work, self.root / "home", self.runtime):
            path.mkdir(mode=0o700)
        self.starts.touch()
        self.endpoint = f"ipc://{self.runtime}/p.sock"
        self.codex = self.root / "codex"
        self._null = self.root / "null"
        self._null.write_text(f"#!/bin/sh\nexec {self._command()}\n")
        self._null.chmod(0o700)
        self.codex.symlink_to(self._null)
        self.executor = ThreadPoolExecutor(4)
        self._open: list[int] = []

    def _command(self) -> str:
        scenario: dict[str, Any] = {"hold": str(self.gate), "when": "wait", "generations": str(self.starts)}
        if self.phase == "starting":
            scenario["scenarios"] = [{"start": [{"wait": str(self.gate)}]}, {"start": [{"wait": str(self.gate)}]}]
        override = null_app_server(**scenario).launch_args_override
        assert override is not None
        return " ".join(f"'{each}'" for each in override)

    # The process.

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """The daemon from its start to its end, which leaves nothing."""
        with self._small_disk():
            stderr = self._stderr()
            command = [sys.executable, "-m", "codex_pool_cli", "serve", "--endpoint", self.endpoint, "--workers", "2"]
            # What does not answer reports no turns either.
            command += ["--drain-timeout", "5"]
            command += ["--codex-bin", str(self.codex)]
            if self.phase == "draining" or self.fault == "successor that cannot start":
                command += ["--recycle-turns", str(RECYCLE_TURNS)]
            environ = {
                **os.environ,
                "PYTHONPATH": str(INJECT),
                "CHAOS_DIRECTORY": str(self.chaos),
                "CODEX_HOME": str(self.root / "home"),
                "XDG_RUNTIME_DIR": str(self.runtime),
            }
            daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environ,
                start_new_session=True,
                cwd=self.work,
            )
            os.close(stderr)
            below: list[processes.ProcessId] = []
            try:
                yield daemon
                below = processes.descendants(daemon.pid)
                if daemon.poll() is None:
                    daemon.send_signal(signal.SIGTERM)
                    daemon.wait(STOP_LIMIT_S)
            finally:
                self.gate.touch()
                if daemon.poll() is None:
                    daemon.kill()
                    daemon.wait()
                self.executor.shutdown(wait=True)
                for descriptor in self._open:
                    os.close(descriptor)
            wait_until(lambda: not any(processes.identify(each.pid) == each for each in below), "nothing is left", 10)

    def _stderr(self) -> int:
        match self.fault:
            case "terminal closed":
                master, terminal = pty.openpty()
                self._open.append(master)
                return terminal
            case "log pipe blocked":
                reading, writing = os.pipe()
                self._open.append(reading)
                return writing
            case "log disk full":
                return os.open("/dev/full", os.O_WRONLY)
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @contextlib.contextmanager
    def _small_disk(self) -> Iterator[None]:
        if self.fault != "runtime disk full":
            yield
            return
        mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES},mode=700", "tmpfs", str(self.runtime)]
        subprocess.run(mount, check=True, capture_output=True, timeout=10)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(self.runtime)], check=True, capture_output=True, timeout=10)

    # The fault.

    def inject(self, daemon: subprocess.Popen[bytes]) -> None:
        """Do it; on return it is done."""
        match self.fault:
            case "terminal closed" | "log pipe blocked" | "log disk full":
                if self.fault == "terminal closed":
                    os.close(self._open.pop())
            case "runtime disk full":
                self._fill()
            case "runtime directory removed":
                shutil.rmtree(self.runtime)
            case "socket removed":
                (self.runtime / "p.sock").unlink(missing_ok=True)
            case "lock removed":
                (self.runtime / "p.lock").unlink()
            case "clock +2 days":
                self._step_clocks(daemon.pid, 2 * DAY_S)
            case "clock -1 hour":
                self._step_clocks(daemon.pid, -3600)
            case "successor that cannot start":
                self.codex.unlink()
                self.codex.symlink_to("/bin/false")
            case _:
                raise AssertionError(self.fault)

    def _fill(self) -> None:
        for size in (4096, 1):
            with contextlib.suppress(OSError), (self.runtime / f"fill-{size}").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * size)

    def _step_clocks(self, pid: int, seconds: int) -> None:
        for process in [pid, *(each.pid for each in processes.descendants(pid))]:
            fifo, done = self.chaos / f"{process}.fifo", self.chaos / f"{process}.stepped"
            if not fifo.exists():
                continue  # An app-server.
            with fifo.open("w") as steps:
                steps.write(json.dumps(["clock", seconds]) + "\n" + json.dumps(["touch", str(done)]) + "\n")
            wait_until(done.exists, "the clock is stepped")

    def speak(self) -> None:
        """Have the broker write to its log: messages that are none."""
        context: zmq.Context[Any] = zmq.Context()
        with context, context.socket(zmq.DEALER) as stranger:
            stranger.setsockopt(zmq.LINGER, 1000)
            stranger.connect(self.endpoint)
            for _ in range(JUNK_MESSAGES):
                stranger.send(b"\xff" * 64)

    def supervisor(self, daemon: subprocess.Popen[bytes]) -> int:
        def find() -> int | None:
            for process in processes.descendants(daemon.pid):
                with contextlib.suppress(OSError):
                    if b"codex_pool.supervisor" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                        return process.pid
            return None

        return int(wait_until(find, "the supervisor"))

    # Turns.

    def history(self, thread: Thread) -> str:
        """A turn that ends at once; the worker that ran it."""
        found = [each.params["worker"] for each in thread.turn("hello").stream() if each.method == "pool/turn/assigned"]
        return str(found[0])

    def held(self, thread: Thread) -> Future[str]:
        """A turn that runs until the gate is opened; what will be seen of it."""
        first = threading.Event()
        handle = thread.turn("wait")

        def follow() -> Any:
            from codex_app_server.results import TurnCollector

            collector = TurnCollector(handle.id)
            for notification in handle.stream():
                first.set()
                collector.add(notification)
            return collector.result()

        result = self.executor.submit(seen, follow)
        assert first.wait(LIMIT_S), "the turn runs"
        return result


def reachable(daemon: Daemon, limit_s: float = LIMIT_S) -> Codex:
    """A client; the endpoint may be made again meanwhile."""

    def attempt() -> Codex | None:
        with contextlib.suppress(AppServerError, OSError):
            return connect(daemon.endpoint, name="caller")
        return None

    client: Codex = wait_until(attempt, "the daemon answers", limit_s)
    return client


def drive(fault: str, phase: str, root: Path) -> dict[str, str]:
    """Drive a cell; what was seen, by who or what. Raises AssertionError where it is not what it should be."""
    daemon, expected = Daemon(root, fault, phase), FAULTS[fault]
    try:
        with daemon.running() as process:
            if phase == "starting":
                _starting(daemon, process, expected)
            else:
                _running(daemon, process, expected)
    except BaseException:
        print(f"{fault}, {phase}\nseen: {json.dumps(daemon.report, indent=2)}", file=sys.stderr)
        print(daemon.log.read_text(errors="replace")[-6000:] if daemon.log.exists() else "no log", file=sys.stderr)
        raise
    return daemon.report


def _starting(daemon: Daemon, process: subprocess.Popen[bytes], expected: Expected) -> None:
    if expected.no_start is not None:
        daemon.inject(process)
        daemon.gate.touch()
        daemon.report["exit"] = str(process.wait(LIMIT_S))
        assert daemon.report["exit"] not in ("0", "-15"), daemon.report
        said = daemon.log.read_text(errors="replace")
        assert re.search(expected.no_start, said), said
        return
    wait_until(lambda: len(daemon.starts.read_text().split()) == 2, "the app-servers start")
    daemon.inject(process)
    daemon.gate.touch()
    with reachable(daemon) as codex:
        daemon.speak()
        daemon.report["then"] = seen(codex.thread_start().run, "after")
        assert daemon.report["then"] == "completed"
    _afterwards(daemon, process, expected)


def _running(daemon: Daemon, process: subprocess.Popen[bytes], expected: Expected) -> None:
    report = daemon.report
    with reachable(daemon) as caller:
        supervisor = daemon.supervisor(process)
        threads = [caller.thread_start(), caller.thread_start()]
        workers = [daemon.history(thread) for thread in threads]
        thread, worker = threads[0], workers[0]
        broker = _broker(supervisor)
        turn: Future[str] | None = None
        recycles = daemon.phase == "draining" or daemon.fault == "successor that cannot start"
        if daemon.fault == "successor that cannot start" and daemon.phase != "draining":
            daemon.inject(process)
        if recycles and daemon.phase != "idle":
            daemon.history(thread)
        if daemon.phase != "idle":
            turn = daemon.held(thread)
        elif recycles:
            daemon.history(thread)
        if daemon.phase == "draining":
            wait_until(lambda: worker in draining(caller), "the worker drains")
        if daemon.fault != "successor that cannot start" or daemon.phase == "draining":
            daemon.inject(process)
        if daemon.fault not in ("runtime directory removed", "socket removed"):
            daemon.speak()
        if daemon.fault == "successor that cannot start" and daemon.phase != "draining":
            # It has been tried, and the worker that it was to replace is still there.
            report["status"] = wait_until(lambda: _failed_successor(caller), "the status says so")
            assert worker in {row.get("worker") for row in rows(caller)}
        daemon.gate.touch()
        if turn is not None:
            report["turn"] = turn.result(LIMIT_S)
            assert report["turn"] == "completed"
        report["then"] = seen(thread.run, "after")
        assert report["then"] == "completed"
        assert daemon.supervisor(process) == supervisor
        if not recycles:
            assert all(row["restarts"] == 0 for row in rows(caller)), rows(caller)
        if not expected.new_broker:
            assert _broker(supervisor) == broker
    _afterwards(daemon, process, expected)


def _failed_successor(codex: Codex) -> str | None:
    found = re.search(r"cannot start|could not start|not ready|has ended|exit code", json.dumps(status(codex)))
    return found[0] if found else None


def _afterwards(daemon: Daemon, process: subprocess.Popen[bytes], expected: Expected) -> None:
    if expected.made_again is not None:
        wait_until((daemon.runtime / expected.made_again).exists, "it is made again", NOTICED_S)
    with reachable(daemon, NOTICED_S) as codex:
        daemon.report["later client"] = seen(codex.thread_start().run, "after")
        assert daemon.report["later client"] == "completed"
        assert status(codex)["workers"]
    assert process.poll() is None


def _broker(supervisor: int) -> int:
    for process in processes.descendants(supervisor):
        with contextlib.suppress(OSError):
            if b"codex_pool.broker" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                return process.pid
    return 0
