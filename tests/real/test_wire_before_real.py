"""The wire of before: processes of the last commit that spoke it, together with those of today.

The packages of that commit come out of the repository's own history. With each change of the wire BEFORE becomes the
last commit that spoke the one before.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool, running
from waiting import until

import codex_pool as package
from codex_pool.runtime import processes

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
BEFORE = "754ac5999092ce93a5c55c0496d6d777e9a21d60"
LIMIT_S = 60.0
TURN = """
import codex_pool, sys
assert codex_pool.__file__.startswith(sys.argv[1]), codex_pool.__file__
with codex_pool.connect() as codex:
    print(codex.thread_start().run("Say octant-17.").final_response)
"""


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A directory with the packages of BEFORE."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", BEFORE, "src"]
    done = subprocess.run(command, capture_output=True, timeout=30)
    assert done.returncode == 0, (
        f"commit {BEFORE} is not in the history of {ROOT}: {done.stderr.decode().strip()}; this test needs a clone "
        "with all commits: git fetch --unshallow"
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(tmp_path / "before", filter="data")
    return tmp_path / "before" / "src"


def test_a_client_of_before_runs_a_turn_on_a_daemon_of_today(before: Path, home: Path, work: Path) -> None:
    with running("serve", "--workers", "1", home=home) as program:
        program.wait_for_line("stop  Ctrl-C")
        done = subprocess.run(
            [sys.executable, "-c", TURN, str(before)],
            env={**os.environ, "PYTHONPATH": str(before)},
            cwd=work,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0 and "octant-17" in done.stdout, done
        assert program.end(signal.SIGTERM) == 0


def test_a_broker_of_today_takes_the_workers_of_before(
    before: Path, home: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a daemon of before under which another version was installed, once its broker dies."""
    monkeypatch.setenv("PYTHONPATH", str(before))
    with running("serve", "--workers", "2", home=home) as program:
        program.wait_for_line("stop  Ctrl-C")
        with package.connect(name="today") as codex:
            thread = codex.thread_start(cwd=str(work), sandbox="read-only")
            assert "octant-17" in (thread.run("Say octant-17.").final_response or "")
            turn = thread.turn('[[text "it is the long answer of before" deltas=20 pace_ms=200]]')
            workers = pids_of(program.process.pid, "codex_pool.worker")
            for name in ("codex_app_server", "codex_pool", "codex_batch", "codex_pool_cli"):
                shutil.rmtree(before / name)
                shutil.copytree(ROOT / "src" / name, before / name)
            (broker,) = pids_of(program.process.pid, "codex_pool.broker")
            os.kill(broker, signal.SIGKILL)
            assert turn.run(timeout=LIMIT_S).final_response == "it is the long answer of before"
            until(lambda: pids_of(program.process.pid, "codex_pool.broker") - {broker}, LIMIT_S)
            assert pids_of(program.process.pid, "codex_pool.worker") == workers
            # Only a broker of today knows the method; the supervisor of before does not know the command.
            answer = codex_pool("upgrade", "--self")
            assert answer.returncode == 1 and "the supervisor does not know the command upgradeSelf" in answer.stderr
            assert "sextant-18" in (thread.run("Say sextant-18.").final_response or "")
        assert program.end(signal.SIGTERM) == 0, program.lines


def pids_of(root: int, module: str) -> set[int]:
    """The processes below `root` that run a module of the pool."""
    found: set[int] = set()
    for each in processes.descendants(root):
        try:
            words: list[Any] = Path(f"/proc/{each.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if module.encode() in words:
            found.add(each.pid)
    return found
