"""A daemon, a pool and a batch whose terminal closes, whose log nobody reads, or whose disk is full."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from programs import LIMIT_S, codex_pool, environment

from codex_app_server import AppServerConfig
from codex_pool import Pool, connect
from codex_pool.protocol import endpoints
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

COMMAND = [sys.executable, "-m", "codex_pool_cli"]


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.02)
    return value


@contextlib.contextmanager
def serving(stdout: int, stderr: int, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon, for as long as clients can connect; it ends in time at SIGTERM."""
    command = [*COMMAND, "serve", "--demo", "--workers", "1", *arguments]
    daemon = subprocess.Popen(
        command, env=environment(None), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
    )
    try:
        until(lambda: is_ready(daemon), "the daemon is ready")
        yield daemon
        began = time.monotonic()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(LIMIT_S) == 0
        assert time.monotonic() - began < 15
    finally:
        daemon.kill()
        daemon.wait()


def is_ready(daemon: subprocess.Popen[bytes]) -> bool:
    assert daemon.poll() is None, f"it has ended: {daemon.returncode}"
    # The command is not started before there is something that could answer it.
    return endpoints.ipc_path(endpoints.default_endpoint()).is_socket() and codex_pool("status").returncode == 0


def status() -> dict[str, Any]:
    with connect() as codex:
        found: dict[str, Any] = codex.client.request("pool/status")
    return found


def make_log(lines: int) -> None:
    """Have the broker log so many lines."""
    context = zmq.Context()
    sender = context.socket(zmq.DEALER)
    sender.connect(endpoints.default_endpoint())
    for _ in range(lines):
        sender.send_multipart([b"\x01\xc1" + b"junk" * 10])
    sender.close(linger=int(LIMIT_S * 1000))
    context.term()


def full_pipe() -> tuple[int, int]:
    """A pipe that takes nothing more."""
    reader, writer = os.pipe()
    other = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(other, b"\n" * 4096)
    os.close(other)
    return reader, writer


def works() -> None:
    """A turn, and one on a worker that replaces a killed one."""
    before = status()["workers"][0]
    with connect() as codex:
        assert codex.thread_start().run("Say gnomon-1.").status == "completed"
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: status()["workers"][0].get("pid") not in (None, before["pid"]), "the worker is replaced")
        assert codex.thread_start().run("Say gnomon-2.").status == "completed"


def broker_pid(daemon: subprocess.Popen[bytes]) -> int:
    below = [process.pid for process in processes.descendants(daemon.pid)]
    return next(pid for pid in below if b"codex_pool.broker" in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_a_daemon_works_on_whose_terminal_is_closed() -> None:
    controller, terminal = pty.openpty()
    with serving(terminal, terminal, "--json") as daemon:
        broker = broker_pid(daemon)
        os.close(terminal)
        os.close(controller)
        make_log(10)
        works()
        until(lambda: status()["log"]["lostLines"] >= 10, "lost lines are counted")
        assert "lines of the log lost" in codex_pool("status").stdout
        assert broker_pid(daemon) == broker


def test_a_daemon_works_on_whose_streams_nobody_reads() -> None:
    reader, writer = full_pipe()
    try:
        with serving(writer, writer, "--json") as daemon:
            broker = broker_pid(daemon)
            make_log(4000)
            works()
            lost = until(lambda: status()["log"]["lostLines"], "lost lines are counted")
            assert lost < 4000 and broker_pid(daemon) == broker
            os.close(writer)
            writer = -1
            text = b""
            while b"lines were lost" not in text:
                text += os.read(reader, 65536)
            said = re.search(r"([\d,]+) lines were lost", text.decode().splitlines()[-1])
            # More may have been lost since the status was asked for.
            assert said is not None and lost <= int(said[1].replace(",", "")) < 4000
    finally:
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)


