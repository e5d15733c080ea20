"""Clients of the gateway that die, stall and come back, and a gateway without descriptors.

In each test a turn of another client goes on, whole and in order.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websocket_client import WebSocketClient, reconnected

from codex_app_server import Codex
from codex_app_server.testing import null_app_server
from codex_pool import Pool
from codex_pool.runtime import processes

from .driver import rows, wait_until
from .gateway import check_order, turn_of

LIMIT_S = 60.0
ASK = {"method": "item/commandExecution/requestApproval", "params": {"itemId": "i", "startedAtMs": 1, "command": "ls"}}
MIB = 1024 * 1024

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(150)]


class House:
    """A pool with a gateway, and what runs in it. Turns with "wait" in their prompt last until the gate is there."""

    def __init__(self, root: Path, short: Path, **scenario: Any) -> None:
        self.gate, self.log, self.socket = root / "gate", root / "log", short / "g.sock"
        common: dict[str, Any] = {"hold": str(self.gate), "when": "wait", "ask": {**ASK, "when": "ask me"}}
        config = null_app_server(**{**common, "deltas": 20, "pace_ms": 20, "text": "$NOW ", **scenario})
        config.env = {"CODEX_HOME": str(root / "home")}
        self.pool = Pool(2, config, log_file=self.log, listen_unix=self.socket, turns_per_worker=64)

    def pid(self, module: str) -> int:
        """Return the pid of the process that runs this module."""

        def find() -> int:
            assert self.pool.supervisor_pid is not None
            for process in processes.descendants(self.pool.supervisor_pid):
                with contextlib.suppress(OSError):
                    if module.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"):
                        return process.pid
            return 0

        return int(wait_until(find, f"a process of {module}"))

    def client(self, name: str = "raw") -> WebSocketClient:
        return WebSocketClient(self.socket, name=name)


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cg-") as name:
        yield Path(name)


@pytest.fixture
def make(tmp_path: Path, short: Path) -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def make(**scenario: Any) -> House:
        houses.append(House(tmp_path, short, **scenario))
        houses[0].pool.start()
        return houses[0]

    try:
        yield make
    finally:
        for house in houses:
            below = processes.descendants(house.pool.supervisor_pid or 0)
            house.pool.close()
            print(house.log.read_text(errors="replace")[-6000:])
            wait_gone(below)
            assert not house.socket.exists()


def wait_gone(below: list[processes.ProcessId]) -> None:
    wait_until(lambda: not any(processes.identify(each.pid) == each for each in below), "nothing is left", 15)


def start(client: WebSocketClient, prompt: str, thread_id: str = "") -> tuple[str, str]:
    """A turn, on a new thread unless one is named: ids of thread and turn."""
    thread_id = thread_id or client.call("thread/start")["thread"]["id"]
    answer = client.call("turn/start", threadId=thread_id, input=[{"type": "text", "text": prompt}])
    return thread_id, str(answer["turn"]["id"])


def ended(client: WebSocketClient, turn_id: str) -> str:
    """The status in which a turn has ended; what came of it is in order."""
    end = client.line(lambda line: line.get("method") == "turn/completed" and turn_of(line) == turn_id, "the end")
    check_order(client.lines, turn_id)
    return str(end["params"]["turn"]["status"])


def asked(client: WebSocketClient, turn_id: str) -> dict[str, Any]:
    """The request for an approval of this turn."""
    return client.line(lambda line: line.get("method") == ASK["method"] and line["params"]["turnId"] == turn_id, "ask")


def status(codex: Codex) -> dict[str, Any]:
    found: dict[str, Any] = codex.client.request("pool/status")
    return found


# Kept turns, and open approvals


@pytest.mark.parametrize("victim", ["broker", "gateway"])
def test_what_a_dead_client_was_asked_is_asked_again(make: Callable[..., House], victim: str) -> None:
    house = make()
    with house.pool.connect(name="own") as own, house.client("other") as other:
        other_thread, beside = start(other, "wait")
        client = house.client("dies")
        thread_id, turn_id = start(client, "ask me")
        first = asked(client, turn_id)
        client.socket.close()
        wait_until(lambda: len(status(own)["sessions"]) == 2, "its session is over")
        killed = house.pid(f"codex_pool.{victim}")
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: house.pid(f"codex_pool.{victim}") != killed, "another one")
        back = reconnected(house.socket, name="back")
        if victim == "gateway":
            other.wait_over()
            other = reconnected(house.socket, name="other")
            other.call("thread/resume", threadId=other_thread)
        with back, other:
            back.call("thread/resume", threadId=thread_id)
            again = asked(back, turn_id)
            assert again["id"] == first["id"]
            with house.client("late") as late:
                late.call("thread/resume", threadId=thread_id)
                assert asked(late, turn_id)["id"] == first["id"]
                late.send({"id": first["id"], "result": {"decision": "decline"}})
                back.send({"id": first["id"], "result": {"decision": "accept"}})
                assert ended(late, turn_id) == ended(back, turn_id) == "completed"
            asks = [line for line in back.lines if line.get("method") == ASK["method"]]
            assert len(asks) == 1
            house.gate.touch()
            assert ended(other, beside) == "completed"
            wait_until(lambda: not status(own)["turns"]["running"], "no turn runs")
            counts = status(own)["turns"]
            assert counts["completed"] == 2 and counts["lost"] == counts["interrupted"] == 0, counts


@pytest.mark.parametrize("victim", ["appServerPid", "pid"])
def test_a_kept_turn_ends_once_with_its_worker(make: Callable[..., House], victim: str) -> None:
    """The turn of a dead app-server or worker is lost, its approval is asked no more, and the thread goes on."""
    house = make()
    with house.pool.connect(name="own") as own, house.client("other") as other:
        before, _ = start(other, "first")
        _, beside = start(other, "wait", before)
        client = house.client("dies")
        thread_id, first = start(client, "first")
        assert ended(client, first) == "completed"
        _, turn_id = start(client, "ask me", thread_id)
        asked(client, turn_id)
        client.socket.close()
        wait_until(lambda: len(status(own)["sessions"]) == 2, "its session is over")
        holders = {row["worker"]: row for row in rows(own) if row["turns"]}
        assert len(holders) == 2, "the two turns are with two workers"
        # Ids of a null app-server have its pid.
        mine = next(row for row in holders.values() if f"{row['appServerPid']:06x}" in turn_id)
        os.kill(mine[victim], signal.SIGKILL)
        wait_until(lambda: status(own)["turns"]["lost"] == 1, "the turn is lost")
        with house.client("back") as back:
            back.call("thread/resume", threadId=thread_id)
            _, after = start(back, "after", thread_id)
            assert ended(back, after) == "completed"
            assert not [line for line in back.lines if line.get("method") == ASK["method"]]
        house.gate.touch()
        assert ended(other, beside) == "completed"
        counts = status(own)["turns"]
        assert counts["lost"] == 1 and counts["interrupted"] == 0 and not counts["running"], counts


def test_nothing_is_left_of_kept_turns_when_the_supervisor_is_killed(make: Callable[..., House]) -> None:
    house = make()
    with house.client("other") as other:
        start(other, "wait")
        client = house.client("dies")
        _, turn_id = start(client, "ask me")
        asked(client, turn_id)
        client.socket.close()
        below = processes.descendants(house.pool.supervisor_pid or 0)
        os.kill(house.pool.supervisor_pid or 0, signal.SIGKILL)
        other.wait_over()
        assert house.pool.wait_ended(LIMIT_S)
        wait_gone(below)


# Many, slow and hostile ones


def test_sixty_clients_that_come_back_at_once(make: Callable[..., House]) -> None:
    house = make()
    with house.pool.connect(name="own") as own, ThreadPoolExecutor(60) as executor:
        handle = own.thread_start().turn("wait")
        clients = list(executor.map(lambda number: house.client(f"c{number}"), range(60)))
        threads = [client.call("thread/start")["thread"]["id"] for client in clients]
        os.kill(house.pid("codex_pool.gateway"), signal.SIGKILL)

        def back(number: int) -> str:
            clients[number].wait_over()
            clients[number].socket.close()
            with reconnected(house.socket, name=f"c{number}") as client:
                client.call("thread/resume", threadId=threads[number])
                _, turn_id = start(client, "after", threads[number])
                return ended(client, turn_id)

        assert list(executor.map(back, range(60))) == ["completed"] * 60
        house.gate.touch()
        assert handle.run(timeout=LIMIT_S).status == "completed"
        assert status(own)["gateway"]["restarts"] == 1
        wait_until(lambda: status(own)["gateway"]["sessions"] == 0, "their sessions are over")


def test_clients_that_never_read_cost_the_others_nothing(make: Callable[..., House]) -> None:
    """Six of them, with 30 MB of deltas each, while a turn of another client is paced."""
    house = make(deltas=6000, pace_ms=0, text="x" * 5000, hold=str(Path("/nowhere")), when="never")
    with house.pool.connect(name="own") as own:
        silent = [house.client(f"s{number}") for number in range(6)]
        for each in silent:
            thread_id = each.call("thread/start")["thread"]["id"]
            each.begin("turn/start", threadId=thread_id, input=[{"type": "text", "text": "x"}])
        with house.client("reads") as reads:
            for _ in range(3):
                _, turn_id = start(reads, "x")
                assert ended(reads, turn_id) == "completed"
        for module, limit in (("gateway", 192), ("broker", 128), ("worker", 384)):
            known = processes.identify(house.pid(f"codex_pool.{module}"))
            assert known is not None and (processes.resident_bytes(known) or 0) < limit * MIB, module
        for each in silent:
            each.socket.close()
        wait_until(lambda: status(own)["gateway"]["sessions"] == 0, "their sessions are over")
        wait_until(lambda: not status(own)["turns"]["running"], "their turns have ended")
        assert status(own)["gateway"]["restarts"] == 0


def test_a_gateway_without_descriptors_keeps_those_it_has(make: Callable[..., House]) -> None:
    house = make()
    with house.client("first") as first:
        thread_id, turn_id = start(first, "wait")
        gateway = house.pid("codex_pool.gateway")
        before = resource.prlimit(gateway, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{gateway}/fd"))
        resource.prlimit(gateway, resource.RLIMIT_NOFILE, (used + 1, before[1]))
        crowd = [WebSocketClient(house.socket, initialize=False)]
        with ThreadPoolExecutor(1) as executor:
            waits = executor.submit(house.client, "waits")
            # Whoever is first gets what the link had: the other comes once there is room.
            killed = house.pid("codex_pool.broker")
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: house.pid("codex_pool.broker") != killed, "another broker")
            resource.prlimit(gateway, resource.RLIMIT_NOFILE, before)
            house.gate.touch()
            assert ended(first, turn_id) == "completed"
            with waits.result(LIMIT_S) as late:
                late.call("thread/resume", threadId=thread_id)
        for each in crowd:
            each.socket.close()
        assert house.pid("codex_pool.gateway") == gateway
        assert "no connection can be accepted" in house.log.read_text()
