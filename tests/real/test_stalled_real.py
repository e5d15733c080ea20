"""A turn that is ended at the pool's idle or wall limit is `stalled` to everyone who asks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool, running
from test_batch_real import attempts, dataset, results

from codex_app_server import AppServerConfig, Codex, TurnFailedError
from codex_app_server.testing.loopback import LoopbackModel
from codex_app_server.transport import Interest
from codex_pool import Pool, connect
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

LIMIT = "nothing was heard of it for 1 s"


def ended(notifications: list[Any]) -> tuple[Any, Any]:
    """The parameters of the last two notifications."""
    assert [each.method for each in notifications[-2:]] == ["pool/turn/ended", "turn/completed"]
    return notifications[-2].params, notifications[-1].params


def check_stream(notifications: list[Any]) -> None:
    last, completion = ended(notifications)
    assert last["kind"] == "stalled" and last["safeToRetry"] is False and LIMIT in last["message"]
    turn = completion["turn"]
    assert turn["status"] == "failed" and turn["error"]["message"] == last["message"]
    assert turn["error"]["additionalDetails"] == "stalled" and turn["durationMs"] >= 900
    assert sum(each.method == "turn/completed" for each in notifications) == 1


def turns_of(codex: Codex) -> dict[str, int]:
    turns: dict[str, int] = codex.client.request("pool/status")["turns"]
    return turns


def test_streams_results_and_counts_say_the_same(config: AppServerConfig, model: LoopbackModel) -> None:
    with Pool(1, config, turn_idle_limit_s=1.0) as pool, pool.connect() as codex, pool.connect() as other:
        interests: tuple[Interest, ...] = ("full", "items", "final")
        for interest in interests:
            check_stream(list(codex.thread_start().turn("[[hang]]", interest=interest).stream()))
        thread = codex.thread_start()
        turn = thread.turn("[[hang]]")
        follower = other.thread_resume(thread.id).follow(turn.id)
        check_stream(list(turn.stream()))
        for wait in (
            lambda: follower.run(),
            lambda: thread.run("[[hang]]"),
            lambda: list(thread.turn("[[hang]]").text()),
        ):
            with pytest.raises(TurnFailedError, match=LIMIT) as raised:
                wait()
            assert raised.value.kind == "stalled" and raised.value.turn is not None
            assert raised.value.turn.error is not None and raised.value.turn.error.additional_details == "stalled"
        # The thread takes another one: the app-server has ended it as well.
        assert thread.run("and on").status == "completed"
        turns = turns_of(codex)
        assert (turns["stalled"], turns["completed"], turns["interrupted"], turns["failed"]) == (6, 1, 0, 0)

        async def run() -> None:
            async with await pool.aconnect() as acodex:
                athread = await acodex.thread_start()
                with pytest.raises(TurnFailedError, match=LIMIT) as raised:
                    await athread.run("[[hang]]")
                assert raised.value.kind == "stalled"
                check_stream([each async for each in (await athread.turn("[[hang]]")).stream()])

        asyncio.run(run())
        # What a client interrupts is interrupted.
        turn = thread.turn("[[hang 3]]")
        model.wait_for(lambda record: record.outcome == "hanging", 20)
        turn.interrupt()
        assert turn.run().status == "interrupted"
        assert turns_of(codex)["interrupted"] == 1


def test_a_client_that_was_away_and_a_broker_that_died_change_nothing(
    config: AppServerConfig, model: LoopbackModel
) -> None:
    with Pool(1, config, turn_idle_limit_s=1.0) as pool, pool.connect() as codex:
        turn = codex.thread_start().turn("[[hang]]")
        model.wait_for(lambda record: record.outcome == "hanging", 20)
        supervisor = pool.supervisor_pid
        assert supervisor is not None
        for process in processes.descendants(supervisor):
            if b"codex_pool.broker" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                os.kill(process.pid, signal.SIGKILL)
        check_stream(list(turn.stream()))


def test_commands_and_records_say_so(tmp_path: Path, home: Path) -> None:
    data = dataset(
        tmp_path / "d.jsonl",
        {"id": "again", "prompt": "[[hang]] [[text ok]]"},
        {"id": "fine", "prompt": "say alpha"},
    )
    with running("serve", "--workers", "1", "--turn-idle-limit-s", "1", "--json", home=home) as daemon:
        endpoint = json.loads(daemon.wait_for_line("launch", "stdout"))["endpoint"]
        done = codex_pool("run", "[[hang]]", "--connect", endpoint)
        assert (done.returncode, done.stdout) == (1, "")
        assert "codex-pool: the turn stalled: " in done.stderr and LIMIT in done.stderr

        out = tmp_path / "out"
        done = codex_pool("batch", str(data), "--connect", endpoint, "-o", str(out))
        assert done.returncode == 1, done.stderr
        again, fine = results(out)
        assert (again["status"], again["error"]["kind"], fine["status"]) == ("stalled", "stalled", "completed")
        assert LIMIT in again["error"]["message"] and "again: stalled, " in done.stderr

        data = dataset(tmp_path / "e.jsonl", {"id": "again", "prompt": "Now [[hang]] [[text ok]]"})
        out = tmp_path / "retried"
        arguments = ("batch", str(data), "--connect", endpoint, "--retries", "1", "--retry-on", "stalled")
        assert codex_pool(*arguments, "-o", str(out)).returncode == 0
        assert sorted(attempts(out)) == [("again", 1, "stalled"), ("again", 2, "completed")]
        assert "3 stalled" in codex_pool("status", "--connect", endpoint).stdout.splitlines()[0]
        assert daemon.end(signal.SIGINT) == 0


def test_a_turn_of_run_that_is_interrupted_elsewhere_is_no_success(home: Path, model: LoopbackModel) -> None:
    with running("serve", "--workers", "1", "--json", home=home) as daemon:
        endpoint = json.loads(daemon.wait_for_line("launch", "stdout"))["endpoint"]
        with running("run", "[[hang 2]]", "--connect", endpoint) as program:
            model.wait_for(lambda record: record.outcome == "hanging", 20)
            with connect(endpoint) as codex:
                (thread_id,) = codex.client.request("thread/loaded/list").data
                codex.client.request("turn/interrupt", {"thread_id": thread_id, "turn_id": ""})
            assert program.wait() == 130
        assert program.lines["stderr"][-1] == "codex-pool: the turn was interrupted, and not from here"
        assert daemon.end(signal.SIGINT) == 0
