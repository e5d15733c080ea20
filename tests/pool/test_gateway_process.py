"""The gateway as a process of a pool on null app-servers: many sessions, keys that are revoked, slow clients, hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from line_gateway import LineClient, line_gateway
from waiting import until

from codex_app_server import AppServerConfig
from codex_app_server.testing import null_app_server
from codex_pool import Pool, PoolStartError
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity
from codex_pool.runtime import processes


class House:
    """A pool with a gateway, and keys."""

    def __init__(self, directory: Path, path: Path) -> None:
        self.path, self.directory, self.log = path, directory, directory / "log"
        self.store = KeyStore(directory / "keys")
        self.store.server()
        self._scenarios = 0

    def pool(self, config: AppServerConfig) -> Pool:
        self.made = Pool(2, config, log_file=self.log, turns_per_worker=64)
        return self.made

    def key(self, name: str) -> str:
        return self.store.new(Identity(name=name, cwd_roots=("/",)), self.directory / f"{name}.key").public_key

    def pid(self, what: bytes) -> int:
        assert self.made.supervisor_pid is not None
        for process in processes.descendants(self.made.supervisor_pid):
            try:
                if what in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"):
                    return process.pid
            except OSError:
                continue
        return 0

    def client(self, **options: Any) -> LineClient:
        client = LineClient(self.path, **options)
        client.initialize()
        return client


@pytest.fixture
def house(tmp_path: Path, runtime_directory: Path) -> Iterator[House]:
    path = runtime_directory / "gateway.sock"
    house = House(tmp_path, path)
    with line_gateway(path, keys=house.store.directory):
        yield house
    print(house.log.read_text())


def start(client: LineClient, thread_id: str) -> str:
    answer = client.call("turn/start", threadId=thread_id, input=[{"type": "text", "text": "x"}])
    turn_id: str = answer["turn"]["id"]
    return turn_id


def test_fifty_clients_lose_nothing_when_the_broker_and_their_link_are_killed(house: House) -> None:
    """Every client gets its turn's lines once and in order; nobody's connection ends with the broker."""
    with house.pool(null_app_server(deltas=60, pace_ms=40, text="$NOW ")) as pool:
        clients = [house.client(name=f"c{number}") for number in range(50)]
        threads = [client.call("thread/start")["thread"]["id"] for client in clients]
        turns = [start(client, thread_id) for client, thread_id in zip(clients, threads, strict=True)]
        clients[0].wait(lambda each: each.get("method") == "item/agentMessage/delta")
        os.kill(house.pid(b"codex_pool.broker"), signal.SIGKILL)
        for client, turn_id in zip(clients, turns, strict=True):
            assert client.completed(turn_id)["status"] == "completed"
            sent = [
                float(each["params"]["delta"])
                for each in client.messages
                if each.get("method") == "item/agentMessage/delta"
            ]
            assert len(sent) == 60 and sent == sorted(sent) and len(set(sent)) == 60
        with pool.connect() as own:
            status = own.client.request("pool/status")
            assert status["gateway"]["sessions"] == 50 and status["gateway"]["restarts"] == 0
            for client in clients:
                client.socket.close()
            until(lambda: own.client.request("pool/status")["gateway"]["sessions"] == 0)


def test_revoking_a_key_reaches_each_of_its_sessions_and_no_other(house: House) -> None:
    alice, bob = house.key("alice"), house.key("bob")
    with house.pool(null_app_server(deltas=3)) as pool, pool.connect() as own:
        revoked = [house.client(key=alice) for _ in range(3)]
        kept = [house.client(key=bob), house.client()]
        rows = own.client.request("pool/status")["sessions"][1:]
        assert [row["identity"] for row in rows] == ["alice", "alice", "alice", "bob", ""]
        house.store.revoke("alice")
        for client in revoked:
            ended = client.wait_ended()
            assert ended is not None and "has been revoked" in ended["ended"] and not ended["again"]
        for client in kept:
            assert client.call("pool/status")["clients"]
        (refused,) = [LineClient(house.path)]
        refused.write(b"key " + alice.encode())
        assert refused.wait_ended() is None, "the listener lets it in no more"


def test_a_client_with_a_key_sees_its_own_threads_only(house: House) -> None:
    with house.pool(null_app_server(deltas=3)), house.client() as owner:
        thread_id = owner.call("thread/start")["thread"]["id"]
        # A key that was made a moment ago is let in.
        with house.client(key=house.key("alice")) as alice:
            refused = alice.answer(alice.begin("thread/read", threadId=thread_id))
            assert refused["error"]["code"] == -32012, refused
            assert alice.call("thread/list")["data"] == []


def test_a_client_that_reads_nothing_holds_up_nobody(house: House) -> None:
    """A turn of 60 MB waits in the worker; its client gets what was not left out, in order, once it reads."""
    text = "x" * 4000
    with house.pool(null_app_server(deltas=10_000, text=text)), house.client() as slow, house.client() as other:
        thread_id, other_id = (client.call("thread/start")["thread"]["id"] for client in (slow, other))
        slow.begin("turn/start", threadId=thread_id, input=[{"type": "text", "text": "x"}])
        turn_id = start(other, other_id)
        assert other.completed(turn_id)["status"] == "completed"
        gateway = Path(f"/proc/{house.pid(b'gateway')}/status").read_text()
        rss_kib = int(next(each for each in gateway.splitlines() if each.startswith("VmRSS")).split()[1])
        assert rss_kib < 128 * 1024, "it does not keep what a client does not take"
        ended = slow.wait(lambda each: each.get("method") == "turn/completed")
        assert ended["params"]["turn"]["status"] == "completed", ended


@pytest.mark.parametrize("which", [pytest.param(b"gateway", marks=pytest.mark.slow), b"codex_pool.broker"])
def test_one_that_hangs_is_left(house: House, which: bytes) -> None:
    """A gateway that is stopped is replaced; a broker that is stopped for a while costs clients a pause, no more."""
    with house.pool(null_app_server(deltas=3)):
        client = house.client()
        stopped = house.pid(which)
        os.kill(stopped, signal.SIGSTOP)
        if which == b"gateway":
            client.wait_ended()
            until(lambda: house.pid(which) not in (0, stopped))
            client = house.client()
        else:
            threading.Timer(5.0, os.kill, (stopped, signal.SIGCONT)).start()
        assert client.call("pool/status")["gateway"]["sessions"] == 1
        client.socket.close()


def test_a_gateway_that_cannot_listen_is_a_failed_start(tmp_path: Path) -> None:
    why = "the gateway cannot start: .*there is no such directory"
    with line_gateway(tmp_path / "none" / "gateway.sock"), pytest.raises(PoolStartError, match=why):
        Pool(1, null_app_server(), log_file=tmp_path / "log").start()


def test_nothing_is_left_of_it_when_the_supervisor_is_killed(house: House) -> None:
    pool = house.pool(null_app_server())
    pool.start()
    gateway = house.pid(b"gateway")
    assert pool.supervisor_pid is not None and gateway
    os.kill(pool.supervisor_pid, signal.SIGKILL)
    until(lambda: processes.identify(gateway) is None)
    until(lambda: not house.path.exists())
    pool.close()
