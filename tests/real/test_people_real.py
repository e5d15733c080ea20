"""Turns that wait for people, queued turns of clients that know no queue, and title turns, on the real app-server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from test_pool_real import broker_of, status, wait_until

from codex_app_server import AppServerConfig, Codex
from codex_app_server.notifications import Notification
from codex_app_server.testing.loopback import LoopbackModel
from codex_pool import Pool
from codex_pool.client.transport import PoolTransport

pytestmark = pytest.mark.real

LIMIT_S = 40.0
ASKS = '[[tool_call "echo hi" escalate=true]] [[text "after the approval"]]'


class Person:
    """Accepts each request once `decide` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.was_asked, self.decide = threading.Event(), threading.Event()

    def __call__(self, method: str, params: Any) -> Any:
        self.asked.append(method)
        self.was_asked.set()
        assert self.decide.wait(LIMIT_S)
        return {"decision": "accept"}


def test_a_turn_that_waits_for_an_approval_lets_others_run(config: AppServerConfig) -> None:
    person = Person()
    with (
        Pool(1, config, turns_per_worker=1) as pool,
        pool.connect(approval_handler=person) as codex,
        pool.connect() as other,
    ):
        turn = codex.thread_start(approval_mode="ask", sandbox="read-only").turn(ASKS)
        assert person.was_asked.wait(LIMIT_S)
        wait_until(lambda: status(other)["turns"]["waiting"] == 1, "the broker knows that it waits")
        thread = other.thread_start()
        assert thread.run("hello").status == "completed"
        # The next broker learns of it from the worker.
        os.kill(broker_of(pool), signal.SIGKILL)
        assert thread.run("hello again").status == "completed"
        (row,) = status(other)["turnsWaiting"]
        assert row["turnId"] == turn.id and row["waitedMs"] > 0 and not row["holdsPermit"]
        # While another turn has the permit, it goes on all the same.
        slow = thread.turn("[[hang]]")
        wait_until(lambda: status(other)["turns"]["running"] == 2, "both run")
        person.decide.set()
        assert turn.run().final_response == "after the approval"
        slow.interrupt()
        wait_until(lambda: status(other)["turns"]["running"] == 0, "both are over")
        assert status(other)["turns"]["waiting"] == 0 and len(person.asked) == 1


def test_a_turn_beyond_the_bound_of_waiting_turns_holds_its_permit(config: AppServerConfig) -> None:
    person = Person()
    with (
        Pool(1, config, turns_per_worker=1, waiting_turns_per_worker=1) as pool,
        pool.connect(approval_handler=person) as codex,
        pool.connect() as other,
    ):
        turns = [codex.thread_start(approval_mode="ask", sandbox="read-only").turn(ASKS) for _ in range(2)]
        wait_until(lambda: status(other)["turns"]["waiting"] == 2, "both wait")
        assert [row["holdsPermit"] for row in status(other)["turnsWaiting"]] == [False, True]
        ran: list[str] = []
        runner = threading.Thread(target=lambda: ran.append(other.thread_start().run("hello").status.value))
        runner.start()
        wait_until(lambda: status(codex)["turns"]["queued"] == 1, "it waits for a permit")
        person.decide.set()
        assert [turn.run().final_response for turn in turns] == ["after the approval"] * 2
        runner.join(LIMIT_S)
        assert ran == ["completed"]


LEAVES = """
import os, sys
from codex_pool import connect

def leave(method, params):
    os._exit(0)

codex = connect(sys.argv[1], approval_handler=leave, when_gone="keep")
thread = codex.thread_start(approval_mode="ask", sandbox="read-only")
print(thread.id, flush=True)
thread.run(sys.argv[2])
"""


@pytest.mark.slow
def test_an_approval_that_nobody_follows_is_declined(
    config: AppServerConfig, model: LoopbackModel, tmp_path: Path
) -> None:
    """A client dies with its approval open: its turn goes on 20 s later, and the limit after that, declined."""
    log = tmp_path / "log"
    with Pool(1, config, approval_timeout_s=2.0, log_file=log) as pool, pool.connect() as other:
        done = subprocess.run(
            [sys.executable, "-c", LEAVES, pool.endpoint, ASKS], capture_output=True, text=True, timeout=LIMIT_S
        )
        thread_id = done.stdout.strip()
        assert thread_id, done.stderr
        wait_until(lambda: status(other)["turns"]["waiting"] == 1, "it waits")
        wait_until(lambda: status(other)["turns"]["completed"] == 1, "it was declined, and has completed", LIMIT_S)
        read = other.client.request("thread/read", {"threadId": thread_id, "includeTurns": True})
        (turn,) = read.thread.turns
        assert turn.status == "completed"
        assert turn.items[-1].root.text == "after the approval"
        assert "declined item/commandExecution/requestApproval" in log.read_text()


# Clients that know no queue.


class Plain:
    """A client that is told of the queue as codex's own clients are, and all that it is sent."""

    def __init__(self, pool: Pool) -> None:
        self.codex = Codex(transport=PoolTransport(pool.endpoint, client="plain", knows_queue=False))
        self.seen: list[Notification] = []

    def read(self) -> list[Notification]:
        with contextlib.suppress(TimeoutError):
            while (notification := self.codex.client.next_notification(timeout_s=0.1)) is not None:
                self.seen.append(notification)
        return self.seen


def test_a_queued_turn_of_a_plain_client_is_announced_by_a_warning(config: AppServerConfig) -> None:
    with Pool(1, config, turns_per_worker=1) as pool, pool.connect() as other:
        plain = Plain(pool)
        with plain.codex as codex:
            mine = codex.thread_start()
            running = other.thread_start().turn("[[hang]]")
            ran: list[str] = []
            runner = threading.Thread(target=lambda: ran.append(mine.run("hello").status.value))
            runner.start()
            wait_until(lambda: any(each.method == "warning" for each in plain.read()), "it is warned")
            (warning,) = [each for each in plain.seen if each.method == "warning"]
            assert warning.payload.thread_id == mine.id and "waits" in warning.payload.message
            running.interrupt()
            runner.join(LIMIT_S)
            assert ran == ["completed"]
            assert not [each for each in plain.read() if each.method.startswith("pool/queued")]


def test_a_title_turn_runs_beside_the_prompt_and_delays_nobody(config: AppServerConfig, model: LoopbackModel) -> None:
    with Pool(1, config, turns_per_worker=1) as pool, pool.connect() as other, Plain(pool).codex as codex:
        prompt = codex.thread_start().turn("[[hang]]")
        title = codex.thread_start(ephemeral=True)
        assert title.run("a title, please").status == "completed", "it does not wait for the prompt"
        # Two titles: the second one waits, and the turn of the other client comes before it.
        first = title.turn("[[hang]]")
        second = codex.thread_start(ephemeral=True)
        done: list[str] = []
        threads = [
            threading.Thread(target=lambda: (second.run("second title"), done.append("title"))),
            threading.Thread(target=lambda: (other.thread_start().run("a user's"), done.append("user"))),
        ]
        for count, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda count=count: status(other)["turns"]["queued"] == count, "it waits")
        prompt.interrupt()
        threads[1].join(LIMIT_S)
        assert done[0] == "user", "though it came later"
        first.interrupt()
        threads[0].join(LIMIT_S)
        assert done == ["user", "title"]
