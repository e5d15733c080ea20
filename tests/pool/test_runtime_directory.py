"""A pool whose runtime directory is removed, changed or full, as processes: turns go on, and clients come in again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Program, codex_pool, started
from small_disk import SmallDisk, small_disk

from codex_app_server import Codex, TurnFailedError
from codex_app_server.testing import null_app_server
from codex_pool import Pool, PoolStartError, connect
from codex_pool.broker import checkpoint_writer
from codex_pool.protocol import endpoints
from codex_pool.runtime import processes

LIMIT_S = 20.0
# Looked at every second; a client that is too early tries again after at most 2 s.
NOTICED_S = 6.0

pytestmark = pytest.mark.slow


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = LIMIT_S) -> Any:
    """Ask again until it is true; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def broker_of(supervisor: int) -> int:
    below = processes.descendants(supervisor)
    return next((each.pid for each in below if b"codex_pool.broker" in command_of(each.pid)), 0)


def rows(codex: Codex) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = codex.client.request("pool/status")["workers"]
    return found


def problems(codex: Codex) -> set[str]:
    return {row["what"] for row in codex.client.request("pool/status")["problems"]}


class Held:
    """A pool of two workers with a client; `turn` runs until `let_end`, on the worker with the pid `busy`."""

    def __init__(self, pool: Pool, codex: Codex, file: Path, log: Path) -> None:
        self.pool, self.codex, self._file, self.log = pool, codex, file, log
        self.path = endpoints.ipc_path(pool.endpoint)
        assert pool.supervisor_pid is not None
        self.supervisor = pool.supervisor_pid
        self.thread = codex.thread_start()
        self.turn = self.thread.turn("held")
        wait_until(lambda: any(row["turns"] for row in rows(codex)), "the turn runs")
        self.busy = next(row["pid"] for row in rows(codex) if row["turns"])
        self.idle = next(row["pid"] for row in rows(codex) if not row["turns"])

    def entries(self) -> list[str]:
        with contextlib.suppress(OSError):
            return sorted(entry.name for entry in self.path.parent.iterdir())
        return []

    def check(self) -> None:
        """The turn ends as it would have, whoever comes is let in, and no worker was replaced but those killed."""
        with connect(self.pool.endpoint) as late:
            assert late.thread_start().run("hello").status == "completed"
        wait_until(lambda: self.entries() == ["s.lock", "s.processes", "s.sock", "s.sock.threads", "s.w"], "all files")
        assert self.path.with_suffix(".lock").read_text() == f"{self.supervisor}\n"
        assert stat.S_IMODE(self.path.parent.stat().st_mode) == 0o700
        self._file.touch()
        assert self.turn.run(timeout=LIMIT_S).status == "completed"
        assert processes.identify(self.busy) is not None
        wait_until(lambda: problems(self.codex) == set(), "nothing fails any more")
        wait_until(lambda: [row["state"] for row in rows(self.codex)] == ["ready"] * 2, "both workers are ready")
        assert self.thread.run("hello").status == "completed"


@pytest.fixture
def held(runtime_directory: Path, tmp_path: Path) -> Iterator[Held]:
    config, log = null_app_server(hold=str(tmp_path / "end"), when="held"), tmp_path / "log"
    endpoint = f"ipc://{runtime_directory}/d/s.sock"
    try:
        with Pool(2, config, endpoint=endpoint, log_file=log) as pool, pool.connect() as codex:
            yield Held(pool, codex, tmp_path / "end", log)
    finally:
        print(log.read_text() if log.exists() else "no log")
        shutil.rmtree(runtime_directory / "d", ignore_errors=True)


@pytest.mark.parametrize("what", ["directory", "files", "s.sock", "s.w", "s.lock", "s.processes", "s.sock.threads"])
def test_what_is_removed_comes_back_and_a_client_that_comes_meanwhile_waits(what: str, held: Held) -> None:
    directory = held.path.parent
    if what == "directory":
        shutil.rmtree(directory)
    for name in held.entries() if what == "files" else [what] if what != "directory" else []:
        (directory / name).unlink()
    began = time.monotonic()
    with connect(held.pool.endpoint) as late:
        assert late.thread_start().run("hello").status == "completed"
    assert time.monotonic() - began < NOTICED_S
    held.check()


