"""Functions of the user's that fail, and threads that cannot be started, are reported; what reads goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import (
    AppServerClient,
    AppServerConfig,
    AppServerError,
    AsyncCodex,
    Codex,
    InternalRpcError,
    StdioTransport,
    TracingTransport,
    TransportClosedError,
    TurnHandle,
)
from codex_app_server._core import mailbox
from codex_app_server.testing import null_app_server
from codex_batch.store import RunDirectory, RunDirectoryError
from codex_batch.store.writer import Written
from codex_pool.broker import ownership_writer
from codex_pool.pool import Pool

LIMIT_S = 10.0
ASK = {"method": "item/commandExecution/requestApproval"}


class NoThreads:
    """Context in which threads of these names cannot be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if self.active and (not names or thread.name in names):
                raise RuntimeError("can't start new thread")
            start(thread)

        self.active = False
        monkeypatch.setattr(threading.Thread, "start", refuse)

    def __enter__(self) -> None:
        self.active = True

    def __exit__(self, *_: object) -> None:
        self.active = False


def completes(codex: Codex) -> bool:
    return codex.thread_start().run("y", timeout=LIMIT_S).status.value == "completed"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_an_approval_handler_that_raises_anything_declines_and_is_reported(
    caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def handler(method: str, params: Any) -> Any:
        raise error

    with Codex(null_app_server(ask={**ASK, "when": "ask"}), approval_handler=handler) as codex:
        result = codex.thread_start().run("ask", timeout=LIMIT_S)
        assert "decline" in str(result.final_response)
        assert completes(codex)
    (record,) = [each for each in caplog.records if "approval handler failed" in each.message]
    assert record.exc_info is not None and record.exc_info[1] is error


def test_an_async_approval_handler_that_raises_declines_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(method: str, params: Any) -> Any:
        raise ValueError("no")

    async def main() -> None:
        async with AsyncCodex(null_app_server(ask={**ASK, "when": "ask"}), approval_handler=handler) as codex:
            thread = await codex.thread_start()
            assert "decline" in str((await thread.run("ask", timeout=LIMIT_S)).final_response)
            assert (await thread.run("y", timeout=LIMIT_S)).status.value == "completed"

    asyncio.run(main())
    assert "approval handler failed" in caplog.text


def test_without_a_thread_for_the_approval_handler_the_request_is_declined(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_threads = NoThreads(monkeypatch, "codex-approval")
    with Codex(
        null_app_server(ask={**ASK, "when": "ask"}), approval_handler=lambda *_: {"decision": "accept"}
    ) as codex:
        thread = codex.thread_start()
        with no_threads:
            assert "decline" in str(thread.run("ask", timeout=LIMIT_S).final_response)
        assert "accept" in str(thread.run("ask", timeout=LIMIT_S).final_response)
    assert "no thread could be started for the approval handler" in caplog.text


def test_without_a_thread_a_turn_that_nobody_waits_for_is_still_interrupted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import _thread

    with Codex(null_app_server(hold="/nowhere")) as codex:
        turn = codex.thread_start().turn("x")

        def refuse(*_: object) -> int:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(_thread, "start_new_thread", refuse)
            codex.client._on_abandoned(turn.thread_id, turn.id)
        assert turn.run(timeout=LIMIT_S).status.value == "interrupted"
    assert "no thread could be started to interrupt" in caplog.text


def test_without_threads_an_async_client_says_so_and_one_that_runs_can_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_threads = NoThreads(monkeypatch)

    async def main() -> None:
        with no_threads, pytest.raises(TransportClosedError, match="can't start new thread"):
            await AsyncCodex(null_app_server()).start()
        codex = AsyncCodex(null_app_server())
        await codex.start()
        with no_threads:
            await asyncio.wait_for(codex.close(), LIMIT_S)

    asyncio.run(main())


@pytest.mark.real
def test_without_a_thread_a_pool_and_its_client_say_so(
    config: AppServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool(1, config, log_file=tmp_path / "log") as pool:
        with NoThreads(monkeypatch, "codex-pool-io"), pytest.raises(AppServerError, match="cannot connect to the pool"):
            pool.connect()
        with pool.connect() as codex:
            assert completes(codex)
    with NoThreads(monkeypatch, "codex-pool-reports"), pytest.raises(AppServerError, match="can't start new thread"):
        Pool(1, config, log_file=tmp_path / "log").start()


@pytest.mark.real
def test_a_pool_goes_on_when_on_slots_fails(
    config: AppServerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[object] = []

    def on_slots(slots: object) -> None:
        calls.append(slots)
        raise ValueError("no")

    with Pool(1, config, log_file=tmp_path / "log", on_slots=on_slots) as pool, pool.connect() as codex:
        assert completes(codex) and len(calls) > 1
    assert "on_slots failed" in caplog.text


def test_a_trace_that_cannot_be_written_ends_no_turn(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    def traced(path: Path) -> Codex:
        return Codex(transport=TracingTransport(StdioTransport(null_app_server(deltas=500)), path))

    with traced(Path("/dev/full")) as codex:
        assert completes(codex) and completes(codex)
    assert caplog.text.count("lines are missing in the trace /dev/full") == 1
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # More than fits in a pipe that nobody reads.
        with traced(pipe) as codex:
            assert completes(codex) and completes(codex)
    finally:
        os.close(reader)
    assert "lines are missing in the trace" in caplog.text.replace("/dev/full", "", 1)


class Lines:
    """A transport whose app-server is the test."""

    shared = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def start(self, receiver: Any) -> None:
        self.receiver = receiver

    def send(self, line: bytes, **_: Any) -> None:
        self.sent.append(line)

    def cancel(self, request_id: object) -> None:
        pass

    def close(self) -> None:
        self.receiver.on_closed(TransportClosedError("the client was closed"))


@contextlib.contextmanager
def client_of_lines() -> Iterator[tuple[AppServerClient, Lines]]:
    transport = Lines()
    with AppServerClient(transport=transport) as client:
        yield client, transport


def answered(client: AppServerClient, transport: Lines, line: bytes) -> BaseException | None:
    """Return what comes of a request that is answered with this line."""
    caught: list[BaseException | None] = []

    def ask() -> None:
        try:
            client.request("some/method", timeout_s=LIMIT_S)
            caught.append(None)
        except BaseException as error:
            caught.append(error)

    count = len(transport.sent)
    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: len(transport.sent) > count)
    transport.receiver.on_batch([line.replace(b"ID", b"%d" % (count + 1))])
    thread.join(LIMIT_S)
    return caught[0]


def test_an_answer_that_cannot_be_used_fails_its_request_alone() -> None:
    deep = b"[" * 300 + b"]" * 300
    with client_of_lines() as (client, transport):
        error = answered(client, transport, b'{"id":ID,"error":{"code":1,"message":"no","data":%s}}' % deep)
        assert isinstance(error, AppServerError)
        assert answered(client, transport, b'{"id":ID,"result":{}}') is None


def test_a_message_that_cannot_be_handed_out_fails_its_own_turn_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Codex(null_app_server(deltas=5)) as codex:
        put, first = mailbox.Mailbox.put, threading.Event()

        def fail_once(mailbox: Any, *args: Any) -> None:
            if not first.is_set() and mailbox.turn_id is not None:
                first.set()
                raise MemoryError
            put(mailbox, *args)

        monkeypatch.setattr(mailbox.Mailbox, "put", fail_once)
        turn = codex.thread_start().turn("x")
        with pytest.raises(AppServerError, match="could not be kept"):
            turn.run(timeout=LIMIT_S)
        assert completes(codex) and isinstance(turn, TurnHandle)
    assert "could not be handed out" in caplog.text


def test_an_answer_whose_handling_fails_fails_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from codex_app_server._core import calls

    with client_of_lines() as (client, transport):
        with monkeypatch.context() as patch:
            patch.setattr(calls, "_decode_response", lambda line: 1 / 0)
            error = answered(client, transport, b'{"id":ID,"result":{}}')
            assert isinstance(error, InternalRpcError) and "ZeroDivisionError" in str(error)
        assert answered(client, transport, b'{"id":ID,"result":{}}') is None


def test_a_run_goes_on_when_what_waits_for_its_changes_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = RunDirectory(tmp_path / "run")
    called = threading.Event()

    def fail(written: Written[Any]) -> None:
        called.set()
        raise ValueError("no")

    with caplog.at_level(logging.ERROR):
        # The writer waits for it, so that the callback is called on its thread.
        with directory._writer._has_work:
            directory._writer.submit(lambda db: None).when_done(fail)
        directory.note("b", 2).result(LIMIT_S)
        wait_until(called.is_set)
    directory.note("c", 3).result(LIMIT_S)
    directory.close()
    assert "could not be told" in caplog.text


def test_a_run_directory_without_a_thread_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NoThreads(monkeypatch, "run-store"), pytest.raises(RunDirectoryError, match="can't start new thread"):
        RunDirectory(tmp_path / "run")
    RunDirectory(tmp_path / "run").close()


def test_the_thread_of_the_ownership_store_outlives_any_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from codex_pool.auth.ownership import Row

    found = ownership_writer.OwnershipWriter(tmp_path, None, lambda line: None)
    try:

        def refuse() -> Any:
            raise OSError("the mark cannot be written")

        monkeypatch.setattr(found, "_connect", refuse)
        for number in (1, 2):
            found.write(number, [Row(thread_id="t", owner="o")])
            done: list[Any] = []
            wait_until(lambda done=done: bool(done.extend(found.done()) or done))  # type: ignore[misc]
            assert done[0].number == number and done[0].problem == "the mark cannot be written"
    finally:
        found.close()
