"""The supervisor on real processes: what dies is replaced, what is worn is recycled, what is left is swept."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import AppServerConfig, Codex
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool, PoolStartError
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

# What a cell of the chaos suite or a test beside it shows as well, at length.
LONG = pytest.mark.chaos

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


def test_a_broker_that_cannot_listen_is_a_failed_start_with_the_reason(
    config: AppServerConfig, endpoint: str, tmp_path: Path
) -> None:
    """Somebody has put a directory where the workers' socket should be."""
    in_the_way = Path(endpoint.removeprefix("ipc://")).with_suffix(".w") / "x"
    in_the_way.mkdir(parents=True)
    in_the_way.parent.parent.chmod(0o700)
    with pytest.raises(PoolStartError, match=f"{in_the_way.parent} exists and is not a socket; move it away"):
        Pool(1, config, endpoint=endpoint, log_file=tmp_path / "log").start()
    assert in_the_way.is_dir()


def test_nothing_outlives_a_killed_supervisor_by_more_than_10_s(
    danger: AppServerConfig, endpoint: str, tmp_path: Path
) -> None:
    """Not its broker, its workers, an old worker that drains, their app-servers, nor what tools have started."""
    marks = [f"300.{secrets.randbelow(10**9):09}" for _ in range(3)]
    command = f"setsid sleep {marks[0]} & (sleep {marks[1]} &) ; sleep {marks[2]}"
    pool = Pool(2, danger, endpoint=endpoint, log_file=tmp_path / "log", recycle_turns=1)
    with pool, pool.connect() as codex:
        # Of three threads on two workers, one has the worker of the first for company.
        first, *others = [codex.thread_start() for _ in range(3)]
        turn = first.turn(f'[[tool_call "{command}"]] [[text "never"]]')
        worker = next(turn.stream()).params["worker"]
        wait_until(lambda: all(map(sleeping, marks)), "the commands run")
        for other in others:
            other.run("hello")

        def drains() -> bool:
            return worker in [row["worker"] for row in codex.client.request("pool/status")["draining"]]

        wait_until(drains, "the worker drains, the commands below it")
        assert pool.supervisor_pid is not None
        supervisor = pool.supervisor_pid
        wait_until(lambda: len(processes.descendants(supervisor)) >= 1 + 2 * 3 + 3, "three workers, and the commands")
        below = processes.descendants(supervisor)
        os.kill(supervisor, signal.SIGKILL)
        wait_until(
            lambda: not [process for process in below if processes.identify(process.pid) == process],
            "all are gone",
            GONE_LIMIT_S,
        )
        assert not any(map(sleeping, marks))
        assert pool.wait_ended(LIMIT_S) and pool.failure == "its supervisor died"


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


@pytest.mark.slow
@pytest.mark.parametrize("kills", [pytest.param(1, marks=LONG), 3])
def test_a_broker_is_killed_and_its_turns_end_by_themselves(
    kills: int, config: AppServerConfig, model: LoopbackModel, tmp_path: Path
) -> None:
    """Every delta arrives once, turns that waited for room run, and nothing was replaced but the broker."""
    with running(config, tmp_path / "log", turns_per_worker=4) as pool:
        clients = [pool.connect(name=f"client {number}") for number in range(3)]
        try:
            before = rows(clients[0])
            texts = {number: " ".join([secrets.token_hex(4)] * 40) for number in range(12)}
            collected: dict[int, str] = {}

            def read(number: int) -> None:
                thread, parts = clients[number % 3].thread_start(), []
                # Eight run at once, the others wait.
                for notification in thread.turn(f'[[text "{texts[number]}" deltas=40 pace_ms=100]]').stream():
                    if notification.method == "item/agentMessage/delta":
                        parts.append(notification.params["delta"])
                    if notification.method == "turn/completed":
                        parts.append(f" {notification.params['turn']['status']}")
                collected[number] = "".join(parts)

            readers = [threading.Thread(target=read, args=(number,)) for number in texts]
            for reader in readers:
                reader.start()
            for _ in range(kills):
                broker = wait_until(lambda: broker_of(pool), "there is a broker")
                wait_until(lambda: sum(record.deltas_sent > 0 for record in model.active) > 3, "turns run")
                os.kill(broker, signal.SIGKILL)
                wait_until(lambda broker=broker: broker_of(pool) not in (0, broker), "there is another")
                wait_until(lambda: all(row["state"] == "ready" for row in rows(clients[0])), "all have registered", 40)
            for reader in readers:
                reader.join(60)
            assert collected == {number: f"{text} completed" for number, text in texts.items()}
            after = rows(clients[0])
            assert [row["worker"] for row in after] == [row["worker"] for row in before]
            assert all(row["restarts"] == 0 for row in after) and pool.failure is None
            assert clients[1].thread_start().run("and on").status == "completed"
        finally:
            for client in clients:
                client.close()


