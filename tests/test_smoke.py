"""One real turn through the SDK and one through the pool: what every supported Python must do."""

from __future__ import annotations

import asyncio

import pytest

from codex_app_server import AppServerConfig, AsyncCodex, Codex
from codex_pool import Pool

pytestmark = [pytest.mark.real, pytest.mark.smoke]


def test_one_real_turn(config: AppServerConfig) -> None:
    with Codex(config) as codex:
        result = codex.thread_start().run("Say sextant-17.")
    assert result.final_response is not None and "sextant-17" in result.final_response


def test_one_real_turn_async(config: AppServerConfig) -> None:
    async def run() -> str | None:
        async with AsyncCodex(config) as codex:
            return (await (await codex.thread_start()).run("Say quadrant-18.")).final_response

    answer = asyncio.run(run())
    assert answer is not None and "quadrant-18" in answer


def test_one_real_turn_through_the_pool(config: AppServerConfig) -> None:
    with Pool(workers=1, config=config) as pool, pool.connect() as codex:
        result = codex.thread_start().run("Say astrolabe-19.")
    assert result.final_response is not None and "astrolabe-19" in result.final_response
