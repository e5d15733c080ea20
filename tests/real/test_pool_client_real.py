"""A client of a real pool whose connection breaks under it: every delta once, every call once, every question once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_pool_client import cut
from test_pool_real import broker_of, status, wait_until

from codex_app_server import AppServerConfig, Codex, RequestTimeoutError, Thread, TurnHandle, UnknownTurnError
from codex_app_server.testing.loopback import LoopbackModel
from codex_pool import Pool
from codex_pool.client.connections import SILENT_S
from codex_pool.client.session_io import SessionIO
from codex_pool.client.transport import PoolTransport

pytestmark = pytest.mark.real

LIMIT_S = 30.0
DELTAS = 120
TEXT = " ".join(f"w{number}" for number in range(DELTAS))


@pytest.fixture
def pool(config: AppServerConfig, tmp_path: Path) -> Iterator[Pool]:
    log = tmp_path / "pool.log"
    try:
        with Pool(2, config, log_file=log, turns_per_worker=1) as pool:
            yield pool
    except BaseException:
        print(log.read_text() if log.exists() else "no log")
        raise


def slow(pace_ms: int = 25) -> str:
    return f'[[text "{TEXT}" deltas={DELTAS} pace_ms={pace_ms}]]'


def path_of(pool: Pool) -> Path:
    return Path(pool.endpoint.removeprefix("ipc://"))


def transport_of(codex: Codex) -> PoolTransport:
    transport = codex.client._connection._transport
    assert isinstance(transport, PoolTransport)
    return transport


def connections(codex: Codex) -> int:
    """Return how many connections this client's session has had so far."""
    return transport_of(codex)._session._connections.count


class Reader(threading.Thread):
    """Reads a turn to its end; `deltas` is what has come so far."""

    def __init__(self, turn: TurnHandle) -> None:
        super().__init__(name="test-reader")
        self.turn = turn
        self.deltas: list[str] = []
        self.methods: list[str] = []
        self.last: dict[str, Any] = {}
        self.start()

    def run(self) -> None:
        for notification in self.turn.stream():
            self.methods.append(notification.method)
            self.last = notification.params
            if notification.method == "item/agentMessage/delta":
                self.deltas.append(notification.params["delta"])

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.deltas) >= count or not self.is_alive(), f"{count} deltas")
        assert self.is_alive(), f"the turn ended: {self.last}"

    def has_all(self) -> None:
        """The turn completed, and every delta came once, in order."""
        self.join(LIMIT_S)
        assert not self.is_alive()
        assert self.last["turn"]["status"] == "completed", self.last
        assert "".join(self.deltas) == TEXT
        assert "sdk/deltas/dropped" not in self.methods
        assert self.methods.count("turn/completed") == self.methods.count("pool/turn/assigned") == 1


def test_a_turn_is_streamed_on_over_connections_that_break(pool: Pool) -> None:
    with pool.connect() as codex:
        reader = Reader(codex.thread_start().turn(slow()))
        for number in range(1, 5):
            reader.wait_for(20 * number)
            cut(path_of(pool))
            wait_until(lambda number=number: connections(codex) > number, "another connection")
        reader.has_all()
        assert connections(codex) >= 5 and not any(codex.client.held.values())
        wait_until(lambda: transport_of(codex)._session.held["turns"] == 0, "nothing kept of the turn")


