"""The history of every stored thread is there for every client, whichever app-server wrote it; reading loads none."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from test_pool_real import all_ready, rows, status, wait_until

from codex_app_server import AppServerConfig, Codex
from codex_app_server.testing.loopback import LoopbackModel
from codex_pool import Pool

pytestmark = pytest.mark.real


def turns_of(codex: Codex, thread_id: str, **params: Any) -> list[str]:
    """The ids of a thread's turns, oldest first, by pages of one."""
    found, cursor = [], None
    while True:
        page = codex.client.request(
            "thread/turns/list", {"threadId": thread_id, "limit": 1, "sortDirection": "asc", "cursor": cursor}
        )
        found += [turn.id for turn in page.data]
        cursor = page.next_cursor
        if cursor is None:
            return found


def items_of(codex: Codex, thread_id: str) -> int:
    return len(codex.client.request("thread/items/list", {"threadId": thread_id}).data)


def read_of(codex: Codex, thread_id: str) -> list[str]:
    read = codex.client.request("thread/read", {"threadId": thread_id, "includeTurns": True})
    return [turn.id for turn in read.thread.turns]


def test_another_pool_answers_for_all_threads_of_the_home(config: AppServerConfig, model: LoopbackModel) -> None:
    written: dict[str, list[str]] = {}
    with Pool(2, config) as pool, pool.connect() as codex:
        for number in range(4):
            thread = codex.thread_start()
            written[thread.id] = [thread.run(f"{number} {turn}").id for turn in range(2)]
        assert min(row["threads"] for row in rows(codex)) > 0, "both workers have some"
    # One thread goes on outside of the pool, and one is made there.
    with Codex(config) as alone:
        first = next(iter(written))
        written[first].append(alone.thread_resume(first).run("outside").id)
        thread = alone.thread_start()
        written[thread.id] = [thread.run("only outside").id]
    with Pool(2, config) as pool, pool.connect() as codex:
        for thread_id, turns in written.items():
            # Whichever worker is asked.
            for _ in range(2):
                assert turns_of(codex, thread_id) == turns
                assert items_of(codex, thread_id) == 2 * len(turns)
            assert read_of(codex, thread_id) == turns
        assert codex.client.request("thread/loaded/list").data == []
        assert status(codex)["threads"] == 0
        # They go on where they were.
        for thread_id, turns in written.items():
            turns.append(codex.thread_resume(thread_id).run("and on").id)
            assert turns_of(codex, thread_id) == turns and read_of(codex, thread_id) == turns


def test_a_thread_whose_worker_has_died_is_read_without_loading_it(config: AppServerConfig) -> None:
    with Pool(2, config) as pool, pool.connect() as codex:
        thread = codex.thread_start()
        turns = [thread.run(f"turn {number}").id for number in range(3)]
        (row,) = [row for row in rows(codex) if row["threads"]]
        os.kill(row["appServerPid"], signal.SIGKILL)
        assert turns_of(codex, thread.id) == turns and items_of(codex, thread.id) == 6
        wait_until(lambda: all_ready(codex, restarts=1), "it has a successor")
        assert thread.id not in codex.client.request("thread/loaded/list").data
        assert turns_of(codex, thread.id) == turns
        turns.append(thread.run("and on").id)
        assert turns_of(codex, thread.id) == turns