@pytest.mark.parametrize("dies", ["idle worker", "broker", "both"])
def test_a_directory_is_removed_and_something_dies(dies: str, held: Held) -> None:
    shutil.rmtree(held.path.parent)
    if dies != "broker":
        os.kill(held.idle, signal.SIGKILL)
    if dies != "idle worker":
        os.kill(broker_of(held.supervisor), signal.SIGKILL)
    held.check()


@pytest.mark.parametrize("name", ["s.sock", "s.w"])
@pytest.mark.parametrize("instead", ["a file", "another's socket"])
def test_what_is_put_in_the_place_of_a_socket_is_moved_aside_or_replaced(instead: str, name: str, held: Held) -> None:
    path = held.path.with_name(name)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        if instead == "a file":
            path.write_text("somebody's")
        else:
            other.bind(str(path))
            other.listen()
        wait_until(
            lambda: f"socket is bound again: {'what' if instead == 'a file' else 'another'}" in held.log.read_text(),
            "it is noticed",
        )
        aside = list(path.parent.glob("*.aside-*"))
        assert [each.read_text() for each in aside] == ["somebody's"] * (instead == "a file")
        for each in aside:
            each.unlink()
        os.kill(held.idle, signal.SIGKILL)
        wait_until(lambda: held.idle not in [row.get("pid") for row in rows(held.codex)], "it is replaced")
        held.check()


@pytest.mark.parametrize("removed", ["directory", "files", "s.lock", "s.sock"])
def test_a_second_pool_is_refused_while_the_first_lives(removed: str, held: Held) -> None:
    if removed == "directory":
        shutil.rmtree(held.path.parent)
    else:
        for name in held.entries() if removed == "files" else [removed]:
            (held.path.parent / name).unlink()
    with pytest.raises(PoolStartError, match=f"already running on ipc://{held.path} .supervisor pid {held.supervisor}"):
        Pool(1, null_app_server(), endpoint=held.pool.endpoint).start()
    held.check()


def test_a_next_pool_takes_the_endpoint_of_one_whose_lock_was_made_again(
    runtime_directory: Path, tmp_path: Path
) -> None:
    """The broker of the first may still be there, and does not remove what is not its own."""
    endpoint, directory = f"ipc://{runtime_directory}/d/s.sock", runtime_directory / "d"
    first = Pool(1, null_app_server(), endpoint=endpoint, log_file=tmp_path / "first")
    with first:
        shutil.rmtree(directory)
        wait_until(lambda: (directory / "s.sock").is_socket(), "all is made again")
        assert first.supervisor_pid is not None
        os.kill(first.supervisor_pid, signal.SIGKILL)
        with Pool(1, null_app_server(), endpoint=endpoint, log_file=tmp_path / "next") as second:
            assert first.wait_ended(LIMIT_S)
            with second.connect() as codex:
                assert codex.thread_start().run("hello").status == "completed"
                assert problems(codex) == set()
            assert (directory / "s.sock").is_socket()
    shutil.rmtree(directory)


def test_the_default_endpoint_is_found_again_after_its_directory_was_removed(
    runtime_directory: Path, tmp_path: Path
) -> None:
    with Pool(1, null_app_server(), endpoint=endpoints.default_endpoint(), log_file=tmp_path / "log"):
        for _ in range(2):
            shutil.rmtree(runtime_directory / "codex-pool")
            with connect() as codex:
                assert codex.thread_start().run("hello").status == "completed"
            assert stat.S_IMODE((runtime_directory / "codex-pool").stat().st_mode) == 0o700


def test_a_pool_of_its_own_comes_back_with_all_directories_above(runtime_directory: Path) -> None:
    """A pool such as a batch has."""
    with Pool(1, null_app_server()) as pool, pool.connect() as codex:
        thread = codex.thread_start()
        shutil.rmtree(runtime_directory / "codex-pool")
        with connect(pool.endpoint) as late:
            assert late.thread_start().run("hello").status == "completed"
        assert thread.run("hello").status == "completed"
        for path in endpoints.ipc_path(pool.endpoint).parents[:2]:
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


