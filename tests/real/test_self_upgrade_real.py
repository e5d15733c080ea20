"""Upgrades of codex-pool in a daemon that runs: the same supervisor, other children, and no failed turn."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
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
SOURCE = Path(__file__).parents[2] / "src"


def status(codex: Codex) -> dict[str, Any]:
    found: dict[str, Any] = codex.client.request("pool/status")
    return found


def of_pool(supervisor: int) -> dict[int, str]:
    """The processes of the pool by pid, each with its module, without app-servers and what is below them."""
    found = {}
    for each in processes.descendants(supervisor):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{each.pid}/cmdline").read_bytes().split(b"\0")
            name = next((word.decode() for word in words if word.startswith(b"codex_pool.")), None)
            if name is not None:
                found[each.pid] = name
    return found


def wait_for_new(supervisor: int, before: dict[int, str]) -> None:
    """Wait until each process of a pool was replaced by one of its kind."""

    def are_new() -> bool:
        found = of_pool(supervisor)
        return before.keys().isdisjoint(found) and sorted(found.values()) == sorted(before.values())

    until(are_new, LIMIT_S)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


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
                result = thread.run(
                    f'[[text "it is the answer {number}.{turn}" deltas=15 pace_ms=60]]', timeout=LIMIT_S
                )
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


class Installation:
    """A copy of the packages that a daemon runs from, as those of an installation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("codex_app_server", "codex_pool", "codex_batch", "codex_pool_cli"):
            # With what Python has compiled, as pip leaves it.
            shutil.copytree(SOURCE / name, path / name)

    def write(self, name: str, text: str) -> None:
        """Write a file as an installation does: another file in its place."""
        fresh = self.path / "fresh"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.path / name)

    def become(self, version: str) -> None:
        """Install another version of the same."""
        name = "codex_pool/__init__.py"
        text = (self.path / name).read_text(encoding="utf-8")
        self.write(name, re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', text))


def test_a_daemon_becomes_other_versions_under_turns_that_stream(
    home: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Installation(tmp_path / "installed")
    monkeypatch.setenv("PYTHONPATH", str(installed.path))
    options = ("--workers", "2", "--listen-unix", str(tmp_path / "s.sock"), "--json")
    with running("serve", *options, home=home) as program:
        supervisor = json.loads(program.wait_for_line('"launch"', "stdout"))["pid"]
        program.wait_for_line("stop  Ctrl-C")
        with package.connect(name="tester") as codex, streaming(codex, work, 3) as statuses:
            kept = codex.thread_start(cwd=str(work), sandbox="read-only", approval_policy="never")
            kept.run("Say octant-17.")
            started = processes.identify(supervisor)
            first: list[int] = []
            for number in range(1, UPGRADES + 1):
                before = of_pool(supervisor)
                installed.become(f"0.1.{number}")
                done = codex_pool("upgrade", "--self", "--json", limit_s=120.0)
                assert done.returncode == 0, done
                row = json.loads(done.stdout)["codexPool"]
                assert (row["state"], row["upgrades"], row["problem"]) == ("done", number, "")
                assert row["version"] == f"0.1.{number}" and row["isOutdated"] is False
                assert processes.identify(supervisor) == started
                wait_for_new(supervisor, before)
                first.append(descriptors(supervisor))
                # While a child is being started there are more for a moment.
                until(lambda: descriptors(supervisor) <= first[0], LIMIT_S)
            rows = status(codex)["workers"]
            assert [(each["state"], each["restarts"]) for each in rows] == [("ready", 0), ("ready", 0)]
            assert "sextant-18" in (kept.run("Say sextant-18.").final_response or "")
            read = codex.client.request("thread/read", {"threadId": kept.id, "includeTurns": True})
            assert "octant-17" in str(read) and len(statuses) > 3

            # One that does not start changes nothing.
            loop = (installed.path / "codex_pool/supervisor/loop.py").read_text()
            installed.write("codex_pool/supervisor/loop.py", "raise RuntimeError('half installed')")
            installed.become("0.1.99")
            before = of_pool(supervisor)
            refused = codex_pool("upgrade", "--self", limit_s=120.0)
            assert refused.returncode == 1 and "the daemon goes on with codex-pool 0.1.5" in refused.stderr
            assert "half installed" in "\n".join(program.lines["stderr"])
            assert before.items() <= of_pool(supervisor).items()
            said = codex_pool("status").stdout
            assert "upgrade of codex-pool has failed" in said and "another codex-pool is installed" in said

            # What was changed by commands is in force in the next program.
            installed.write("codex_pool/supervisor/loop.py", loop)
            assert codex_pool("pause").returncode == 0
            assert codex_pool("upgrade", "--self", limit_s=120.0).returncode == 0
            assert status(codex)["mode"] == "paused" and codex_pool("resume").returncode == 0
        assert set(statuses) == {"completed"}
        # The parent still ends it, and learns of its end.
        assert program.end(signal.SIGTERM) == 0, program.lines
    assert program.lines["stdout"][-1] == '{"record": "done", "exit_code": 0}'


def test_an_upgrade_stops_at_the_first_process_that_does_not_start(
    home: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Installation(tmp_path / "installed")
    monkeypatch.setenv("PYTHONPATH", str(installed.path))
    with running("serve", "--workers", "2", "--json", home=home) as program:
        supervisor = json.loads(program.wait_for_line('"launch"', "stdout"))["pid"]
        program.wait_for_line("stop  Ctrl-C")
        with package.connect(name="tester") as codex:
            thread = codex.thread_start(cwd=str(work), sandbox="read-only")
            before = of_pool(supervisor)

            # What any of its processes would load is loaded first.
            name = "codex_pool/broker/core.py"
            text = (installed.path / name).read_text()
            installed.write(name, "raise RuntimeError('half installed')")
            refused = codex_pool("upgrade", "--self", limit_s=120.0)
            assert refused.returncode == 1 and "codex_pool.broker.loop" in refused.stderr, refused
            assert before.items() <= of_pool(supervisor).items()
            installed.write(name, text)

            # A worker that ends at its start: the ones of before go on.
            name = "codex_pool/worker/__main__.py"
            text = (installed.path / name).read_text()
            installed.write(name, "raise SystemExit('this worker does not start')")
            installed.become("0.1.7")
            failed = codex_pool("upgrade", "--self", limit_s=120.0)
            assert failed.returncode == 1 and "its new worker could not start" in failed.stderr, failed
            assert "upgrade of codex-pool has failed" in codex_pool("status").stdout
            row = status(codex)["codexPool"]
            assert (row["state"], row["version"]) == ("failed", "0.1.7")
            workers = {pid: name for pid, name in before.items() if name == "codex_pool.worker"}
            assert workers.items() <= of_pool(supervisor).items()
            assert "octant-17" in (thread.run("Say octant-17.").final_response or "")
            assert "starts have failed" not in codex_pool("status").stdout

            installed.write(name, text)
            again = codex_pool("upgrade", "--self", limit_s=120.0)
            assert again.returncode == 0, again
            wait_for_new(supervisor, workers | {pid: name for pid, name in before.items() if pid not in workers})
            assert "sextant-18" in (thread.run("Say sextant-18.").final_response or "")
        assert program.end(signal.SIGTERM) == 0, program.lines
