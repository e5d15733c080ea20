"""Cells whose target is the gateway: its clients come back to their turns, and nobody else notices.

The caller is a client of the gateway, the bystander one over ipc. In mid-turn the caller connects again where its
connection was cut, resumes its thread, and sees the end of its turn.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from websocket_client import reconnected

from codex_app_server import Codex
from codex_pool import Pool

if TYPE_CHECKING:
    from .driver import World

LIMIT_S = 60.0


class Caller:
    """A client of the gateway that connects again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.client = reconnected(path, name="caller", limit_s=LIMIT_S)
        self.connections = 1
        self.thread_id = str(self.client.call("thread/start")["thread"]["id"])

    def again(self) -> None:
        """Connect again, and resume the thread."""
        self.client.socket.close()
        self.client = reconnected(self._path, name="caller", limit_s=LIMIT_S)
        self.client.call("thread/resume", threadId=self.thread_id)
        # Only now it sees whatever comes of the turn.
        self.connections += 1

    def start(self, prompt: str) -> str:
        """Start a turn; its id, once something has come of it."""
        answer = self.client.call("turn/start", threadId=self.thread_id, input=[{"type": "text", "text": prompt}])
        turn_id = str(answer["turn"]["id"])
        self.client.notification("item/agentMessage/delta", turnId=turn_id)
        return turn_id

    def end_of(self, turn_id: str) -> str:
        """The status of a turn, seen on whichever connection it ends; what comes of it on that one is in order."""
        while True:
            try:
                end = self.client.line(
                    lambda line: line.get("method") == "turn/completed" and turn_of(line) == turn_id, "the end", LIMIT_S
                )
            except OSError:
                self.again()
            else:
                check_order(self.client.lines, turn_id)
                return str(end["params"]["turn"]["status"])

    def run(self, prompt: str) -> str:
        """Run a turn, on another connection if this one has ended; its status."""
        for _ in range(5):
            try:
                return self.end_of(self.start(prompt))
            except OSError:
                self.again()
        raise AssertionError("the connection ends again and again")


def check_order(lines: list[dict[str, Any]], turn_id: str) -> None:
    """Deltas are numbers that grow, and nothing of a turn comes after its end."""
    of_turn = [line for line in lines if turn_of(line) == turn_id]
    methods = [line["method"] for line in of_turn]
    assert methods.count("turn/completed") <= 1
    assert "turn/completed" not in methods[:-1], methods
    deltas = [line["params"]["delta"] for line in of_turn if line["method"] == "item/agentMessage/delta"]
    numbers = [float(delta) for delta in deltas if delta.strip().replace(".", "", 1).isdigit()]
    assert numbers == sorted(set(numbers)), "deltas come once, and in order"


def turn_of(line: dict[str, Any]) -> str | None:
    params = line.get("params") or {}
    found = params.get("turnId") or (params.get("turn") or {}).get("id")
    return str(found) if found is not None and "method" in line and "id" not in line else None


def restarts(codex: Codex) -> int:
    return int(codex.client.request("pool/status")["gateway"]["restarts"])


def drive_gateway(world: World, pool: Pool, path: Path, seen: Callable[..., str]) -> None:
    """Drive a cell in the phases idle and mid-turn."""
    with pool.connect(name="bystander") as bystander:
        other = bystander.thread_start()
        world.history(other)
        _, others = world.turn(other)
        caller = Caller(path)
        try:
            turn_id = caller.start("wait") if world.cell.phase == "mid-turn" else None
            world.inject(pool, None)
            if turn_id is not None:
                with ThreadPoolExecutor(1) as executor:
                    end = executor.submit(caller.end_of, turn_id)
                    if world.run.reconnects:
                        world.wait(lambda: caller.connections > 1, "the caller has come back")
                    world.gate.touch()
                    world.report["turn"] = end.result(LIMIT_S)
            world.gate.touch()
            world.report["bystander"] = others.result(LIMIT_S)
            if world.run.reconnects:
                world.wait(lambda: restarts(bystander), "its end is known")
            world.report["then"] = caller.run("after")
            world.report["restarts"] = str(restarts(bystander))
        finally:
            caller.client.socket.close()
        world.wait(lambda: bystander.client.request("pool/status")["gateway"]["sessions"] == 0, "its sessions are over")
        assert seen(other.run, "after") == "completed"