@LONG
def test_a_broker_that_is_stopped_is_replaced(config: AppServerConfig, tmp_path: Path) -> None:
    with running(config, tmp_path / "log", workers=1) as pool:
        broker = broker_of(pool)
        os.kill(broker, signal.SIGSTOP)
        wait_until(lambda: broker_of(pool) not in (0, broker), "there is another broker", 30)
        assert processes.identify(broker) is None
        assert f"killing the broker (pid {broker}): it has not answered for 10 s" in (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "options",
    [pytest.param({"recycle_age_s": 1.0}, id="age"), pytest.param({"recycle_turns": 10}, id="turns", marks=LONG)],
)
def test_workers_are_recycled_under_load_and_no_turn_fails(
    options: dict[str, Any], config: AppServerConfig, tmp_path: Path
) -> None:
    """Threads on disk move, those in memory cannot: they stay with the old worker until their client has gone."""
    enough = threading.Event()
    done: list[int] = []

    def client(pool: Pool, number: int) -> None:
        with pool.connect(name=f"client {number}") as codex:
            stored = codex.thread_start()
            count = 0
            while not enough.is_set():
                with pool.connect(name=f"short {number}") as short:
                    ephemeral = short.thread_start(ephemeral=True)
                    for thread in (stored, ephemeral, stored, ephemeral):
                        mark = f"{number}-{count}-{secrets.token_hex(4)}"
                        result = thread.run(f'[[text "{mark}" deltas=3 pace_ms=20]]', timeout=60)
                        assert result.final_response == mark
                        count += 1
            turns = stored.read(include_turns=True).thread.turns
            assert len(turns) == count // 2, "the history has come along"
            done.append(count)

    with running(config, tmp_path / "log", turns_per_worker=4, **options) as pool, pool.connect() as codex:
        failures: list[BaseException] = []

        def guarded(number: int) -> None:
            try:
                client(pool, number)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            wait_until(
                lambda: failures or sorted(row["recycles"] for row in rows(codex)) >= [1, 2], "three recycled", 90
            )
        finally:
            enough.set()
            for thread in threads:
                thread.join(60)
        if failures:
            raise failures[0]
        assert len(done) == 4
        status = codex.client.request("pool/status")
        ended = {kind: status["turns"][kind] for kind in ("completed", "failed", "interrupted", "lost")}
        assert ended == {"completed": sum(done), "failed": 0, "interrupted": 0, "lost": 0}
        assert all(row["restarts"] == 0 for row in status["workers"])


@pytest.mark.slow
def test_a_worker_whose_app_server_grows_too_large_is_recycled(
    config: AppServerConfig, home: Path, tmp_path: Path
) -> None:
    """The thread that it holds lives on with its name, and the databases stay warm."""
    with (
        running(config, tmp_path / "log", workers=1, recycle_memory_bytes=1024**2) as pool,
        pool.connect() as codex,
    ):
        thread = codex.thread_start()
        thread.run("hello")
        thread.set_name("my name")
        before = rows(codex)[0]["worker"]
        row = wait_until(lambda: [row for row in rows(codex) if row["recycles"]], "it is recycled", 30)[0]
        assert row["worker"] != before and row["restarts"] == 0
        assert thread.read().thread.name == "my name"
        assert thread.run("again").status == "completed"
        homes = sorted((home / "codex-pool" / "sqlite").iterdir())
        assert len(homes) == 2 and all(list(path.glob("*.sqlite")) for path in homes)
    said = (tmp_path / "log").read_text()
    assert f"recycling {before}, " in said and "the limit is 1048576" in said
