"""Upgrades of codex in a daemon that runs, with turns under way: to one that works, and to ones that do not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import codex_cli_bin
import pytest
from programs import Program, codex_pool, running, started
from waiting import until

import codex_pool as package
from codex_app_server import Codex
from codex_app_server.generated.since import OLDEST
from codex_pool.runtime import processes

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240)]

LIMIT_S = 60.0
CODEX = Path(str(codex_cli_bin.bundled_codex_path()))


def status(codex: Codex) -> dict[str, Any]:
    found: dict[str, Any] = codex.client.request("pool/status")
    return found


def upgrade(*arguments: str) -> tuple[int, str, str]:
    done = codex_pool("upgrade", *arguments, limit_s=180.0)
    return done.returncode, done.stdout, done.stderr


def binaries_of(codex: Codex) -> set[str]:
    """The files that the app-servers of the pool were started from."""
    rows = status(codex)["workers"]
    return {Path(f"/proc/{row['appServerPid']}/cmdline").read_bytes().split(b"\0")[0].decode() for row in rows}


def script(path: Path, text: str) -> Path:
    """A program for a shell at `path`."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def copy_of_codex(path: Path) -> Path:
    """The same codex as another file, by a link where that is possible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(CODEX, path)
    except OSError:
        shutil.copy2(CODEX, path)
    return path


class Busy:
    """Threads of a client that run turn after turn, until the end."""

    def __init__(self, codex: Codex, work: Path, count: int) -> None:
        self.statuses: list[str] = []
        self.problems: list[BaseException] = []
        self._over = threading.Event()
        self._codex = codex
        self._work = work
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def _run(self, number: int) -> None:
        try:
            thread = self._codex.thread_start(cwd=str(self._work), sandbox="read-only")
            turn = 0
            while not self._over.is_set():
                turn += 1
                result = thread.run(f'[[text "answer {number}.{turn}" deltas=6 pace_ms=60]]', timeout=LIMIT_S)
                assert f"answer {number}.{turn}" in (result.final_response or "")
                self.statuses.append(result.status)
        except BaseException as error:
            self.problems.append(error)

    def __enter__(self) -> Busy:
        for thread in self.threads:
            thread.start()
        until(lambda: self.problems or len(self.statuses) >= len(self.threads), LIMIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self.threads:
            thread.join(LIMIT_S)


@pytest.fixture
def daemon(home: Path) -> Callable[..., Any]:
    """Starts a daemon with two workers, and connects a client."""

    @contextmanager
    def start(*options: str) -> Iterator[tuple[Program, Codex]]:
        with running("serve", "--workers", "2", *options, home=home) as program:
            program.wait_for_line("stop  Ctrl-C")
            with package.connect(name="tester") as codex:
                yield program, codex
            assert program.end(signal.SIGTERM) == 0, program.lines

    return start


def test_turns_go_on_while_codex_is_replaced_and_threads_keep_history_and_sandbox(
    daemon: Callable[..., Any], home: Path, work: Path, tmp_path: Path
) -> None:
    other = copy_of_codex(tmp_path / "other" / "codex")
    with daemon() as (_, codex):
        thread = codex.thread_start(cwd=str(work), sandbox="read-only", approval_policy="never")
        assert "octant-17" in (thread.run("Say octant-17.").final_response or "")
        before = {row["worker"] for row in status(codex)["workers"]}
        stored = {path: path.read_bytes() for path in (home / "sessions").rglob("*.jsonl")}
        with Busy(codex, work, 4) as busy:
            code, out, err = upgrade("--codex-bin", str(other), "--probe-turn")
            assert code == 0, (out, err)
        assert busy.problems == [] and set(busy.statuses) == {"completed"}
        assert f"all workers run {other} (codex 0.163.0)" in out and "is tried out" in out
        assert binaries_of(codex) == {str(other)}
        rows = status(codex)
        assert before.isdisjoint(row["worker"] for row in rows["workers"])
        assert [row["restarts"] for row in rows["workers"]] == [0, 0]
        assert {row["codexVersion"] for row in rows["workers"]} == {"0.163.0"}
        assert rows["upgrade"]["state"] == "done" and rows["upgrade"]["replaced"] == 2
        # The canary has left nothing, and has changed no thread of the user's.
        assert list((home / "codex-pool" / "canary").iterdir()) == []
        assert all(path.read_bytes().startswith(content) for path, content in stored.items())
        assert "octant-17" in str(codex.client.request("thread/read", {"threadId": thread.id, "includeTurns": True}))
        assert "sextant-18" in (thread.run("Say sextant-18.").final_response or "")
        thread.run('[[tool_call "touch forbidden"]] [[text "tried"]]')
        assert not (work / "forbidden").exists()
        # Again it changes nothing.
        code, out, err = upgrade("--codex-bin", str(other))
        assert code == 0 and "run " + str(other) + " already" in out
        code, out, err = upgrade()
        assert code == 0 and "already" in out
        # The same path with another file.
        fresh = other.with_name("fresh")
        shutil.copy2(CODEX, fresh)
        fresh.replace(other)
        workers = {row["worker"] for row in status(codex)["workers"]}
        code, out, err = upgrade("--json")
        assert code == 0 and json.loads(out)["upgrade"]["state"] == "done"
        assert workers.isdisjoint(row["worker"] for row in status(codex)["workers"])


DIES_AT_THREAD_LIST = """
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "initialize":
        home, agent = os.environ["CODEX_HOME"], "codex_pool/0.163.0 (test)"
        result = {"userAgent": agent, "codexHome": home, "platformFamily": "unix", "platformOs": "linux"}
    elif message.get("method") == "config/read":
        result = {"config": {}, "origins": {}}
    elif "id" in message:
        sys.exit("thread/list is too much")
    else:
        continue
    print(json.dumps({"id": message["id"], "result": result}), flush=True)
