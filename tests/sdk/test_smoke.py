"""One real turn through the SDK and one through the pool: what every supported Python must do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

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


def test_a_client_of_the_pool_is_asked(config: AppServerConfig, work: Path) -> None:
    asked: list[str] = []

    def decide(method: str, params: Any) -> dict[str, str]:
        asked.append(method)
        return {"decision": "decline"}

    with Pool(workers=1, config=config) as pool, pool.connect(approval_handler=decide) as codex:
        thread = codex.thread_start(approval_mode="ask", sandbox="read-only")
        thread.run(f'[[tool_call "echo hi > {work}/file" escalate=true]] [[text "so be it"]]')
    assert asked == ["item/commandExecution/requestApproval"]
    assert not (work / "file").exists()
