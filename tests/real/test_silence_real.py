"""A provider that cannot be reached: who waits for a turn is told, and gets the runtime's last error at the end."""

from __future__ import annotations

import asyncio
import pickle
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import running

from codex_app_server import AppServerConfig, AsyncCodex, Codex, RequestTimeoutError, TurnFailedError
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool

pytestmark = pytest.mark.real

WAITING = "Reconnecting... waiting for network"


def url(port: socket.socket) -> str:
    return f"http://127.0.0.1:{port.getsockname()[1]}/v1"


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Path]:
    """A home whose provider's port nobody listens on."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        yield write_loopback_home(tmp_path / "nobody", url(port))


@pytest.fixture
def black_hole(tmp_path: Path) -> Iterator[Path]:
    """A home whose provider takes connections and never says anything."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen(16)
        yield write_loopback_home(tmp_path / "hole", url(port))


def config_of(home: Path) -> AppServerConfig:
    return AppServerConfig(env={"CODEX_HOME": str(home)}, cwd=str(home))


def check_last_error(error: RequestTimeoutError | TurnFailedError) -> None:
    assert error.last_error is not None and error.last_error.will_retry
    assert error.last_error.error.message == WAITING and WAITING in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert again.last_error == error.last_error and str(again) == str(error)


@pytest.mark.parametrize("how", ["nobody", "black_hole"])
def test_run_says_that_the_provider_is_silent(how: str, request: pytest.FixtureRequest) -> None:
    home = request.getfixturevalue(how)
    with running("run", "hello", home=home) as program:
        said = program.wait_for_line("the model's provider", "stderr", 20)
        assert ("cannot be reached" in said and WAITING in said) if how == "nobody" else "sent nothing for 5 s" in said
        assert program.end(signal.SIGINT) == 130
    assert program.lines["stdout"] == []


def test_who_runs_out_of_time_gets_the_last_error(nobody: Path) -> None:
    with Codex(config_of(nobody)) as codex:
        thread = codex.thread_start()
        with pytest.raises(RequestTimeoutError, match="the turn did not end within 2") as raised:
            thread.run("a", timeout=2)
        check_last_error(raised.value)
        turn = codex.thread_start().turn("a")
        with pytest.raises(RequestTimeoutError, match=f"turn {turn.id} did not end within 2") as raised:
            turn.run(timeout=2)
        check_last_error(raised.value)
        # Behind another turn, the last error of that one.
        thread = codex.thread_start()
        first = thread.turn("a", detach=True)
        with pytest.raises(RequestTimeoutError) as raised:
            thread.run("b", timeout=7, on_busy="queue")
        check_last_error(raised.value)
        first.interrupt()
        assert first.run(timeout=20).status == "interrupted"

    async def run() -> None:
        async with AsyncCodex(config_of(nobody)) as codex:
            thread = await codex.thread_start()
            with pytest.raises(RequestTimeoutError, match="the turn did not end within 2") as raised:
                await thread.run("a", timeout=2)
            check_last_error(raised.value)
            turn = await (await codex.thread_start()).turn("a")
            with pytest.raises(RequestTimeoutError, match=f"turn {turn.id} did not end within 2") as raised:
                await turn.run(timeout=2)
            check_last_error(raised.value)

    asyncio.run(run())


def test_a_timeout_without_an_error_has_none(config: AppServerConfig) -> None:
    with Codex(config) as codex, pytest.raises(RequestTimeoutError) as raised:
        codex.thread_start().run("[[hang]]", timeout=1)
    assert raised.value.last_error is None and str(raised.value) == "the turn did not end within 1 s"


def test_errors_that_are_retried_are_silence_to_the_idle_limit(nobody: Path) -> None:
    """The errors come every 5 s."""
    with Pool(1, config_of(nobody), turn_idle_limit_s=7.0) as pool, pool.connect() as codex:
        began = time.monotonic()
        with pytest.raises(TurnFailedError, match="nothing was heard of it for 7 s") as raised:
            codex.thread_start().run("a", timeout=40)
        assert time.monotonic() - began < 20
        assert raised.value.kind == "stalled"
        check_last_error(raised.value)
        assert re.search("responseStreamDisconnected|response_stream_disconnected", repr(raised.value.codex_error_info))


def test_a_message_that_was_cut_does_not_hold_the_clock(tmp_path: Path) -> None:
    with LoopbackModel() as model:
        home = write_loopback_home(tmp_path / "h", model.base_url, stream_max_retries=1)
        with Pool(1, config_of(home), turn_idle_limit_s=2.0) as pool, pool.connect() as codex:
            turn = codex.thread_start().turn("[[drop 3]] [[hang]]")
            with pytest.raises(TurnFailedError, match="nothing was heard of it for 2 s") as raised:
                turn.run(timeout=30)
            assert raised.value.last_error is not None
            assert raised.value.last_error.error.message == "Reconnecting... 1/1"
            # One that is open and does not go on holds it no more than one that was cut.
            with pytest.raises(TurnFailedError, match="nothing was heard of it for 2 s") as raised:
                codex.thread_start().run("[[hang 3]]", timeout=30)
            assert raised.value.last_error is None


def test_a_command_holds_the_clock(config: AppServerConfig) -> None:
    with Pool(1, config, turn_idle_limit_s=1.5) as pool, pool.connect() as codex:
        thread = codex.thread_start(sandbox="danger-full-access")
        assert thread.run("[[tool_call 'sleep 4']] [[text done]]", timeout=40).final_response == "done"


def test_the_next_notification_may_be_waited_for_for_a_while(config: AppServerConfig) -> None:
    with Codex(config) as codex:
        stream = codex.thread_start().turn("[[hang]]").stream()
        methods = []
        with pytest.raises(TimeoutError):
            while (notification := stream.next(2)) is not None:
                methods.append(notification.method)
        assert methods[0] == "turn/started"
        stream.close()
        while (notification := stream.next(20)) is not None:
            methods.append(notification.method)
        assert methods[-1] == "turn/completed" and stream.next(20) is None

    async def run() -> None:
        async with AsyncCodex(config) as codex:
            stream = (await (await codex.thread_start()).turn("[[hang]]")).stream()
            with pytest.raises(TimeoutError):
                while await stream.next(2) is not None:
                    pass
            await stream.aclose()
            methods = []
            while (notification := await stream.next(20)) is not None:
                methods.append(notification.method)
            assert methods[-1] == "turn/completed" and await stream.next(20) is None

    asyncio.run(run())
