"""Behaviour that code for the published SDK gets here where the real runtime does not do it on demand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import InvalidInputError, InvalidRequestError, ThreadBusyError, TransportClosedError
from codex_app_server.compat.openai_codex import AsyncCodex, Codex, CodexConfig, ExternalMessage
from codex_app_server.testing import null_app_server
from codex_pool.compat import openai_codex as on_a_pool

JOINED = {"result": {"turnId": "t"}}
NO_TURN = {"error": {"code": -32600, "message": "no active turn to steer"}}
ASK = {
    "method": "item/commandExecution/requestApproval",
    "params": {"threadId": "t", "turnId": "u", "itemId": "i", "startedAtMs": 1, "command": "rm -r /", "cwd": "/"},
}


def test_a_turn_that_ends_while_it_is_joined_is_looked_for_again(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    with Codex(null_app_server(hold=str(hold), on={"turn/steer": [NO_TURN, NO_TURN, JOINED]})) as codex:
        thread = codex.thread_start()
        first = thread.turn("Hello.")
        second = thread.turn("And this.")
        hold.touch()
        assert second.id == first.id and second.run().status == "completed"
        third = thread.turn("And that.")
        assert third.id != first.id and third.run().status == "completed"


def test_a_turn_that_cannot_be_joined_is_an_error_after_some_attempts(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    with Codex(null_app_server(hold=str(hold), on={"turn/steer": NO_TURN})) as codex:
        thread = codex.thread_start()
        first = thread.turn("Hello.")
        with pytest.raises(InvalidRequestError, match="no active turn to steer"):
            thread.run("And this.")
        with pytest.raises(ThreadBusyError):
            thread.run(ExternalMessage("mail", "It rains."))
        hold.touch()
        assert first.run().status == "completed"


def test_an_async_turn_is_joined_in_the_same_way(tmp_path: Path) -> None:
    hold = tmp_path / "hold"

    async def main() -> None:
        config: Any = null_app_server(hold=str(hold), on={"turn/steer": [NO_TURN, JOINED]})
        async with AsyncCodex(config) as codex:
            thread = await codex.thread_start()
            first = await thread.turn("Hello.")
            with pytest.raises(ThreadBusyError):
                await thread.turn(ExternalMessage("mail", "It rains."))
            second = await thread.turn("And this.")
            assert second.id == first.id
            hold.touch()
            assert [each.status for each in await asyncio.gather(first.run(), second.run())] == ["completed"] * 2

    asyncio.run(asyncio.wait_for(main(), 40))


def test_what_nobody_approves_is_declined_and_a_handler_is_asked() -> None:
    with Codex(null_app_server(ask=ASK)) as codex:
        assert "decline" in str(codex.thread_start().run("Hello.").final_response)
    with Codex(null_app_server(ask=ASK), approval_handler=lambda method, params: {"decision": "accept"}) as codex:
        assert "accept" in str(codex.thread_start().run("Hello.").final_response)


def test_on_a_pool_a_configuration_of_processes_is_refused(tmp_path: Path) -> None:
    for kind in (on_a_pool.Codex, on_a_pool.AsyncCodex):
        with pytest.raises(
            InvalidInputError, match=r"CodexConfig\(config_overrides=\.\.\., cwd=\.\.\.\): .*run already"
        ):
            kind(CodexConfig(cwd=str(tmp_path), config_overrides=("model='m'",)))


def test_without_a_daemon_there_is_nothing_to_connect_to() -> None:
    with pytest.raises(TransportClosedError, match="codex-pool serve"):
        on_a_pool.Codex()


def test_the_modules_of_the_pools_package_are_those_of_the_sdk() -> None:
    from codex_pool.compat.openai_codex.errors import CodexError
    from codex_pool.compat.openai_codex.types import TurnStatus

    from codex_app_server.compat.openai_codex import errors, types
    from codex_pool.compat.openai_codex import api

    assert CodexError is errors.CodexError and TurnStatus is types.TurnStatus
    assert on_a_pool.types is types and api.Codex is on_a_pool.Codex
    assert set(on_a_pool.__all__) <= set(dir(on_a_pool)) and issubclass(on_a_pool.Codex, Codex)
    with pytest.raises(AttributeError):
        on_a_pool.Kodex  # noqa: B018
