"""Clients of a real pool's gateway: plain JSON-RPC, and nothing lost when broker, gateway or worker are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from line_gateway import LineClient, line_gateway
from waiting import until

from codex_app_server import AppServerConfig
from codex_pool import Pool
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

PACED = "[[text deltas=40 pace_ms=25]]"
# It outlasts the start of another gateway, on a machine with much else to do too.
LONG = "[[text deltas=200 pace_ms=25]]"


class House:
    """A pool with a gateway."""

    def __init__(self, config: AppServerConfig, directory: Path, path: Path) -> None:
        self.path, self.log = path, directory / "log"
        self.pool = Pool(2, config, log_file=self.log)

    def pid(self, what: bytes) -> int:
        """Return the pid of the process that has this word in its command, 0 if there is none."""
        assert self.pool.supervisor_pid is not None
        for process in processes.descendants(self.pool.supervisor_pid):
            try:
                if what in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"):
                    return process.pid
            except OSError:
                continue
        return 0

    def kill(self, what: bytes) -> None:
        """Kill this process, and wait for the next one."""
        killed = self.pid(what)
        os.kill(killed, signal.SIGKILL)
        until(lambda: self.pid(what) not in (0, killed))

    def client(self, **options: Any) -> LineClient:
        client = LineClient(self.path, **options)
        client.initialize()
        return client


def start(client: LineClient, prompt: str, thread_id: str = "") -> tuple[str, str]:
    """A turn, on a new thread unless one is named: ids of thread and turn."""
    thread_id = thread_id or client.call("thread/start")["thread"]["id"]
    answer = client.call("turn/start", threadId=thread_id, input=[{"type": "text", "text": prompt}])
    return thread_id, answer["turn"]["id"]


def deltas(client: LineClient, turn_id: str) -> int:
    return client.methods(turn_id).count("item/agentMessage/delta")


@pytest.fixture
def house(config: AppServerConfig, tmp_path: Path, runtime_directory: Path) -> Iterator[House]:
    path = runtime_directory / "gateway.sock"
    with line_gateway(path):
        house = House(config, tmp_path, path)
        try:
            with house.pool:
                yield house
        finally:
            print(house.log.read_text())
    assert not path.exists(), "a gateway that ends removes its socket"


def test_a_client_gets_the_lines_of_the_app_server_and_nothing_of_ours(house: House) -> None:
    with house.client(name="plain") as client:
        thread_id, turn_id = start(client, "hello")
        assert client.completed(turn_id)["status"] == "completed"
        methods = client.methods(turn_id)
        assert methods[0] == "turn/started" and methods[-1] == "turn/completed"
        assert not [each for each in client.messages if each.get("method", "").startswith(("pool/", "sdk/"))]
        status = client.call("pool/status")
        assert [row["client"] for row in status["sessions"]] == ["plain 1.0"]
        gateway = status["gateway"]
        assert gateway["state"] == "ready" and gateway["sessions"] == 1 and gateway["restarts"] == 0
        assert gateway["pid"] == house.pid(b"gateway")
        until(lambda: client.call("pool/status")["gateway"].get("clients") == 1)
        assert client.call("thread/read", threadId=thread_id)["thread"]["id"] == thread_id


def test_a_broker_that_is_killed_during_turns_is_not_noticed(house: House) -> None:
    with house.client() as one, house.client() as two:
        turns = [(client, *start(client, PACED)) for client in (one, two)]
        for client, _, turn_id in turns:
            client.wait(lambda each: each.get("method") == "item/agentMessage/delta")
            assert deltas(client, turn_id) < 40
        house.kill(b"codex_pool.broker")
        for client, thread_id, turn_id in turns:
            assert client.completed(turn_id)["status"] == "completed"
            assert deltas(client, turn_id) == 40
            _, again = start(client, "and now", thread_id)
            assert client.completed(again)["status"] == "completed"


def test_a_gateway_that_is_killed_touches_no_turn(house: House) -> None:
    broker, worker = house.pid(b"codex_pool.broker"), house.pid(b"codex_pool.worker")
    with house.client(name="before") as client, house.pool.connect() as own:
        thread_id, turn_id = start(client, LONG)
        client.wait(lambda each: each.get("method") == "item/agentMessage/delta")
        house.kill(b"gateway")
        client.wait_ended()
        with house.client(name="after") as back:
            resumed = back.call("thread/resume", threadId=thread_id)["thread"]
            assert resumed["status"]["type"] == "active"
            rows = until(lambda: [row["client"] for row in own.client.request("pool/status")["sessions"][1:]])
            # The sessions of the former gateway are over at once: their clients have come back with new ones.
            assert rows == ["after 1.0"]
            until(lambda: not own.client.request("pool/status")["turns"]["running"])
            turn = back.call("thread/read", threadId=thread_id, includeTurns=True)["thread"]["turns"][-1]
            assert turn["id"] == turn_id and turn["status"] == "completed"
    assert (house.pid(b"codex_pool.broker"), house.pid(b"codex_pool.worker")) == (broker, worker)


def test_a_turn_that_its_worker_loses_is_shown_as_an_error(house: House) -> None:
    with house.client() as client, house.pool.connect() as own:
        thread_id, turn_id = start(client, "before")
        assert client.completed(turn_id)["status"] == "completed"
        _, turn_id = start(client, PACED, thread_id)
        client.wait(lambda each: each.get("method") == "item/agentMessage/delta")
        (row,) = [row for row in own.client.request("pool/status")["workers"] if row["turns"]]
        os.kill(row["pid"], signal.SIGKILL)
        error = client.wait(lambda each: each.get("method") == "error")["params"]
        ended = client.completed(turn_id)
        assert ended["status"] == "failed" and error["error"]["message"] == ended["error"]["message"]
        assert error["threadId"] == thread_id and error["turnId"] == turn_id and error["willRetry"] is False
        _, again = start(client, "and now", thread_id)
        assert client.completed(again)["status"] == "completed"


def test_a_client_that_goes_keeps_its_turn(house: House) -> None:
    with house.pool.connect() as own:
        with house.client() as client:
            thread_id, turn_id = start(client, PACED)
            client.wait(lambda each: each.get("method") == "item/agentMessage/delta")
        until(lambda: len(own.client.request("pool/status")["sessions"]) == 1)
        assert own.client.request("pool/status")["turns"]["running"] == 1
        until(lambda: not own.client.request("pool/status")["turns"]["running"])
        turn = own.client.request("thread/read", {"threadId": thread_id, "includeTurns": True}).thread.turns[-1]
        assert turn.id == turn_id and turn.status.value == "completed"


def test_clients_are_sent_why_the_pool_ended(config: AppServerConfig, tmp_path: Path, runtime_directory: Path) -> None:
    path = runtime_directory / "gateway.sock"
    with line_gateway(path):
        house = House(config, tmp_path, path)
        with house.pool:
            client = house.client()
    with client:
        ended = client.wait_ended()
        assert ended is not None and "the pool was stopped" in ended["ended"]
