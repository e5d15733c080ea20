"""The judge's way to a model: a thread of its own for each question, through the pool that runs the samples."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from codex_app_server import AppServerError, AsyncCodex, TransportClosedError, operations
from codex_app_server._async.api import AsyncThread
from codex_app_server.results import TurnResult
from codex_pool import trust
from codex_pool.prices import Prices
from codex_pool.sandbox_modes import READ_ONLY

from ..configuration.started_thread import start_thread
from ..rules import retry
from ..rules.bill import Bill, tokens_of
from ..rules.retry import Outcome
from .scorer import ScoringFailed

# A question that is lost, stalled or met overload is asked again: it is small beside the sample that it is about.
RETRIES = 2
_RETRY_ON = frozenset({"lost", "stalled", retry.OVERLOAD})


class Asking:
    """Asks `codex`; threads work in `directory`, an empty one, read-only, and are not kept.

    `on_usage(tokens, bill)` is awaited with the tokens of each question and their cost by `prices`, also of one that
    failed or was given up: that was paid for as well.
    `replaced(codex, error)` gives the client to ask when `codex` has ended with this error; then the question is asked
    again, and has all its time again.
    """

    def __init__(
        self,
        codex: AsyncCodex,
        directory: Path,
        *,
        on_usage: Callable[[int, Bill], Awaitable[None]] | None = None,
        prices: Prices | None = None,
        replaced: Callable[[AsyncCodex, TransportClosedError], Awaitable[AsyncCodex]] | None = None,
    ) -> None:
        self._codex = codex
        self._replaced = replaced
        self._directory = directory
        self._on_usage = on_usage
        self._prices = prices

    async def __call__(
        self, prompt: str, output_schema: dict[str, Any], *, model: str | None, effort: str | None, timeout_s: float
    ) -> str:
        """The final response. Raises AppServerError, TimeoutError if a turn of it runs longer than `timeout_s`, and
        ScoringFailed if there is none."""
        while True:
            codex = self._codex
            try:
                return await self._until_answered(codex, prompt, output_schema, model, effort, timeout_s)
            except TransportClosedError as error:
                if self._replaced is None:
                    raise
                self._codex = await self._replaced(codex, error)

    async def _until_answered(
        self,
        codex: AsyncCodex,
        prompt: str,
        output_schema: dict[str, Any],
        model: str | None,
        effort: str | None,
        timeout_s: float,
    ) -> str:
        tries = 0
        while True:
            try:
                return await self._once(codex, prompt, output_schema, model, effort, timeout_s)
            except TransportClosedError:
                raise
            except AppServerError as error:
                tries += 1
                outcome = Outcome(*retry.failure(error))
                if not retry.may_retry(outcome, tries, RETRIES, _RETRY_ON):
                    raise
            await asyncio.sleep(retry.pause_s(outcome, tries, jitter=random.random()))

    async def _once(
        self,
        codex: AsyncCodex,
        prompt: str,
        output_schema: dict[str, Any],
        model: str | None,
        effort: str | None,
        timeout_s: float,
    ) -> str:
        self._directory.mkdir(parents=True, exist_ok=True)
        of_thread = {
            "cwd": str(self._directory),
            "model": model,
            "sandbox": READ_ONLY,
            "approval_policy": "never",
            "ephemeral": True,
            "config": trust.untrusting(str(self._directory)),
            "sub_agents": False,
        }
        started = await start_thread(codex.client, operations.thread_start(of_thread))
        options: dict[str, Any] = {"effort": effort, "output_schema": output_schema}
        # It is answered when the turn begins: the wait for a place, behind turns of samples, is not the judge's.
        turn = await AsyncThread(codex.client, started.id).turn(prompt, interest="final", **options)
        bill, tokens = Bill(self._prices, started.answering), 0
        try:
            result: TurnResult = await asyncio.wait_for(turn.run(), timeout_s)
            if result.usage is not None:
                used = result.usage.model_dump(by_alias=True)
                total = tokens_of(used["total"])
                bill.used(total, tokens_of(used["last"]))
                tokens = total["total_tokens"]
        finally:
            if self._on_usage is not None:
                await self._on_usage(tokens, bill)
        if result.status == "interrupted":
            raise ScoringFailed("the judge's turn was interrupted")
        if result.final_response is None:
            raise ScoringFailed("the judge has answered nothing")
        return result.final_response
