"""SIGTERM at any moment of a start ends all within 10 s; SIGHUP ends a turn of `run`, but no daemon and no batch."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import Program, codex_pool, environment, running, started

from codex_app_server import AppServerConfig
from codex_app_server.testing.loopback import LoopbackModel
from codex_pool import Pool
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

END_LIMIT_S = 10.0
HANG_LIMIT_S = 30.0
# A module of the pool that never gets beyond its imports.
SITECUSTOMIZE = """
import os, sys, time
if os.environ["HANGS"] in sys.orig_argv:
    open(os.environ["HANG_FILE"], "w").close()
    time.sleep(600)
"""
STUBBORN = "trap '' TERM; while :; do sleep 1; done"


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says that what is to hang does."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("HANG_FILE", str(tmp_path / "hangs"))
    monkeypatch.setenv("HANGS", "nothing")
    return tmp_path / "hangs"


def app_server(directory: Path, then: str = "exec sleep 600") -> str:
    """An app-server that answers nothing."""
    path = directory / "codex"
    path.write_text(f'#!/bin/sh\ntouch "$HANG_FILE"\n{then}\n')
    path.chmod(0o755)
    return str(path)


def hang_in(module: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(directory / "site"))
    monkeypatch.setenv("HANGS", module)


def await_hanging(file: Path, program: Program) -> None:
    deadline = time.monotonic() + HANG_LIMIT_S
    while not file.exists():
        assert program.process.poll() is None, program.lines
        assert time.monotonic() < deadline, "nothing hangs"
        time.sleep(0.02)


def end(program: Program, number: int = signal.SIGTERM) -> int:
    """The exit code; fails unless it, and all below this process, ends in time."""
    begun = time.monotonic()
    code = program.end(number, limit_s=END_LIMIT_S)
    while left := processes.descendants(os.getpid()):
        assert time.monotonic() - begun < END_LIMIT_S, f"{left} outlive {program.lines}"
        time.sleep(0.02)
    return code


@pytest.mark.parametrize("then", ["exec sleep 600", STUBBORN], ids=["sleeps", "ignores SIGTERM"])
def test_a_daemon_whose_app_servers_do_not_answer(home: Path, tmp_path: Path, hanging: Path, then: str) -> None:
    with running("serve", "--codex-bin", app_server(tmp_path, then), "--json", home=home) as daemon:
        await_hanging(hanging, daemon)
        assert end(daemon) == 0
    assert daemon.lines["stderr"][-1] == "codex-pool: stopped"
    assert [json.loads(line)["record"] for line in daemon.lines["stdout"]] == ["done"]


@pytest.mark.parametrize("module", ["supervisor", "broker", "worker", "ingress"])
def test_a_daemon_of_which_a_process_never_gets_up(
    home: Path, tmp_path: Path, hanging: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    hang_in(f"codex_pool.{module}", tmp_path, monkeypatch)
    monkeypatch.setenv("CODEX_POOL_KEYS", str(tmp_path / "keys"))
    assert codex_pool("keys", "new", "somebody", "-o", str(tmp_path / "key")).returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running("serve", "--workers", "1", "--listen", f"tcp://127.0.0.1:{port}", home=home) as daemon:
        await_hanging(hanging, daemon)
        assert end(daemon) == 0


def test_a_daemon_that_waits_for_the_lock_of_its_endpoint(
    home: Path, tmp_path: Path, hanging: Path, runtime_directory: Path
) -> None:
    """Held by a descendant of a pool that is dead, which hangs: it is waited for, then said."""
    import fcntl

    directory = runtime_directory / "codex-pool"
    directory.mkdir(mode=0o700)
    lock = os.open(directory / "default.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with running("serve", home=home) as daemon:
            deadline = time.monotonic() + HANG_LIMIT_S
            while not any("codex_pool.supervisor" in name for name in commands()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert end(daemon) in (0, 3)
    finally:
        os.close(lock)
        (directory / "default.lock").unlink()


def commands() -> list[str]:
    found = []
    for process in processes.descendants(os.getpid()):
        try:
            found.append(Path(f"/proc/{process.pid}/cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("verb", ["run", "batch", "batch --connect", "score"])
def test_a_command_whose_start_hangs(
    home: Path, tmp_path: Path, hanging: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """An app-server of the command's own hangs, or the pool of a daemon that takes connections and has no worker."""
    silent = app_server(tmp_path)
    run = tmp_path / "out"
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"prompt": "hello"}\n')
    monkeypatch.setenv("CODEX_HOME", str(home))
    if verb == "score":
        done = codex_pool("batch", str(samples), "--workers", "1", "--home", "user", "-o", str(run), home=home)
        assert done.returncode == 0, done.stderr
    arguments = {
        "run": ["run", "hello", "--codex-bin", silent],
        "batch": ["batch", str(samples), "--codex-bin", silent, "--home", "user", "-o", str(run)],
        "batch --connect": ["batch", str(samples), "--connect", "default", "-o", str(run)],
        "score": ["score", str(run), "--scorer", "judge:Is it polite?", "--codex-bin", silent, "--home", "user"],
    }[verb]
    if verb != "batch --connect":
        with running(*arguments, home=home) as program:
            await_hanging(hanging, program)
            assert end(program) == 130, program.lines
        return
    with running("serve", "--workers", "1", "--codex-bin", silent, home=home) as daemon:
        await_hanging(hanging, daemon)
        with running(*arguments, home=home) as program:
            program.wait_for_line("batch: 1 sample")
            assert program.end(signal.SIGTERM, limit_s=END_LIMIT_S) == 130, program.lines
        end(daemon)


