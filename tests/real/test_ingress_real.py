"""The ingress of a real pool dies, and clients with turns under way lose nothing by it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from codex_app_server import AppServerConfig
from codex_app_server.errors import TransportClosedError
from codex_pool import connect
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity
from codex_pool.pool import Pool
from codex_pool.runtime import processes

pytestmark = pytest.mark.real


PACED = "[[text deltas=40 pace_ms=25]]"


def completed(stream: Any) -> None:
    """Read on: nothing is missing, and it ends well."""
    seen = list(stream)
    assert seen[-1].method == "turn/completed" and seen[-1].payload.turn.status.value == "completed", seen[-1]
    assert sum(each.method == "item/agentMessage/delta" for each in seen) >= 30


class House:
    """A pool that listens on TCP, with one key."""

    def __init__(self, config: AppServerConfig, directory: Path, work: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.work, self.log = work, directory / "log"
        self.file = directory / "alice.key"
        store = KeyStore(directory / "keys")
        store.new(Identity(name="alice", cwd_roots=(str(work),)), self.file)
        self.pool = Pool(2, config, listen=self.address, keys=store.directory, log_file=self.log)

    def pid(self, module: str) -> int:
        """Return the pid of the process that runs this module, 0 if there is none."""
        assert self.pool.supervisor_pid is not None
        for process in processes.descendants(self.pool.supervisor_pid):
            try:
                if module.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"):
                    return process.pid
            except OSError:
                continue
        return 0


@pytest.fixture
def house(config: AppServerConfig, tmp_path: Path, work: Path) -> Iterator[House]:
    house = House(config, tmp_path, work)
    with house.pool:
        yield house


def test_turns_go_on_when_the_ingress_is_killed(house: House) -> None:
    broker = house.pid("codex_pool.broker")
    with connect(house.address, key=house.file) as alice, house.pool.connect() as own:
        threads = [alice.thread_start(cwd=str(house.work)) for _ in range(3)]
        for round_ in range(3):
            streams = [thread.turn(PACED).stream() for thread in threads]
            for stream in streams:
                next(stream)
            killed = house.pid("codex_pool.ingress")
            os.kill(killed, signal.SIGKILL)
            at = time.monotonic()
            until(lambda killed=killed: house.pid("codex_pool.ingress") not in (0, killed))
            print(f"round {round_}: another after {time.monotonic() - at:.2f} s")
            for stream in streams:
                completed(stream)
        rows = own.client.request("pool/status")["sessions"]
        assert sorted(row["identity"] for row in rows) == ["", "alice"]
        assert own.thread_start().run("hello").final_response
    # Nobody else has noticed.
    assert house.pid("codex_pool.broker") == broker
    assert "it is replaced in 0.05 s" in house.log.read_text()


def test_the_port_stays_the_pools_while_the_ingress_is_replaced(house: House) -> None:
    killed = house.pid("codex_pool.ingress")
    os.kill(killed, signal.SIGKILL)
    # Whenever it comes it waits, and is not refused.
    with connect(house.address, key=house.file) as alice:
        assert alice.thread_start(cwd=str(house.work)).run("hello").final_response


def test_the_ingress_outlives_a_broker_and_its_clients_go_on(house: House) -> None:
    ingress = house.pid("codex_pool.ingress")
    with connect(house.address, key=house.file) as alice:
        thread = alice.thread_start(cwd=str(house.work))
        assert thread.run("hello").final_response
        stream = thread.turn(PACED).stream()
        next(stream)
        os.kill(house.pid("codex_pool.broker"), signal.SIGKILL)
        completed(stream)
    assert house.pid("codex_pool.ingress") == ingress


def test_clients_hear_that_the_pool_was_stopped(config: AppServerConfig, tmp_path: Path, work: Path) -> None:
    house = House(config, tmp_path, work)
    with house.pool:
        alice = connect(house.address, key=house.file)
        assert alice.thread_start(cwd=str(work)).run("hello").final_response
    try:
        with pytest.raises(TransportClosedError, match="the pool was stopped"):
            alice.thread_start(cwd=str(work))
    finally:
        alice.close()


@pytest.mark.chaos
def test_an_ingress_that_hangs_is_replaced(house: House) -> None:
    stopped = house.pid("codex_pool.ingress")
    with connect(house.address, key=house.file) as alice:
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: house.pid("codex_pool.ingress") not in (0, stopped))
    with connect(house.address, key=house.file) as alice:
        assert alice.thread_start(cwd=str(house.work)).run("hello").final_response


def test_nothing_is_left_of_it(config: AppServerConfig, tmp_path: Path, work: Path) -> None:
    house = House(config, tmp_path, work)
    house.pool.start()
    ingress = house.pid("codex_pool.ingress")
    supervisor = house.pool.supervisor_pid
    assert supervisor is not None and ingress
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{ingress}").exists() or processes.identify(ingress) is None)
    house.pool.close()
    # The port is free at once.
    with Pool(1, config, listen=house.address, keys=tmp_path / "keys") as pool, pool.connect() as own:
        assert own.thread_start().run("hello").final_response
