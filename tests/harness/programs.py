"""Running the project's own programs as a user does, with bounded waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 40.0


def environment(home: Path | None) -> dict[str, str]:
    """Ours, with CODEX_HOME set, and no terminal's width or colours."""
    environ = {name: value for name, value in os.environ.items() if name not in ("CODEX_HOME", "COLUMNS")}
    if home is not None:
        environ["CODEX_HOME"] = str(home)
    return environ


def codex_pool(
    *arguments: str, home: Path | None = None, cwd: Path | None = None, stdin: str = "", limit_s: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    """`codex-pool ARGUMENTS`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "codex_pool_cli", *arguments],
        env=environment(home),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=limit_s,
    )


class Program:
    """A program under way. Its output is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def wait_for_line(self, text: str, stream: str = "stderr", limit_s: float = LIMIT_S) -> str:
        """The first line with `text` in it; fails when the program ends without one."""

        def found() -> bool:
            return any(text in line for line in self.lines[stream]) or not any(r.is_alive() for r in self._readers)

        with self._changed:
            assert self._changed.wait_for(found, limit_s), f"no line with {text!r} within {limit_s} s: {self.lines}"
        matches = [line for line in self.lines[stream] if text in line]
        assert matches, f"ended without a line with {text!r}: {self.lines}"
        return matches[0]

    def end(self, number: int = signal.SIGINT, limit_s: float = LIMIT_S) -> int:
        """Send a signal, wait for its end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(limit_s)

    def wait(self, limit_s: float = LIMIT_S) -> int:
        code = self.process.wait(limit_s)
        for reader in self._readers:
            reader.join(limit_s)
        return code

    def _read(self, name: str, stream: object) -> None:
        for line in stream:  # type: ignore[attr-defined]
            with self._changed:
                self.lines[name].append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


@contextmanager
def running(*arguments: str, home: Path | None = None) -> Iterator[Program]:
    """`codex-pool ARGUMENTS` under way; killed at the end if it still runs."""
    with started([sys.executable, "-m", "codex_pool_cli", *arguments], home=home) as program:
        yield program


@contextmanager
def started(command: list[str], home: Path | None = None) -> Iterator[Program]:
    """Any command that becomes a program of the project; killed at the end if it still runs."""
    process = subprocess.Popen(
        command,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    program = Program(process)
    try:
        yield program
    finally:
        if process.poll() is None:
            process.kill()
        program.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
