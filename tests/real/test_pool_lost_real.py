"""A pool of a program whose supervisor is killed: a typed error at once, and the same endpoint after a restart."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import AppServerConfig, TurnFailedError
from codex_app_server.testing.loopback import LoopbackModel
from codex_pool import Pool, PoolLostError, PoolStartError, connect
from codex_pool.errors import how_it_ended

LIMIT_S = 3.0


def kill(pool: Pool) -> int:
    pid = pool.supervisor_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def test_the_error_names_all_there_is_to_know_and_survives_pickling() -> None:
    error = PoolLostError("ipc:///x", "its supervisor died", 12, -9, "/tmp/log")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and (copy.exit_status, copy.log_file) == (-9, "/tmp/log")
    for words in ("ipc:///x", "its supervisor died", "pid 12", "killed by SIGKILL", "/tmp/log", "Pool.restart()"):
        assert words in str(error)
    assert [how_it_ended(status) for status in (0, 3, -15, -77, None)] == [
        "exit status 0",
        "exit status 3",
        "killed by SIGTERM",
        "killed by signal 77",
        "exit status not known",
    ]


@pytest.mark.real
def test_calls_and_streams_get_it_at_once_and_a_restart_gives_the_same_endpoint(
    config: AppServerConfig, model: LoopbackModel, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with Pool(1, config, log_file=log) as pool:
        endpoint = pool.endpoint
        codex, other = pool.connect(), pool.connect()
        thread = codex.thread_start()
        assert thread.run("say alpha").status == "completed"
        turn = thread.turn("[[hang]]")
        errors: dict[str, BaseException] = {}

        def note(name: str, wait: Any) -> None:
            try:
                wait()
            except BaseException as error:
                errors[name] = error

        waits = {
            "stream": lambda: list(turn.stream()),
            "run": lambda: other.thread_start().run("[[hang]]"),
            "notifications": lambda: list(other.notifications()),
        }
        threads = [threading.Thread(target=note, args=each) for each in waits.items()]
        for each in threads:
            each.start()
        model.wait_for(lambda record: record.outcome == "hanging", 20)
        pid, killed_at = kill(pool), time.monotonic()
        for each in threads:
            each.join(LIMIT_S)
        assert time.monotonic() - killed_at < LIMIT_S
        note("call", lambda: codex.client.request("pool/status"))
        note("connect", pool.connect)
        assert set(errors) == {*waits, "call", "connect"}
        for name, error in errors.items():
            assert isinstance(error, PoolLostError), (name, error)
            assert (error.endpoint, error.supervisor_pid, error.exit_status) == (endpoint, pid, -signal.SIGKILL)
            assert error.log_file == str(log) and "killed by SIGKILL" in str(error)
        codex.close()
        other.close()

        pool.restart()
        assert pool.endpoint == endpoint and pool.failure is None
        with pool.connect() as again, connect(endpoint) as elsewhere:
            # Threads on disk go on, and what ran has ended.
            assert again.thread_resume(thread.id).run("and on").status == "completed"
            assert elsewhere.client.request("pool/status")["turns"]["running"] == 0
        # One that runs, too.
        pool.restart()
        assert pool.endpoint == endpoint
        with pool.connect() as again:
            assert again.thread_start().run("hello").status == "completed"


@pytest.mark.real
def test_asyncio_clients_too_and_what_the_dead_left_stopped_is_ended(
    config: AppServerConfig, model: LoopbackModel, tmp_path: Path
) -> None:
    async def run() -> None:
        async with Pool(1, config, log_file=tmp_path / "log") as pool:
            endpoint = pool.endpoint
            codex = await pool.aconnect()
            turn = await (await codex.thread_start()).turn("[[hang]]")
            reading = asyncio.ensure_future(turn.run())
            await asyncio.to_thread(model.wait_for, lambda record: record.outcome == "hanging", 20)
            status = await codex.client.request("pool/status")
            os.kill(status["workers"][0]["pid"], signal.SIGSTOP)
            kill(pool)
            with pytest.raises(PoolLostError, match="killed by SIGKILL"):
                await asyncio.wait_for(reading, LIMIT_S)
            with pytest.raises(PoolLostError):
                await codex.thread_start()
            await codex.close()
            await pool.arestart()
            assert pool.endpoint == endpoint
            async with await pool.aconnect() as again:
                assert (await (await again.thread_start()).run("hello")).status == "completed"

    asyncio.run(run())
    assert "swept what an earlier pool on this endpoint has left: worker" in (tmp_path / "log").read_text()


@pytest.mark.real
def test_a_client_whose_broker_was_killed_as_well_is_back_after_the_restart(config: AppServerConfig) -> None:
    with Pool(1, config) as pool, connect(pool.endpoint) as codex:
        thread = codex.thread_start()
        assert thread.run("say alpha").status == "completed"
        turn = thread.turn("[[hang]]")
        supervisor = pool.supervisor_pid
        assert supervisor is not None
        # Stopped first: it would start another broker.
        os.kill(supervisor, signal.SIGSTOP)
        for task in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
            if b"codex_pool.broker" in Path(f"/proc/{task}/cmdline").read_bytes():
                os.kill(int(task), signal.SIGKILL)
        kill(pool)
        pool.restart()
        with pytest.raises(TurnFailedError) as raised:
            turn.run()
        assert raised.value.kind == "lost"
        assert codex.thread_resume(thread.id).run("and on").status == "completed"


@pytest.mark.real
def test_a_restart_that_fails_may_be_tried_again(config: AppServerConfig, tmp_path: Path) -> None:
    link = tmp_path / "codex"
    target = config.argv()[0]
    link.symlink_to(target)
    config.codex_bin = link
    with Pool(1, config) as pool:
        endpoint = pool.endpoint
        kill(pool)
        link.unlink()
        link.symlink_to("/bin/false")
        with pytest.raises(PoolStartError):
            pool.restart()
        link.unlink()
        link.symlink_to(target)
        pool.restart()
        assert pool.endpoint == endpoint
        with pool.connect() as codex:
            assert codex.thread_start().run("hello").status == "completed"