PROGRAM = """
import signal, sys
from codex_app_server import AppServerConfig
from codex_pool import Pool
if sys.argv[2] == "raises":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
Pool(2, AppServerConfig(codex_bin=sys.argv[1])).start()
"""


@pytest.mark.parametrize(("what", "code"), [("dies", -signal.SIGTERM), ("raises", 1)])
def test_a_program_whose_pool_does_not_start(home: Path, tmp_path: Path, hanging: Path, what: str, code: int) -> None:
    with started([sys.executable, "-c", PROGRAM, app_server(tmp_path), what], home=home) as program:
        await_hanging(hanging, program)
        ended = end(program)
    assert ended == (-signal.SIGINT if what == "raises" else code), "as Python ends on KeyboardInterrupt"
    leftovers = Path(os.environ["XDG_RUNTIME_DIR"]) / "codex-pool"
    for found in sorted(leftovers.rglob("*"), reverse=True) if what == "dies" else ():
        # Nobody was left to remove them.
        found.rmdir() if found.is_dir() else found.unlink()


def test_a_pool_whose_start_is_cancelled(home: Path, tmp_path: Path, hanging: Path) -> None:
    config = AppServerConfig(codex_bin=app_server(tmp_path), env={"CODEX_HOME": str(home)})

    async def scene() -> float:
        async def use() -> None:
            async with Pool(1, config, log_file=tmp_path / "log"):
                raise AssertionError("it cannot be ready")

        task = asyncio.ensure_future(use())
        while not hanging.exists():
            await asyncio.sleep(0.02)
        begun = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - begun

    assert asyncio.run(asyncio.wait_for(scene(), HANG_LIMIT_S)) < END_LIMIT_S


# SIGHUP.


def test_a_daemon_outlives_its_terminal(home: Path) -> None:
    with running("serve", "--workers", "1", "--json", home=home) as daemon:
        launch = json.loads(daemon.wait_for_line("launch", "stdout"))
        below = [process.pid for process in processes.descendants(daemon.process.pid)]
        assert launch["pid"] in below
        pythons = [pid for pid in below if b"codex_pool" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(pythons) == 3, "supervisor, broker and worker"
        for pid in (daemon.process.pid, *pythons):
            os.kill(pid, signal.SIGHUP)
        done = codex_pool("run", "Say gnomon-43.")
        assert (done.returncode, "gnomon-43" in done.stdout) == (0, True), done.stderr
        assert set(pythons) <= {process.pid for process in processes.descendants(daemon.process.pid)}
        assert daemon.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("over", ["a daemon", "its own app-server"])
def test_the_turn_of_run_is_interrupted_when_its_terminal_goes(home: Path, model: LoopbackModel, over: str) -> None:
    if over == "a daemon":
        with running("serve", "--workers", "1", home=home) as daemon:
            daemon.wait_for_line("stop  Ctrl-C")
            hang_up_run(home, model)
            assert "1 interrupted" in codex_pool("status").stdout
            assert daemon.end(signal.SIGTERM) == 0
    else:
        hang_up_run(home, model)


def hang_up_run(home: Path, model: LoopbackModel) -> None:
    with running("run", "[[hang 30]]", home=home) as program:
        model.wait_for(lambda record: record.outcome == "hanging", 20)
        assert program.end(signal.SIGHUP, limit_s=END_LIMIT_S) == 129, program.lines
        model.wait_for(lambda record: record.outcome == "disconnected", 10)
    assert program.lines["stderr"][-1] == "codex-pool: the terminal is gone"


# A command whose controlling terminal is its stdin.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def test_run_on_a_terminal_that_is_closed_exits_with_129(home: Path, model: LoopbackModel) -> None:
    """Not only the signal: nothing can be written there any more."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "codex_pool_cli", "run", "[[deltas 3]] [[hang 30]]"]
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *command],
        env=environment(home),
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    try:
        model.wait_for(lambda record: record.outcome == "hanging", 20)
        os.close(ours)
        assert process.wait(END_LIMIT_S) == 129
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("terminal", [True, False], ids=["a terminal that is closed", "a signal alone"])
def test_a_batch_goes_on_without_its_display(home: Path, tmp_path: Path, model: LoopbackModel, terminal: bool) -> None:
    samples, run = tmp_path / "samples.jsonl", tmp_path / "out"
    prompts = ["[[hang]]", "[[failed invalid_prompt]]", "hello"]
    samples.write_text(
        "".join(json.dumps({"id": f"s{n}", "prompt": prompt}) + "\n" for n, prompt in enumerate(prompts))
    )
    options = ["--workers", "1", "--turns-per-worker", "1", "--wall-s", "3", "--home", "user", "-o", str(run)]
    ours, its = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "codex_pool_cli", "batch", str(samples), *options],
            env={**environment(home), "TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=its if terminal else (tmp_path / "stderr").open("wb"),
            start_new_session=True,
        )
    finally:
        os.close(its)
    try:
        model.wait_for(lambda record: record.outcome == "hanging", 20)
        if terminal:
            os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(40) == 1
    finally:
        if not terminal:
            os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()
    log = (run / "pool.log").read_text()
    assert "SIGHUP: the terminal is gone; the run goes on without its display" in log
    assert "s1: failed" in log and str(run / "results.jsonl") in log, "what it has to say later"
    assert len((run / "results.jsonl").read_text().splitlines()) == 3
