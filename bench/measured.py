"""Measured processes: each in an interpreter of its own, started, told to go, and ended. Linux: CPU is of /proc."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT_S = 120.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_bytecode = tempfile.TemporaryDirectory(prefix="bench-bytecode-")


def environment() -> dict[str, str]:
    """All write their bytecode, and find what an earlier one wrote."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": _bytecode.name}


class Child:
    """A script of this directory under measurement; what it says are lines."""

    def __init__(self, script: str, *arguments: object) -> None:
        argv = [sys.executable, str(HERE / script)]
        argv += [each if isinstance(each, str) else json.dumps(each) for each in arguments]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True, bufsize=1
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line. Raises RuntimeError when it has ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a measured process ended with {self.process.wait(LIMIT_S)}: {self.process.args!r}")
        return line.strip()

    def go(self) -> None:
        self.say("go")

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        done: dict[str, Any] = json.loads(self.line())
        return done

    def end(self) -> None:
        """End the process: by itself once its stdin ends, else by force."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def children(*started: Child) -> Iterator[tuple[Child, ...]]:
    try:
        yield started
    finally:
        for each in started:
            each.end()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all its threads, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def cpu_ns(pid: int) -> int:
    """CPU nanoseconds of a process by the scheduler's clock, where the hundredths of a second of `cpu_s` are coarse."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


class PoolProcesses:
    """Roles of the processes below a pool's supervisor."""

    def __init__(self, supervisor: int) -> None:
        self.supervisor = supervisor
        self.broker, self.ingress, self.gateway, self.workers, self.app_servers = 0, 0, 0, [], []
        for pid in children_of(supervisor):
            if "codex_pool.broker" in _command(pid):
                self.broker = pid
            elif "codex_pool.ingress" in _command(pid):
                self.ingress = pid
            elif "codex_pool.gateway" in _command(pid):
                self.gateway = pid
            elif "codex_pool.worker" in _command(pid):
                self.workers.append(pid)
                self.app_servers += children_of(pid)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by room."""
        return {
            "supervisor": cpu_s(self.supervisor),
            "broker": cpu_s(self.broker),
            "workers": sum(map(cpu_s, self.workers)),
            "app-servers": sum(map(cpu_s, self.app_servers)),
        }


def children_of(pid: int) -> list[int]:
    """The children of a process, whichever of its threads has started them."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
