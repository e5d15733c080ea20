"""Terminals that are gone, are not read, know few letters, or are told to do something: no work depends on them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import codex_pool, environment, running

from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.store import layout
from codex_pool.runtime.terminal import plain

COMMAND = [sys.executable, "-m", "codex_pool_cli"]
LIMIT_S = 40.0
SLOW = [{"id": f"s{n}", "prompt": f"{n} [[text deltas=20 pace_ms=50]]"} for n in range(4)]
MANY = [{"id": f"s{n}", "prompt": f"{n} [[text deltas=20 pace_ms=50]]"} for n in range(30)]
# A title for the window, a colour, and C1 and bidirectional controls: in an answer, an error, a sample's name.
EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b31m\u202e"


@pytest.mark.parametrize("text", ["plain äöü 👨‍👩‍👧", "two\n\tlines"])
def test_text_without_control_characters_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_control_characters_become_escapes() -> None:
    assert plain(EVIL + "\r\n\r\x7f") == "\\x1b]0;owned\\x07\\x1b[31mred\\x9b31m\\u202e\n\\r\\x7f"
    assert plain("\udc9b\udcff") == "\\udc9b\udcff" and plain("\udc9b", paths=True) == "\udc9b"
    assert plain("\udcc2\udc9b", paths=True) == "\\x9b" and plain("\udcc3\udc84", paths=True) == "\udcc3\udc84"


class Terminal:
    """A terminal with a program in it; what it shows is read only by `read` and `to_end`."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.shown = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                os.execve(COMMAND[0], [*COMMAND, *arguments], {**environment(None), "TERM": "xterm", **env})
            os._exit(127)
        self.code: int | None = None

    def read(self, until: Callable[[bytes], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not until(self.shown):
            assert time.monotonic() < deadline and self.fd >= 0, self.shown
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.fd, 65536)
                except OSError:
                    return

    def close(self) -> None:
        """Close as when the window is closed: SIGHUP, and no terminal any more."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def wait(self) -> int:
        deadline = time.monotonic() + LIMIT_S
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            else:
                assert time.monotonic() < deadline, "it has not ended"
                time.sleep(0.02)
        return self.code


@contextmanager
def terminal(*arguments: str, **env: str) -> Iterator[Terminal]:
    found = Terminal(*arguments, **env)
    try:
        yield found
    finally:
        found.close()
        if found.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGKILL)
            os.waitpid(found.pid, 0)


def dataset(path: Path, samples: object) -> str:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))  # type: ignore[attr-defined]
    return str(path)


def records(run: Path) -> dict[str, str]:
    with open(run / "results.jsonl") as file:
        return {record["id"]: record["status"] for record in map(json.loads, file)}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.real
@pytest.mark.parametrize("ending", ["by itself", "cancelled"])
def test_a_run_goes_on_without_its_terminal(tmp_path: Path, ending: str) -> None:
    out, told = tmp_path / "out", tmp_path / "told"
    data = dataset(tmp_path / "d.jsonl", SLOW if ending == "by itself" else MANY)
    notify = f"echo $CODEX_POOL_STATE; yes | head -c 300000; echo $CODEX_POOL_STATE > {told}"
    options = ("--workers", "1", "--turns-per-worker", "1", "--notify", notify, "-o", str(out))
    with terminal("batch", data, "--demo", *options) as window:
        window.read(lambda shown: b"1 running" in re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown))
        window.close()
        until(lambda: b"the terminal is gone" in (out / "pool.log").read_bytes(), "it does not know")
        assert layout.holder(out) == window.pid
        if ending == "cancelled":
            assert codex_pool("runs", "cancel", str(out)).returncode == 0
        attached = codex_pool("attach", str(out))
        # One that was cancelled may have ended by then.
        ended = ending == "cancelled" and ": interrupted: " in attached.stderr
        assert ended or attached.stderr.startswith("batch: "), attached.stderr
        code, state = (130, "interrupted") if ending == "cancelled" else (0, "finished")
        assert window.wait() == code and told.read_text() == f"{state}\n"
    statuses = list(records(out).values())
    assert statuses == ["completed"] * len(SLOW) if code == 0 else statuses.count("completed") < len(MANY)
    assert f"{state}" in codex_pool("runs", "show", str(out)).stdout


@pytest.mark.real
def test_a_terminal_that_is_not_read_holds_up_nothing(tmp_path: Path) -> None:
    out, told = tmp_path / "out", tmp_path / "told"
    samples = [*SLOW[:2], *({"id": f"f{n}{'x' * 50}", "prompt": f"{n} [[failed other]]"} for n in range(40))]
    data = dataset(tmp_path / "d.jsonl", samples)
    with terminal("batch", data, "--demo", "--workers", "1", "--notify", f"touch {told}", "-o", str(out)) as window:
        until(told.exists, "it waits for who reads it")
        assert window.wait() == 1
    assert len(records(out)) == 42


@pytest.mark.real
@pytest.mark.parametrize("both", [True, False])
def test_ctrl_c_ends_a_run_whose_output_nobody_reads(tmp_path: Path, both: bool) -> None:
    out, told = tmp_path / "out", tmp_path / "told"
    data = dataset(tmp_path / "d.jsonl", MANY)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    options = ("--workers", "1", "--turns-per-worker", "1", "--json", "--notify", f"yes | head -c 300000; touch {told}")
    with subprocess.Popen(
        [*COMMAND, "batch", data, "--demo", *options, "-o", str(out)],
        stdout=writer,
        stderr=writer if both else subprocess.DEVNULL,
        env=environment(None),
    ) as run:
        try:
            until(lambda: (out / "results.jsonl").exists() and len(records(out)) > 0, "nothing is done")
            run.send_signal(signal.SIGINT)
            assert run.wait(15) == 130 and told.exists()
        finally:
            run.kill()
            os.close(reader), os.close(writer)
    assert 0 < list(records(out).values()).count("completed") < len(MANY)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1", "C.UTF-8"])
def test_text_of_agents_reaches_a_terminal_without_control_characters(tmp_path: Path, locale: str) -> None:
    out = tmp_path / "out"
    script = tmp_path / "script.json"
    rules = [{"contains": "good", "answer": {"type": "text", "text": f"{EVIL} ä €"}}]
    rules.append({"contains": "bad", "answer": {"type": "failed", "code": "other", "message": EVIL}})
    script.write_text(json.dumps({"rules": rules}))
    data = dataset(tmp_path / "d.jsonl", [{"id": "ü", "prompt": "good"}, {"id": "b", "prompt": "bad"}])
    scorer = "command:printf '\\033]0;owned\\007'; exit 1"
    env = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    if locale.endswith("8859-1"):
        env["PYTHONIOENCODING"] = "latin-1"
    shown = b""
    options = ("--demo-script", str(script), "--workers", "1", "--scorer", scorer, "--notify", f"printf '{EVIL}'")
    for arguments in (
        ("batch", data, *options, "-o", str(out)),
        ("runs", "show", str(out), "ü"),
        ("runs", "show", str(out), "b"),
        ("runs", "show", str(out)),
        ("runs", "list", str(tmp_path)),
        ("runs", "tail", str(out)),
        ("runs", "export", str(out)),
        ("attach", str(out)),
        ("score", str(out), "--json"),
        ("run", "--demo", f"[[text {EVIL}]]"),
    ):
        with terminal(*arguments, **env) as window:
            window.read(lambda shown: False)
            code = window.wait()
            assert code in (0, 1) and b"Traceback" not in window.shown, window.shown
            assert b"owned" in window.shown or arguments[0] != "run", (arguments, window.shown)
            shown += window.shown
    assert b"\\x1b]0;owned\\x07" in shown
    # What is left are the sequences of the display itself.
    assert b"\x1b]" not in shown and b"\x07" not in shown
    assert b"\x1b[31mred" not in shown and "\u202e".encode() not in shown
    text = shown.decode("latin-1" if locale.endswith("8859-1") else "utf-8", "replace")
    assert not re.search("[\x80-\x9f]", text)


@pytest.mark.real
def test_a_terminated_detach_leaves_no_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = dataset(tmp_path / "d.jsonl", SLOW)
    with subprocess.Popen(
        [*COMMAND, "batch", data, "--demo", "--workers", "1", "--detach", "-o", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(None),
    ) as parent:
        until(lambda: (out / "lock").exists(), "the run is not started")
        parent.send_signal(signal.SIGTERM)
        _, said = parent.communicate(timeout=LIMIT_S)
    assert parent.returncode == 130 and "the run was stopped" in said, said
    assert layout.holder(out) is None


@pytest.mark.real
def test_a_turn_that_waits_is_shown_on_a_terminal_until_it_begins(home: Path, model: LoopbackModel) -> None:
    with running("serve", "--workers", "1", "--turns-per-worker", "1", home=home) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        with running("run", "[[hang 30]]") as first:
            model.wait_for(lambda record: record.outcome == "hanging", 20)
            with terminal("run", "Say alidade-42.") as second:
                second.read(lambda shown: b"codex-pool: waiting for a free turn" in shown)
                with terminal("run", "--json", "Say gnomon-43.") as third:
                    third.read(lambda shown: b"waiting for a free turn behind 1 other; Ctrl-C gives up" in shown)
                    os.kill(third.pid, signal.SIGINT)
                    assert third.wait() == 130
                    third.read(lambda shown: b"\r\x1b[Kcodex-pool: interrupted" in shown)
                assert b"turn.dequeued" not in third.shown
                assert first.end(signal.SIGINT) == 130
                second.read(lambda shown: False)
                assert second.wait() == 0
        shown = second.shown.decode()
        assert "waiting for a free turn; Ctrl-C gives up\r\x1b[K" in shown
        assert shown.index("alidade-42") > shown.index("\r\x1b[K")
        assert "go on with: codex-pool run --thread " in shown
        assert daemon.end(signal.SIGINT) == 0