# A disk that is full.


@pytest.fixture
def disk(runtime_directory: Path) -> Iterator[SmallDisk]:
    with small_disk(runtime_directory / "disk", 1) as disk:
        yield disk


@pytest.fixture
def daemon(disk: SmallDisk, tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[Program]]:
    """Starts a daemon whose sockets lie on the small disk; a turn with `held` runs until there is the file `end`."""
    (disk.seen / "d").mkdir(mode=0o700)
    binary = tmp_path / "codex"
    words = null_app_server(hold=str(tmp_path / "end"), when="held").launch_args_override
    assert words is not None
    binary.write_text(f"#!/bin/sh\nexec {' '.join(words[:-1])} '{words[-1]}'\n")
    binary.chmod(0o755)
    serve = [
        "serve",
        "--endpoint",
        f"ipc://{disk.path}/d/s.sock",
        "--workers",
        "2",
        "--codex-bin",
        str(binary),
        "--json",
    ]
    return lambda: started([*disk.within, sys.executable, "-m", "codex_pool_cli", *serve], home=tmp_path / "home")


def client(disk: SmallDisk) -> Codex:
    return connect(f"ipc://{disk.seen}/d/s.sock")


BOTH = {checkpoint_writer.WHAT, "list of processes"}


@pytest.mark.parametrize("dies", ["nothing", "idle worker", "broker", "both", "all"])
def test_a_full_disk_ends_no_turn_and_loses_no_thread(
    dies: str, disk: SmallDisk, daemon: Callable[[], contextlib.AbstractContextManager[Program]], tmp_path: Path
) -> None:
    with daemon() as program:
        supervisor = json.loads(program.wait_for_line("launch", "stdout"))["pid"]
        with client(disk) as codex:
            threads = [codex.thread_start()]
            assert threads[0].run("hello").status == "completed"
            disk.fill()
            # What is written down of it has to be elsewhere.
            threads.append(codex.thread_start())
            turn = threads[1].turn("held")
            wait_until(lambda: any(row["turns"] for row in rows(codex)), "the turn runs")
            workers = rows(codex) if dies in ("idle worker", "both", "all") else []
            killed = {row["pid"] for row in workers if dies == "all" or not row["turns"]}
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            if dies in ("broker", "both", "all"):
                os.kill(broker_of(supervisor), signal.SIGKILL)
            if dies == "all":
                with pytest.raises(TurnFailedError) as lost:
                    turn.run(timeout=LIMIT_S)
                assert lost.value.kind == "lost"
            else:
                (tmp_path / "end").touch()
                assert turn.run(timeout=LIMIT_S).status == "completed"
            wait_until(lambda: killed.isdisjoint(row.get("pid") for row in rows(codex)), "who died is replaced")
            with client(disk) as late:
                assert late.thread_start().run("hello").status == "completed"
            for thread in threads:
                assert thread.run("hello").status == "completed"
            # The last page of its file has room for a few.
            wait_until(lambda: codex.thread_start() and checkpoint_writer.WHAT in problems(codex), "it is shown")
            assert ("list of processes" in problems(codex)) == (dies != "nothing")
            done = codex_pool("status", "--connect", f"ipc://{disk.seen}/d/s.sock")
            assert f"{checkpoint_writer.WHAT}: {disk.path}/d/s.sock.threads" in done.stdout
            assert "No space left on device" in done.stdout
            disk.make_room()
            wait_until(lambda: problems(codex) == set(), "all is written down")
        assert program.process.poll() is None
        assert program.end(signal.SIGTERM) == 0


def test_a_daemon_starts_on_a_full_disk(
    disk: SmallDisk, daemon: Callable[[], contextlib.AbstractContextManager[Program]]
) -> None:
    disk.fill()
    with daemon() as program:
        program.wait_for_line("launch", "stdout")
        with client(disk) as codex:
            assert codex.thread_start().run("hello").status == "completed"
            assert problems(codex) >= BOTH
            disk.make_room()
            wait_until(lambda: problems(codex) == set(), "all is written down")
        assert program.end(signal.SIGTERM) == 0
