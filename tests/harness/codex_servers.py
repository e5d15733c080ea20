"""Servers for codex clients, as users start them: the real app-server, and a pool. Each in a home of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import codex_cli_bin
from programs import codex_pool, environment, started
from tui import TITLE_PROMPT, TUI_CONFIG, Tui, in_terminal

from codex_app_server.testing.loopback import (
    LoopbackModel,
    RequestRecord,
    Rule,
    Script,
    Text,
    ToolCall,
    write_loopback_home,
)
from codex_pool.runtime import processes

Kind = Literal["real", "pool"]
LIMIT_S = 30.0
CODEX = str(codex_cli_bin.bundled_codex_path())
COUNTED = "one two three four five six seven eight nine ten eleven twelve"


def escalated(name: str) -> ToolCall:
    """A command that writes the file `name`, outside of the sandbox: the user is asked."""
    return ToolCall(f"echo done > {name}", escalate=True, then=Text("It is done."))


# By what a prompt has in it. Those that ask for a title come first: the user's prompt is quoted in them.
SCRIPT = Script(
    tuple(
        Rule(answer, contains=words)
        for words, answer in {
            TITLE_PROMPT: Text("A title of the task"),
            "Begin": Text("The first answer."),
            "in pieces": Text("The answer is sextant, and it comes slowly.", deltas=20, pace_ms=100),
            "Count to twelve": Text(COUNTED, deltas=50, pace_ms=100),
            # Longer than any test: these turns are cut.
            "Count slowly": Text(COUNTED, deltas=50, pace_ms=1000),
            "the first colours": Text("red green blue grey pink black white", deltas=20, pace_ms=150),
            "the other colours": Text("cyan olive brown amber violet beige", deltas=20, pace_ms=150),
            "Write a file": escalated("by-codex"),
            "Write another file": escalated("another"),
            "Another way": Text("Steered all right."),
            "go on": Text("The thread goes on."),
        }.items()
    )
)


class CodexServer:
    """A server under way, and what its clients need. `directory` is short enough for sockets."""

    def __init__(self, kind: Kind, directory: Path, home: Path, work: Path, model: LoopbackModel) -> None:
        self.kind, self.directory, self.home, self.work, self.model = kind, directory, home, work, model
        self.socket = directory / "codex.sock"
        self.env = {**environment(home), "RUST_LOG": "error", "CODEX_POOL_CODEX_BIN": CODEX}
        self._terminals = 0

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def codex_bin(self) -> str:
        """The executable for clients that start `codex app-server` by themselves."""
        return CODEX if self.kind == "real" else str(Path(sys.executable).with_name("codex-via-pool"))

    @contextmanager
    def tui(self, *arguments: str, codex: str = CODEX, remote: bool = True) -> Iterator[Tui]:
        """A codex TUI on this server."""
        self._terminals += 1
        socket = self.directory / f"tmux-{self._terminals}"
        # A remote server takes the directory in which it was started itself for that of the user, unless one is named.
        command = [codex, *(("--remote", self.url, "-C", str(self.work)) if remote else ()), *arguments]
        with in_terminal(command, cwd=self.work, env=self.env, socket=socket) as tui:
            yield tui

    def kill(self, part: Literal["app-server", "broker", "gateway"]) -> None:
        """SIGKILL for a process of the pool; of several app-servers for that which runs turns."""
        if part == "app-server":
            deadline = time.monotonic() + LIMIT_S
            # Another one may run a turn for a title; that is soon over.
            while len(busy := [each["appServerPid"] for each in self.status()["workers"] if each["turns"]]) != 1:
                assert time.monotonic() < deadline, f"app-servers with turns: {busy}; expected one"
            os.kill(busy[0], signal.SIGKILL)
        else:
            os.kill(self._pid(part), signal.SIGKILL)

    def asked(self, prompt: str) -> RequestRecord:
        """The last request to the model for this prompt."""
        return next(record for record in reversed(self.model.requests) if record.prompt == prompt)

    @property
    def turns_completed(self) -> int:
        """Turns that the pool has completed; `codex-via-pool` runs them elsewhere when the pool answers too late."""
        return int(self.status()["turns"]["completed"])

    def status(self) -> dict:  # type: ignore[type-arg]
        """The output of `codex-pool status --json`."""
        done = codex_pool("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def _pid(self, part: str) -> int:
        for process in processes.descendants(os.getpid()):
            try:
                command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"codex_pool.{part}".encode() in command:
                return process.pid
        raise AssertionError(f"no process of the {part}")


@contextmanager
def codex_server(
    kind: Kind, directory: Path, base: Path, *, control_socket: bool = False, workers: int = 2
) -> Iterator[CodexServer]:
    """A server for clients of codex. `control_socket`: where a plain `codex` looks, instead of a socket of its own."""
    with ExitStack() as stack:
        model = stack.enter_context(LoopbackModel(SCRIPT))
        work = base / "work"
        work.mkdir()
        home = write_loopback_home(base / "home", model.base_url)
        config = home / "config.toml"
        trusted = f'[projects.{json.dumps(str(work))}]\ntrust_level = "trusted"\n'
        config.write_text(TUI_CONFIG + config.read_text() + trusted)
        server = CodexServer(kind, directory, home, work, model)
        if control_socket:
            server.socket = home / "app-server-control" / "app-server-control.sock"
        if kind == "real":
            command = [CODEX, "app-server", "--listen", "unix://" if control_socket else server.url]
        else:
            command = [sys.executable, "-m", "codex_pool_cli", "serve", "--workers", str(workers), "--json"]
            command += ["--control-socket"] if control_socket else ["--listen-unix", str(server.socket)]
        program = stack.enter_context(started(command, home=home))
        if kind == "pool":
            program.wait_for_line("launch", "stdout")
        deadline = time.monotonic() + LIMIT_S
        while not server.socket.exists():
            assert time.monotonic() < deadline, f"no socket {server.socket}: {program.lines}"
            time.sleep(0.02)
        yield server
        program.end(signal.SIGINT)
        if kind == "real":
            server.socket.unlink(missing_ok=True)
