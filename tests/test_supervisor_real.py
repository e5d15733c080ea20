"""The supervisor on real processes: what dies is replaced, what is worn is recycled, what is left is swept."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import AppServerConfig, Codex
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool, PoolStartError, processes

pytestmark = pytest.mark.real

LIMIT_S = 20.0
GONE_LIMIT_S = 10.0


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = LIMIT_S) -> Any:
    """Ask again until it is true; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def rows(codex: Codex) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = codex.client.request("pool/status")["workers"]
    return workers


def sleeping(mark: str) -> list[int]:
    """Pids of the `sleep` commands with this argument, wherever in the system."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0") if entry.isdigit() else []
            if mark.encode() in words and b"sleep" in words[0] and processes.identify(int(entry)):
                found.append(int(entry))
    return found


def broker_of(pool: Pool) -> int:
    """The pid of its broker; 0 if there is none at the moment."""
    assert pool.supervisor_pid is not None
    for process in processes.descendants(pool.supervisor_pid):
        with contextlib.suppress(OSError):
            if b"codex_pool.broker" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                return process.pid
    return 0


@pytest.fixture
def danger(tmp_path: Path, model: LoopbackModel, work: Path) -> AppServerConfig:
    """A home in which tool commands are not sandboxed: they have sessions of their own, and outlive an app-server."""
    home = tmp_path / "danger"
    write_loopback_home(home, model.base_url, sandbox_mode="danger-full-access")
    return AppServerConfig(cwd=work, env={"CODEX_HOME": str(home)})


@pytest.fixture
def endpoint(runtime_directory: Path) -> str:
    return f"ipc://{runtime_directory / 'pool' / 's.sock'}"


@contextlib.contextmanager
def running(config: AppServerConfig, log: Path, workers: int = 2, **options: Any) -> Iterator[Pool]:
    """A pool whose log is shown when the test fails."""
    try:
        with Pool(workers, config, log_file=log, **options) as pool:
            yield pool
    except BaseException:
        print(log.read_text() if log.exists() else "no log")
        raise


def test_a_broker_that_cannot_start_is_given_up_with_the_reason(
    config: AppServerConfig, endpoint: str, tmp_path: Path
) -> None:
    """Somebody has put a directory where the workers' socket should be."""
    in_the_way = Path(endpoint.removeprefix("ipc://")).with_suffix(".w") / "x"
    in_the_way.mkdir(parents=True)
    with pytest.raises(PoolStartError, match=r"the broker has died more than 5 times within 10 s.*exit code 1"):
        Pool(1, config, endpoint=endpoint, log_file=tmp_path / "log").start()
    assert (tmp_path / "log").read_text().count("Address already in use") <= 6, "no storm of restarts"


def test_what_a_killed_supervisor_could_not_take_along_is_swept_by_the_next_start(
    danger: AppServerConfig, endpoint: str, tmp_path: Path
) -> None:
    """A worker that is stopped does not see its death pipe, and all that it runs lives on with it."""
    mark = f"1000.{secrets.randbelow(10**9):09}"
    first = Pool(1, danger, endpoint=endpoint, log_file=tmp_path / "first")
    with first, first.connect() as codex:
        codex.thread_start().turn(f'[[tool_call "setsid sleep {mark} & sleep {mark}"]] [[text "never"]]')
        wait_until(lambda: len(sleeping(mark)) == 2, "the commands run")
        (row,) = rows(codex)
        assert first.supervisor_pid is not None
        os.kill(row["pid"], signal.SIGSTOP)
        os.kill(first.supervisor_pid, signal.SIGKILL)
        assert first.wait_ended(LIMIT_S)
    left = [row["pid"], row["appServerPid"], *sleeping(mark)]
    assert len(left) == 4 and all(map(processes.identify, left)), "this is what has to be swept"
    # A pool on another endpoint leaves them alone.
    with running(danger, tmp_path / "other", workers=1):
        assert all(map(processes.identify, left))
    with running(danger, tmp_path / "second", workers=1, endpoint=endpoint) as second, second.connect() as codex:
        assert not any(map(processes.identify, left))
        said = f"swept what an earlier pool on this endpoint has left: worker {row['worker']} (pid {row['pid']})"
        assert said in (tmp_path / "second").read_text()
        assert codex.thread_start().run("hello").status == "completed"


def test_homes_stay_warm_and_are_no_more_than_are_needed(config: AppServerConfig, home: Path) -> None:
    for _ in range(3):
        with Pool(2, config) as pool, pool.connect() as codex:
            assert codex.thread_start().run("hello").status == "completed"
    homes = sorted(path for path in (home / "codex-pool" / "sqlite").iterdir())
    assert [path.name for path in homes] == ["0", "1"] and all(list(path.glob("*.sqlite")) for path in homes)


def test_a_broker_that_is_stopped_is_replaced(config: AppServerConfig, tmp_path: Path) -> None:
    with running(config, tmp_path / "log", workers=1) as pool:
        broker = broker_of(pool)
        os.kill(broker, signal.SIGSTOP)
        wait_until(lambda: broker_of(pool) not in (0, broker), "there is another broker", 30)
        assert processes.identify(broker) is None
        assert f"killing the broker (pid {broker}): it has not answered for 10 s" in (tmp_path / "log").read_text()
