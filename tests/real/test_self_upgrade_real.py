"""Upgrades of codex-pool in a daemon that runs: the same supervisor, other children, and no failed turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool, running
from waiting import until

import codex_pool as package
from codex_app_server import Codex
from codex_pool.runtime import processes

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_S = 60.0
UPGRADES = 5


def status(codex: Codex) -> dict[str, Any]:
    found: dict[str, Any] = codex.client.request("pool/status")
    return found


def of_pool(supervisor: int) -> dict[int, str]:
    """The processes of the pool by pid, each with its module, without app-servers and what is below them."""
    found = {}
    for each in processes.descendants(supervisor):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{each.pid}/cmdline").read_bytes().split(b"\0")
            names = [word.decode() for word in words if word.startswith(b"codex_pool.")]
            found.update({each.pid: name for name in names})
    return found


def descriptors(pid: int) -> list[str]:
    names = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0])
    return sorted(names)


@contextlib.contextmanager
def streaming(codex: Codex, work: Path, count: int) -> Iterator[list[str]]:
    """Turns that stream one after the other on threads of their own; their texts have to be complete."""
    over = threading.Event()
    statuses: list[str] = []
    problems: list[BaseException] = []

    def run(number: int) -> None:
        try:
            thread = codex.thread_start(cwd=str(work), sandbox="read-only")
            turn = 0
            while not over.is_set():
                turn += 1
                result = thread.run(f'[[text "answer {number}.{turn}" deltas=20 pace_ms=60]]', timeout=LIMIT_S)
                assert f"answer {number}.{turn}" in (result.final_response or ""), result
                statuses.append(result.status)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: problems or len(statuses) >= count, LIMIT_S)
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join(LIMIT_S)
        assert problems == []


def test_a_daemon_becomes_another_program_under_turns_that_stream(home: Path, work: Path, tmp_path: Path) -> None:
    options = ("--workers", "2", "--listen-unix", str(tmp_path / "s.sock"), "--json")
    with running("serve", *options, home=home) as program:
        supervisor = json.loads(program.wait_for_line('"launch"', "stdout"))["pid"]
        program.wait_for_line("stop  Ctrl-C")
        with package.connect(name="tester") as codex, streaming(codex, work, 3) as statuses:
            kept = codex.thread_start(cwd=str(work), sandbox="read-only", approval_policy="never")
            kept.run("Say octant-17.")
            started = processes.identify(supervisor)
            counts = []
            for number in range(1, UPGRADES + 1):
                before = of_pool(supervisor)
                done = codex_pool("upgrade", "--self", "--json", limit_s=120.0)
                assert done.returncode == 0, done
                row = json.loads(done.stdout)["codexPool"]
                assert (row["state"], row["upgrades"], row["problem"]) == ("done", number, "")
                assert processes.identify(supervisor) == started
                old = set(before)
                until(lambda: old.isdisjoint(of_pool(supervisor)), LIMIT_S)
                assert sorted(of_pool(supervisor).values()) == sorted(before.values())
                counts.append(descriptors(supervisor))
            assert len({len(each) for each in counts[1:]}) == 1, counts
            rows = status(codex)["workers"]
            assert [(each["state"], each["restarts"]) for each in rows] == [("ready", 0), ("ready", 0)]
            assert "sextant-18" in (kept.run("Say sextant-18.").final_response or "")
            read = codex.client.request("thread/read", {"threadId": kept.id, "includeTurns": True})
            assert "octant-17" in str(read) and len(statuses) > 3
            # What was changed by commands is in force in each program.
            assert codex_pool("pause").returncode == 0
            assert codex_pool("upgrade", "--self", limit_s=120.0).returncode == 0
            assert status(codex)["mode"] == "paused" and codex_pool("resume").returncode == 0
        assert set(statuses) == {"completed"}
        # The parent still ends it, and learns of its end.
        assert program.end(signal.SIGTERM) == 0, program.lines
    assert program.lines["stdout"][-1] == '{"record": "done", "exit_code": 0}'
