"""`codex-via-pool` in place of codex: for the published SDK, and where there is no pool."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from differential import Server
from openai_codex import Codex, CodexConfig
from programs import environment
from test_bridge_real import Client
from test_pool_real import status

from codex_app_server import AppServerConfig
from codex_app_server.config import find_codex
from codex_pool import Pool, default_endpoint
from codex_pool.bridge import NAME

pytestmark = pytest.mark.real

LIMIT_S = 30.0
COMMAND = str(Path(sys.executable).with_name("codex-via-pool"))


@pytest.fixture
def pool(config: AppServerConfig, tmp_path: Path) -> Iterator[Pool]:
    """The user's daemon."""
    with Pool(2, config, endpoint=default_endpoint(), log_file=tmp_path / "pool.log") as pool:
        yield pool


def run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        env={**environment(None), **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def clients_of(pool: Pool) -> list[str]:
    with pool.connect() as codex:
        return [str(client) for client in status(codex)["clients"]]


def test_the_published_sdk_runs_on_the_pool(pool: Pool, work: Path) -> None:
    with Codex(CodexConfig(codex_bin=COMMAND, cwd=str(work))) as codex:
        assert NAME in clients_of(pool)
        thread = codex.thread_start()
        assert thread.run("[[text 'one two' deltas=2]]").final_response == "one two"
        turn = thread.turn("[[text 'three four' deltas=2]]")
        assert [event.method for event in turn.stream()][-1] == "turn/completed"
        thread.set_name("named")
        assert codex.thread_resume(thread.id).run("[[text again]]").final_response == "again"
        assert thread.id in [each.id for each in codex.thread_list().data]


# A process of its own: this SDK leaves threads behind.
ASYNC_PROGRAM = """
import asyncio, sys
from openai_codex import AsyncCodex, CodexConfig

async def main():
    async with AsyncCodex(CodexConfig(codex_bin=sys.argv[1])) as codex:
        threads = [await codex.thread_start(ephemeral=True) for _ in range(8)]
        runs = (thread.run(f"[[text 'answer {number}']]") for number, thread in enumerate(threads))
        print(*(result.final_response for result in await asyncio.gather(*runs)), sep="\\n")

asyncio.run(main())
"""


def test_the_published_asyncio_sdk_runs_on_the_pool(pool: Pool, work: Path) -> None:
    command = [sys.executable, "-c", ASYNC_PROGRAM, COMMAND]
    done = subprocess.run(
        command, env=environment(None), cwd=work, capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    assert done.stdout.splitlines() == [f"answer {number}" for number in range(8)]
    with pool.connect() as codex:
        assert status(codex)["turns"]["completed"] == 8


def test_overrides_of_threads_are_given_to_each_thread(pool: Pool, work: Path) -> None:
    arguments = ["-c", 'model="their-model"', "-c", "sandbox_mode=workspace-write", "app-server"]
    server = Server([COMMAND, *arguments], home=work, work=work, env=environment(None))
    try:
        client = Client(server)
        started = client.request("thread/start")
        assert (started["model"], started["sandbox"]["type"]) == ("their-model", "workspaceWrite")
        assert client.request("thread/start", model="mine", sandbox="read-only")["model"] == "mine"
        client.ended(client.turn(started["thread"]["id"], "hello"))
        resumed = client.request("thread/resume", threadId=started["thread"]["id"])
        assert resumed["sandbox"]["type"] == "workspaceWrite"
    finally:
        assert server.close() == 0


def test_without_a_pool_it_is_the_real_codex(home: Path) -> None:
    version = subprocess.run([find_codex(), "--version"], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, version.stdout, "")
    done = run("app-server", env={"CODEX_HOME": str(home)})
    assert done.returncode == 0
    assert done.stderr.startswith("codex-via-pool: no pool at ipc://") and f"running {find_codex()}" in done.stderr
    done = run("app-server", "--enable", "apps", "--no-such-option")
    assert "--enable apps, --no-such-option is of one process" in done.stderr and done.returncode == 2


def test_a_pool_that_does_not_answer_is_given_up_after_a_second(home: Path) -> None:
    path = Path(default_endpoint().removeprefix("ipc://"))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        began = time.monotonic()
        done = run("app-server", env={"CODEX_HOME": str(home)})
        assert done.returncode == 0 and "no answer within 1 s" in done.stderr and "running" in done.stderr
        assert time.monotonic() - began < 8.0
    path.unlink()


def test_another_home_than_the_one_of_the_pool_is_not_passed_over(pool: Pool, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    done = run("app-server", env={"CODEX_HOME": str(other)})
    assert f"CODEX_HOME is {other}, and the pool's is " in done.stderr and done.returncode == 0
    named = run("app-server", env={"CODEX_HOME": str(other), "CODEX_POOL_ENDPOINT": pool.endpoint})
    assert (named.returncode, named.stderr) == (0, "")


def test_it_never_runs_itself(tmp_path: Path) -> None:
    for name in ("codex", "link"):
        (tmp_path / name).symlink_to(COMMAND)
    done = run("--version", env={"CODEX_POOL_CODEX_BIN": str(tmp_path / "link")})
    assert done.returncode == 126 and "which is this command" in done.stderr
    loop = tmp_path / "loop"
    loop.write_text(f'#!/bin/sh\nexec {COMMAND} "$@"\n')
    loop.chmod(0o755)
    done = run("--version", env={"CODEX_POOL_CODEX_BIN": str(loop)})
    assert done.returncode == 126 and "has led back here 4 times" in done.stderr
    done = run("--version", env={"CODEX_POOL_CODEX_BIN": str(tmp_path / "none")})
    assert done.returncode == 126 and f"codex binary not found at {tmp_path}/none" in done.stderr


def test_a_codex_on_path_is_found_where_no_runtime_package_is_installed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        place.mkdir()
    (first / "codex").symlink_to(COMMAND)
    shutil.copy("/bin/echo", second / "codex")
    # A runtime package that cannot be imported.
    (tmp_path / "codex_cli_bin.py").write_text("raise ImportError\n")
    env = {"PATH": f"{first}{os.pathsep}{second}", "PYTHONPATH": str(tmp_path)}
    done = run("exec", "hello", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "exec hello\n", "")
    done = run("exec", "hello", env={**env, "PATH": str(first)})
    assert done.returncode == 126 and "or put codex on PATH" in done.stderr