"""


def test_binaries_that_do_not_work_are_refused_before_any_worker_has_them(
    daemon: Callable[..., Any], home: Path, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "dies.py").write_text(DIES_AT_THREAD_LIST)
    version = 'if [ "$1" = --version ]; then echo codex-cli 0.163.0; exit; fi'
    dies = script(tmp_path / "dies", f'{version}\nexec {sys.executable} {tmp_path / "dies.py"} "$@"')
    cannot = script(tmp_path / "cannot", f"{version}\necho no libc here >&2; exit 9")
    old = script(tmp_path / "old", "echo codex-cli 0.120.1")
    other = script(tmp_path / "other", "exit 4")
    plain = tmp_path / "plain"
    plain.write_text("no program")
    cases = {
        dies: ["could not answer thread/list", "thread/list is too much"],
        cannot: ["could not start", "no libc here"],
        old: ["it is codex 0.120.1", f"{OLDEST} is the oldest version that is supported"],
        other: ["is not codex, or cannot run here", "exit code 4"],
        plain: ["is not executable"],
        tmp_path / "missing": ["is not there"],
    }
    with daemon() as (program, codex):
        thread = codex.thread_start(cwd=str(work))
        thread.run("Say octant-17.")
        before = [row["worker"] for row in status(codex)["workers"]]
        for path, reasons in cases.items():
            code, out, err = upgrade("--codex-bin", str(path))
            assert code == 1 and err.count("\n") <= 3, (out, err)
            assert all(reason in err for reason in reasons), (path, err)
            assert [row["worker"] for row in status(codex)["workers"]] == before
        row = status(codex)["upgrade"]
        assert row["state"] == "failed" and row["codexBin"] == str(other) and row["replaced"] == 0
        assert f"upgrade: {other} has failed" in codex_pool("status").stdout
        assert any("upgrade to" in line and "thread/list is too much" in line for line in program.lines["stderr"])
        assert "octant-19" in (thread.run("Say octant-19.").final_response or "")
        assert list((home / "codex-pool" / "canary").iterdir()) == []
    assert not [name for name in os.listdir(tmp_path) if name.startswith("codex")]


def test_a_binary_that_only_the_second_worker_cannot_start_is_taken_back(
    daemon: Callable[..., Any], work: Path, tmp_path: Path
) -> None:
    """The canary and the first worker start with it; from then on it does not start any more."""
    starts = tmp_path / "starts"
    fickle = script(
        tmp_path / "fickle",
        f'case "$*" in *app-server*) echo x >> {starts}; [ $(wc -l < {starts}) -le 2 ] || exit 7;; esac\n'
        f'exec {CODEX} "$@"',
    )
    with daemon() as (_, codex):
        with Busy(codex, work, 3) as busy:
            code, out, err = upgrade("--codex-bin", str(fickle))
            assert code == 1, (out, err)
        assert busy.problems == [] and set(busy.statuses) == {"completed"}
        assert "its new worker could not start" in err and "exit code 7" in err and f"back on {CODEX}" in err
        row = status(codex)["upgrade"]
        assert row["state"] == "failed" and row["replaced"] == 0
        rows = until(lambda: (found := status(codex)["workers"]) and all("worker" in each for each in found) and found)
        assert [(each["failedStarts"], each["restarts"]) for each in rows] == [(0, 0), (0, 0)]
        assert binaries_of(codex) == {str(CODEX)}


def test_an_upgrade_goes_on_when_the_broker_dies(daemon: Callable[..., Any], work: Path, tmp_path: Path) -> None:
    other = copy_of_codex(tmp_path / "other" / "codex")
    slow = script(tmp_path / "slow", f'[ "$1" != --version ] || sleep 2\nexec {other} "$@"')
    with daemon() as (program, codex):
        with Busy(codex, work, 3) as busy:
            command = [sys.executable, "-m", "codex_pool_cli", "upgrade", "--codex-bin", str(slow)]
            with started(command) as asked:
                asked.wait_for_line("is tried out", "stdout")
                for _ in range(2):
                    os.kill(broker_of(supervisor_of(program)), signal.SIGKILL)
                    until(lambda: status(codex).get("upgrade"))
                assert asked.wait(LIMIT_S) == 0, asked.lines
            assert "all workers run" in asked.lines["stdout"][-1]
        assert busy.problems == [] and set(busy.statuses) == {"completed"}
        assert status(codex)["upgrade"]["state"] == "done"
        assert binaries_of(codex) == {str(other)}


def supervisor_of(program: Program) -> int:
    return next(
        each.pid for each in processes.descendants(program.process.pid) if _runs(each.pid, b"codex_pool.supervisor")
    )


def broker_of(supervisor: int) -> int:
    return until(
        lambda: next((p.pid for p in processes.descendants(supervisor) if _runs(p.pid, b"codex_pool.broker")), 0)
    )


def _runs(pid: int, module: bytes) -> bool:
    try:
        return module in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
