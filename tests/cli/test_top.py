"""`turns`, `sessions`, `workers` and `top` against a daemon of null app-servers; `top` in a terminal, by its keys."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import Program, codex_pool, environment, running
from tui import Tui, in_terminal

import codex_app_server.testing
from codex_pool.runtime import processes

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "codex_pool_cli"]
LIMIT_S = 30.0


@contextmanager
def daemon(tmp_path: Path) -> Iterator[Program]:
    """Two workers with one turn at once each; turns run until `hold` is there."""
    null = Path(codex_app_server.testing.__file__).parent / "_null_app_server.py"
    binary = tmp_path / "codex"
    scenario = json.dumps({"hold": str(tmp_path / "hold")})
    binary.write_text(f"#!/bin/sh\nexec {shlex.join([sys.executable, '-S', '-E', str(null), scenario])}\n")
    binary.chmod(0o755)
    (tmp_path / "home").mkdir()
    options = ("--workers", "2", "--turns-per-worker", "1", "--codex-bin", str(binary), "--json")
    with running("serve", *options, home=tmp_path / "home") as program:
        program.wait_for_line('"launch"', "stdout")
        yield program
        (tmp_path / "hold").touch()
        program.end(signal.SIGTERM)


def wait_for(what: Callable[[], bool], name: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < deadline, f"not within {LIMIT_S:.0f} s: {name}"
        time.sleep(0.1)


def turns() -> list[dict[str, str]]:
    done = codex_pool("turns", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)["data"]
    return found


class Top(NamedTuple):
    """`top` in a terminal; `files` has its `pid`, and once it has ended what `stty` says of the terminal."""

    tui: Tui
    files: Path

    @property
    def pid(self) -> int:
        return int((self.files / "pid").read_text())

    def check_terminal(self) -> None:
        """Fail unless the terminal takes lines and echoes, as before."""
        settings = self.files / "stty"
        wait_for(lambda: settings.exists() and settings.read_text().endswith("\n"), "settings of the terminal")
        assert {"icanon", "echo", "isig"} <= set(settings.read_text().split())


@contextmanager
def top(*arguments: str, command: list[str] = COMMAND) -> Iterator[Top]:
    """`codex-pool top` on a terminal; what stty says of it afterwards follows."""
    with tempfile.TemporaryDirectory(prefix="see-") as name:
        files = Path(name)
        script = 'echo $$ > "$0/pid"; exec "$@"'
        outer = 'sh -c "$0" "$@"; code=$?; stty -a > "$1/stty"; exit $code'
        whole = ["sh", "-c", outer, script, name, *command, "top", *arguments]
        with in_terminal(whole, cwd=files, env=environment(None), socket=files / "tmux") as tui:
            yield Top(tui, files)


def child_of(program: Program, module: str) -> int:
    """The process of the daemon that runs this module."""
    for each in processes.descendants(program.process.pid):
        if module.encode() in Path(f"/proc/{each.pid}/cmdline").read_bytes():
            return each.pid
    raise AssertionError(f"no process of {module}")


def test_lists_show_what_runs_and_what_waits_and_top_goes_on_over_another_broker(tmp_path: Path) -> None:
    with daemon(tmp_path) as program, ExitStack() as stack:
        runs = [stack.enter_context(running("run", "--connect", "default", f"prompt {n}")) for n in range(3)]
        wait_for(lambda: sorted(row["state"] for row in turns()) == ["queued", "running", "running"], "three turns")
        first = codex_pool("turns", "--sort", "age").stdout.splitlines()
        assert first[0].split()[:5] == ["turn", "state", "waits-for", "who", "client"] and len(first) == 4
        assert turns()[0]["turnId"] in first[1] + first[2] and "a free place, #1" in first[-1] + first[1]
        assert "prompt" not in codex_pool("turns", "--json").stdout
        sessions = json.loads(codex_pool("sessions", "--json").stdout)["data"]
        assert sorted(row["client"] for row in sessions) == ["codex-pool run"] * 3 + ["codex-pool sessions"]
        assert {row["listener"] for row in sessions} == {"ipc"}
        assert codex_pool("workers").stdout.splitlines()[1].split()[2:4] == ["ready", "1/1"]
        once = codex_pool("top", "--once")
        assert once.returncode == 0 and "2 running, 1 queued" in once.stdout
        with top("--interval", "0.3") as shown:
            tui = shown.tui
            tui.wait("workers 2/2 ready", "2 running, 1 queued", "q quit")
            tui.press("s")
            tui.wait("1-4 of 4", "codex-pool top", gone=("waits-for",))
            broker = child_of(program, "codex_pool.broker")
            os.kill(broker, signal.SIGSTOP)
            tui.wait("reconnecting: no answer for")
            os.kill(broker, signal.SIGKILL)
            tui.wait("2 running, 1 queued", gone=("reconnecting",))
            (tmp_path / "hold").touch()
            tui.wait("0 running, 0 queued", "1-1 of 1")
            tui.press("q")
            assert tui.wait_for_end() == 0
            shown.check_terminal()
        assert [run.wait() for run in runs] == [0, 0, 0]


def test_the_terminal_is_as_it_was_however_top_ends(tmp_path: Path) -> None:
    broken = (
        "from codex_pool_cli import top_screen, main\n"
        "def fails(*_): raise ZeroDivisionError('broken here')\n"
        "top_screen.Screen.lines = fails\n"
        "main()\n"
    )
    with daemon(tmp_path):
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            with top() as shown:
                shown.tui.wait("workers 2/2 ready")
                os.kill(shown.pid, number)
                assert shown.tui.wait_for_end() == code
                shown.check_terminal()
        with top(command=[sys.executable, "-c", broken]) as shown:
            shown.tui.wait("ZeroDivisionError: broken here")
            shown.check_terminal()
        with top() as shown:
            shown.tui.wait("workers 2/2 ready")
            pid = shown.pid
            found = processes.identify(pid)
        # Its terminal is gone with tmux.
        assert found is not None
        wait_for(lambda: processes.identify(pid) != found, "its end")


def test_top_needs_a_terminal_or_once() -> None:
    done = subprocess.run([*COMMAND, "top"], env=environment(None), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2 and "print once with --once, or use codex-pool turns --json" in done.stderr
