"""Memory and processes of whole trees on the real app-server: what counts, what is shown, what it leads to."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import codex_cli_bin
import pytest
from mcp_servers import mcp_config, server_pids

from codex_app_server import AppServerConfig, Codex, ThreadLostError
from codex_pool import Pool

pytestmark = pytest.mark.real

LIMIT_S = 30.0
MIB = 1 << 20


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = LIMIT_S) -> Any:
    """Ask again until it is true; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
    return value


def row(codex: Codex) -> dict[str, Any]:
    (found,) = codex.client.request("pool/status")["workers"]
    return dict(found)


def add_servers(home: Path, directory: Path, *launcher: str) -> None:
    with open(home / "config.toml", "a") as file:
        file.write(mcp_config(directory, *launcher))


@contextmanager
def most_servers(directory: Path) -> Iterator[list[int]]:
    """Yield a list with how many servers were alive at once, complete at the end."""
    counts, done = [0], threading.Event()

    def count() -> None:
        while not done.wait(0.02):
            counts[0] = max(counts[0], len(server_pids(directory)))

    counter = threading.Thread(target=count)
    counter.start()
    try:
        yield counts
    finally:
        done.set()
        counter.join()


async def many(pool: Pool, threads: int, at_once: int) -> list[str | None]:
    """Return what so many short ephemeral threads answer, each let go after its turn."""
    answers = []
    async with await pool.aconnect() as codex:
        todo = iter(range(threads))

        async def work() -> None:
            for number in todo:
                thread = await codex.thread_start(ephemeral=True)
                answers.append((await thread.run(f"[[text]] question {number}")).final_response)
                await codex.client.request("thread/unsubscribe", {"thread_id": thread.id})

        await asyncio.gather(*(work() for _ in range(at_once)))
    return answers