def test_a_client_whose_beat_stopped_for_a_while_goes_on_where_it_was(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, go_on = threading.Event(), threading.Event()
    turn_of_loop = PoolTransport._turn

    def stuck(self: PoolTransport, io: SessionIO) -> None:
        if blocked.is_set():
            go_on.wait(LIMIT_S)
        turn_of_loop(self, io)

    monkeypatch.setattr(PoolTransport, "_turn", stuck)
    with pool.connect() as codex:
        reader = Reader(codex.thread_start().turn(slow(60)))
        reader.wait_for(10)
        blocked.set()
        # Longer than the pool's patience, shorter than the grace of a session.
        time.sleep(SILENT_S + 1.5)
        blocked.clear()
        go_on.set()
        reader.has_all()
        assert connections(codex) >= 2


def test_a_broker_that_is_killed_costs_no_delta(pool: Pool) -> None:
    with pool.connect() as codex:
        thread = codex.thread_start()
        reader = Reader(thread.turn(slow(40)))
        for count in (20, 60):
            reader.wait_for(count)
            os.kill(broker_of(pool), signal.SIGKILL)
            before = connections(codex)
            wait_until(lambda before=before: connections(codex) > before, "another connection")
        reader.has_all()
        assert thread.run("and again?").status == "completed"


def test_a_broker_is_killed_while_workers_rest(pool: Pool, model: LoopbackModel) -> None:
    """Nobody reads the turns along, so their workers do not listen most of the time."""
    results: list[str] = []
    with pool.connect() as codex:
        before = [row["worker"] for row in status(codex)["workers"]]
        threads = [codex.thread_start() for _ in range(2)]
        runs = [threading.Thread(target=lambda t=each: results.append(t.run(slow()).status.value)) for each in threads]
        for run in runs:
            run.start()
        wait_until(lambda: sum(record.deltas_sent > 10 for record in model.active) == 2, "both turns run")
        os.kill(broker_of(pool), signal.SIGKILL)
        for run in runs:
            run.join(LIMIT_S)
        assert results == ["completed"] * 2
        assert [row["worker"] for row in status(codex)["workers"]] == before


def test_a_call_that_is_under_way_when_the_connection_breaks_is_answered_once(pool: Pool, model: LoopbackModel) -> None:
    with pool.connect() as codex:
        threads = [codex.thread_start() for _ in range(2)]
        turns: list[TurnHandle] = []
        starters = [
            threading.Thread(target=lambda thread=thread, n=n: turns.append(thread.turn(f"once-{n}-only")))
            for n, thread in enumerate(threads)
        ]
        for starter in starters:
            starter.start()
        cut(path_of(pool))
        for starter in starters:
            starter.join(LIMIT_S)
        assert sorted(turn.run().status.value for turn in turns) == ["completed"] * 2
        assert sorted(request.prompt for request in model.requests) == ["once-0-only", "once-1-only"]


def test_an_approval_that_is_given_while_the_connection_is_broken_counts(pool: Pool, tmp_path: Path) -> None:
    asked: list[str] = []
    came, answer = threading.Event(), threading.Event()

    def handler(method: str, params: Any) -> Any:
        asked.append(method)
        came.set()
        answer.wait(LIMIT_S)
        return {"decision": "accept"}

    file = tmp_path / "file"
    with pool.connect(approval_handler=handler) as codex:
        thread = codex.thread_start(approval_mode="ask", sandbox="read-only", ephemeral=True)
        turn = thread.turn(f'[[tool_call "echo hi > {file}" escalate=true]] [[text "done"]]')
        assert came.wait(LIMIT_S)
        # Twice: it is asked again after each return, and answered while away from the second.
        cut(path_of(pool))
        wait_until(lambda: connections(codex) == 2 and transport_of(codex)._session.open, "back")
        cut(path_of(pool))
        answer.set()
        assert turn.run().final_response == "done"
        assert file.read_text() == "hi\n" and len(asked) == 1
        wait_until(lambda: transport_of(codex)._session.held["server_requests"] == 0, "nothing kept of the question")


def test_a_turn_of_another_client_is_joined(pool: Pool) -> None:
    with pool.connect() as first, pool.connect() as second:
        thread = first.thread_start()
        turn = thread.turn(slow())
        reader = Reader(turn)
        reader.wait_for(10)
        other = Thread(second.client, thread.id)
        follower = Reader(other.follow(turn.id))
        follower.wait_for(5)
        cut(path_of(pool))
        reader.has_all()
        follower.join(LIMIT_S)
        assert follower.last["turn"]["status"] == "completed"
        joined = "".join(follower.deltas)
        assert 5 <= len(follower.deltas) < DELTAS and TEXT.endswith(joined)
        with pytest.raises(UnknownTurnError):
            other.follow("00000000-0000-7000-8000-000000000000").run()


def test_a_turn_that_is_given_up_in_the_queue_is_never_started(pool: Pool, model: LoopbackModel) -> None:
    with pool.connect() as codex:
        busy = [codex.thread_start().turn("[[hang]]") for _ in range(2)]
        wait_until(lambda: status(codex)["turns"]["running"] == 2, "both workers busy")
        with pytest.raises(RequestTimeoutError):
            codex.thread_start().run("never to be started", timeout=1)
        wait_until(lambda: status(codex)["turns"]["queued"] == 0, "it is out of the queue")
        for turn in busy:
            turn.interrupt()
            turn.run()
        assert codex.thread_start().run("next").status == "completed"
        assert "never to be started" not in [request.prompt for request in model.requests]
