"""Questions about the configuration whose worker dies before it answers: the successor is asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from codex_app_server import InternalRpcError, JsonRpcError, TurnLostError
from codex_app_server.errors import INTERNAL_ERROR, TURN_LOST
from codex_pool.configuration import ConfigurationError, aread_configuration, read_configuration
from codex_pool_cli import run_thread

LOST = TurnLostError(TURN_LOST, "worker w0.1 died before it answered config/read")
UNREADABLE = InternalRpcError(INTERNAL_ERROR, "failed to load configuration")
ANSWER = b'{"config":{"sandbox_mode":"workspace-write"},"origins":{}}'


class Answers:
    """A client of a pool that answers as it is told, one answer after the other."""

    def __init__(self, *answers: JsonRpcError | bytes) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def _next(self, method: str) -> bytes:
        self.asked.append(method)
        answer = self._answers.pop(0)
        if isinstance(answer, bytes):
            return answer
        raise answer

    def perform(self, operation: Any, timeout_s: float) -> Any:
        return operation.finish(self._next(operation.method))

    def call(self, method: str, params: Any, timeout_s: float) -> bytes:
        return self._next(method)


def read(client: Answers) -> Any:
    return read_configuration(SimpleNamespace(client=client))  # type: ignore[arg-type]


def aread(client: Answers) -> Any:
    async def perform(operation: Any, timeout_s: float) -> Any:
        return client.perform(operation, timeout_s)

    codex: Any = SimpleNamespace(client=SimpleNamespace(perform=perform))
    return asyncio.run(aread_configuration(codex))


def of_run(client: Answers) -> Any:
    return run_thread._read_config(client, None)  # type: ignore[arg-type]


WAYS = pytest.mark.parametrize("way", [read, aread, of_run])


@WAYS
def test_the_successor_of_a_dead_worker_is_asked(way: Any) -> None:
    client = Answers(LOST, LOST, ANSWER)
    assert way(client) is not None and client.asked == ["config/read"] * 3


@WAYS
def test_workers_that_all_die_are_an_error_and_never_no_configuration(way: Any) -> None:
    client = Answers(LOST, LOST, LOST)
    with pytest.raises(TurnLostError, match="died before it answered"):
        way(client)
    assert client.asked == ["config/read"] * 3


@WAYS
def test_a_death_while_the_reason_is_asked_for_is_not_the_reason(way: Any) -> None:
    reason = InternalRpcError(INTERNAL_ERROR, "config.toml:3:1: unknown variant")
    client = Answers(UNREADABLE, LOST, UNREADABLE, reason)
    with pytest.raises(ConfigurationError, match="unknown variant"):
        way(client)
    assert client.asked == ["config/read", "thread/start"] * 2