@pytest.mark.parametrize("launcher", [(), ("/bin/sh", "-c", '"$@"; exit', "sh")], ids=["plain", "behind a launcher"])
def test_servers_of_short_threads_stay_below_the_limit(
    config: AppServerConfig, home: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    add_servers(home, tmp_path, *launcher)
    limit = 4 if not launcher else 8
    with Pool(2, config, log_file=tmp_path / "log", recycle_descendants=limit) as pool, most_servers(tmp_path) as most:
        answers = asyncio.run(many(pool, 24, 6))
        with pool.connect() as codex:
            workers = codex.client.request("pool/status")["workers"]
    assert len(answers) == 24 and all(answer and "question" in answer for answer in answers)
    assert 0 < most[0] <= 2 * limit, (tmp_path / "log").read_text()
    assert sum(each["recycles"] for each in workers) >= 1 and sum(each["restarts"] for each in workers) == 0


def test_no_limit_recycles_nothing(config: AppServerConfig, home: Path, tmp_path: Path) -> None:
    add_servers(home, tmp_path)
    with Pool(1, config, log_file=tmp_path / "log", recycle_descendants=None) as pool, pool.connect() as codex:
        for _ in range(3):
            codex.thread_start(ephemeral=True)
        wait_until(lambda: row(codex)["descendants"] == 3, "three servers are counted")
        assert row(codex)["recycles"] == 0


def test_memory_is_that_of_the_tree(config: AppServerConfig, home: Path, tmp_path: Path) -> None:
    """A launcher, MCP servers and the worker count, each shared page once."""
    launcher = tmp_path / "codex"
    launcher.write_text(f'#!/bin/sh\n{shlex.quote(str(codex_cli_bin.bundled_codex_path()))} "$@"\n')
    launcher.chmod(0o755)
    add_servers(home, tmp_path)
    config = replace(config, codex_bin=str(launcher))
    with Pool(1, config, log_file=tmp_path / "log") as pool, pool.connect() as codex:
        before = wait_until(lambda: row(codex)["memoryBytes"] and row(codex), "the memory is known")
        assert before["memoryIs"] == "pss" and before["memoryBytes"] > 35 * MIB, "the shell has a few"
        assert (before["descendants"], before["toolCommands"]) == (0, 0), "the native codex is no server"
        threads = [codex.thread_start(ephemeral=True) for _ in range(4)]
        wait_until(lambda: row(codex)["descendants"] == 4, "four servers")
        (first,) = server_pids(tmp_path)[:1]
        pss = sum(
            int(line.split()[1]) * 1024
            for line in Path(f"/proc/{first}/smaps_rollup").read_text().splitlines()
            if line.startswith("Pss:")
        )
        # What other processes of this machine share with these is less the more of them there are.
        wait_until(lambda: row(codex)["memoryBytes"] > before["memoryBytes"] + 2 * pss, "their memory is known")
        assert row(codex)["memoryBytes"] < before["memoryBytes"] + 200 * MIB
        assert len(threads) == 4


def test_a_command_is_apart_while_its_turn_runs_and_counts_when_it_is_left(
    config: AppServerConfig, work: Path, tmp_path: Path
) -> None:
    held = f"{shlex.quote(sys.executable)} -c 'import time; held = b\"x\" * 400_000_000; time.sleep(600)'"
    with Pool(1, config, log_file=tmp_path / "log", recycle_memory_bytes=None) as pool, pool.connect() as codex:
        thread = codex.thread_start(sandbox="danger-full-access", cwd=str(work), approval_policy="never")
        # The first command takes up a lot of the app-server's code.
        thread.run("[[tool_call 'sleep 2.5']] [[text]]")
        idle = wait_until(lambda: row(codex)["memoryBytes"], "the memory is known")
        turn = thread.turn(f"[[tool_call {json.dumps(f'(setsid {held} >/dev/null 2>&1 &) ; sleep 6')}]] [[text]]")
        shown = wait_until(lambda: row(codex)["toolMemoryBytes"] > 350 * MIB and row(codex), "the command is seen")
        assert shown["toolCommands"] >= 2 and shown["descendants"] == shown["leftCommands"] == 0
        assert shown["memoryBytes"] < idle + 200 * MIB
        assert turn.run().status == "completed"
        left = wait_until(lambda: row(codex)["leftCommands"] and row(codex), "what it has left counts")
        assert left["descendants"] == left["leftCommands"] == 1
        assert left["memoryBytes"] > idle + 200 * MIB and left["toolCommands"] == 0


def test_memory_of_servers_recycles_a_worker(config: AppServerConfig, home: Path, tmp_path: Path) -> None:
    with open(home / "config.toml", "a") as file:
        file.write(mcp_config(tmp_path))
    program = tmp_path / "mcp-server.py"
    program.write_text("held = b'x' * 60_000_000\n" + program.read_text())
    bound = 400 * MIB
    with (
        Pool(1, config, log_file=tmp_path / "log", recycle_memory_bytes=bound) as pool,
        pool.connect() as codex,
    ):
        for _ in range(6):
            thread = codex.thread_start(ephemeral=True)
            codex.client.request("thread/unsubscribe", {"thread_id": thread.id})
        wait_until(lambda: row(codex)["recycles"] == 1, "it is recycled", 40.0)
        assert f"bytes of memory, the limit is {bound}" in (tmp_path / "log").read_text()


# Threads that nobody follows.


@pytest.fixture
def recorded(config: AppServerConfig, tmp_path: Path) -> tuple[AppServerConfig, Callable[[str], list[str]]]:
    """An app-server that writes down what it is sent; the second value gives the methods that name a thread."""
    sent, recorder = tmp_path / "sent.jsonl", tmp_path / "codex"
    codex_bin = shlex.quote(str(codex_cli_bin.bundled_codex_path()))
    recorder.write_text(f'#!/bin/sh\ntee {shlex.quote(str(sent))} | {codex_bin} "$@"\n')
    recorder.chmod(0o755)

    def methods(thread_id: str) -> list[str]:
        lines = [json.loads(line) for line in sent.read_text().splitlines()]
        return [line["method"] for line in lines if line.get("params", {}).get("threadId") == thread_id]

    return replace(config, codex_bin=str(recorder)), methods


def test_a_thread_nobody_follows_is_unsubscribed_below_and_goes_on_at_its_next_request(
    recorded: tuple[AppServerConfig, Callable[[str], list[str]]], work: Path, tmp_path: Path
) -> None:
    config, sent = recorded
    with Pool(1, config, log_file=tmp_path / "log") as pool:
        with pool.connect() as first:
            thread = first.thread_start(sandbox="workspace-write", cwd=str(work))
            thread.run("[[text]] the first question")
            assert "thread/unsubscribe" not in sent(thread.id)
        wait_until(lambda: "thread/unsubscribe" in sent(thread.id), "it is unsubscribed")
        with pool.connect() as second:
            again = second.thread_resume(thread.id)
            result = again.run("[[text]] the second question")
            assert result.status == "completed" and result.final_response is not None
            assert len(again.read(include_turns=True).thread.turns) == 2
            resumed = second.client.request("thread/resume", {"thread_id": thread.id})
            assert resumed.sandbox.type == "workspaceWrite"
            assert sent(thread.id).count("thread/unsubscribe") == 1


def test_an_ephemeral_thread_that_was_let_go_is_refused_and_not_silent(
    recorded: tuple[AppServerConfig, Callable[[str], list[str]]], tmp_path: Path
) -> None:
    config, sent = recorded
    with Pool(1, config, log_file=tmp_path / "log") as pool, pool.connect() as codex:
        thread = codex.thread_start(ephemeral=True)
        thread.run("[[text]]")
        codex.client.request("thread/unsubscribe", {"thread_id": thread.id})
        wait_until(lambda: "thread/unsubscribe" in sent(thread.id), "it is unsubscribed")
        with pytest.raises(ThreadLostError, match="let go because nobody followed it"):
            thread.run("[[text]]")