def test_a_daemon_works_on_whose_reader_leaves_after_a_line() -> None:
    reader, writer = os.pipe()
    try:
        with serving(subprocess.DEVNULL, writer):
            assert os.read(reader, 10)
            os.close(reader)
            reader = -1
            works()
            until(lambda: status()["log"]["lostLines"], "lost lines are counted")
    finally:
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)


def test_a_daemon_works_on_whose_log_disk_is_full() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with serving(full, full, "--json"):
        os.close(full)
        works()
        until(lambda: status()["log"]["lostLines"], "lost lines are counted")


def test_a_log_file_that_is_removed_is_made_again(config: AppServerConfig, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Pool(1, config, log_file=log) as pool, pool.connect() as codex:
        until(lambda: "w0.1" in log.read_text(), "the first worker is ready")
        log.rename(tmp_path / "log.1")
        os.kill(codex.client.request("pool/status")["workers"][0]["pid"], signal.SIGKILL)
        until(lambda: log.exists() and "w0.2" in log.read_text(), "the second worker is ready, and the file is there")
        assert codex.thread_start().run("Say gnomon-3.").status == "completed"
    assert "INFO supervisor[" in (tmp_path / "log.1").read_text()


# A batch.


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    samples = [{"id": str(number), "prompt": f"{number} [[text deltas=10 pace_ms=100]]"} for number in range(6)]
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def batch(tasks: Path, *arguments: str) -> list[str]:
    return [*COMMAND, "batch", str(tasks), "--demo", "--workers", "1", "--turns-per-worker", "2", *arguments]


def completed(out: Path) -> int:
    return (out / "results.jsonl").read_text().count('"completed"')


def test_a_batch_goes_on_without_the_terminal_that_shows_it(tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child, controller = pty.fork()
    if child == 0:
        # The terminal is the child's own: its end is told by SIGHUP.
        os.execve(sys.executable, batch(tasks, "-o", str(out)), {**environment(None), "TERM": "xterm"})
    text = b""
    while b"running" not in text:
        text += os.read(controller, 65536)
    os.close(controller)
    _, code = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(code) == 0 and completed(out) == 6
    log = (out / "pool.log").read_text()
    assert f"WARNING batch[{child}] SIGHUP: the terminal is gone; the run goes on without its display" in log


def test_a_batch_goes_on_whose_streams_nobody_reads(tasks: Path, tmp_path: Path) -> None:
    """Nor does its terminal go on, as after Ctrl-S."""
    out = tmp_path / "out"
    reader, writer = full_pipe()
    controller, terminal = pty.openpty()
    try:
        command = batch(tasks, "--json", "-o", str(out))
        with subprocess.Popen(
            command, env={**environment(None), "TERM": "xterm"}, stdout=writer, stderr=terminal
        ) as child:
            until(lambda: (out / "results.jsonl").exists() and completed(out) == 6, "all samples are done")
            # It waits a while for who reads its records.
            text = b""
            while b'"event": "done"' not in text:
                text += os.read(reader, 65536)
            assert child.wait(LIMIT_S) == 0
            records = [json.loads(line) for line in text.splitlines() if line]
            assert [record["event"] for record in records] == ["launch", *["sample"] * 6, "done"]
    finally:
        for fd in (reader, writer, controller, terminal):
            os.close(fd)


def test_a_batch_goes_on_whose_display_nobody_reads_any_more(tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(batch(tasks, "-o", str(out)), env=environment(None), stderr=writer, timeout=LIMIT_S)
    os.close(writer)
    assert done.returncode == 0 and completed(out) == 6
    log = (out / "pool.log").read_text()
    assert log.count("standard error cannot be written: Broken pipe; the run goes on, and its results are in") == 1


def test_a_batch_goes_on_whose_log_disk_is_full(tasks: Path, tmp_path: Path) -> None:
    """A batch like one with --detach, whose streams are files."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "pool.log").symlink_to("/dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(batch(tasks, "-o", str(out)), env=environment(None), stderr=full, timeout=LIMIT_S)
    assert done.returncode == 0 and completed(out) == 6
