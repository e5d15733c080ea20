"""threads() and pages by hand on the real app-server: many threads of the same second, one app-server and a pool."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import AppServerConfig, AsyncCodex, Codex, InvalidInputError
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool

pytestmark = pytest.mark.real
MANY = 260


@pytest.fixture
def histories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return importlib.import_module("histories")


@pytest.fixture
def many(histories: Any, tmp_path: Path) -> tuple[AppServerConfig, list[str]]:
    """A home with so many threads, begun within two seconds."""
    history = histories.begin(tmp_path / "home")
    return histories.config_of(tmp_path / "home"), sorted(histories.multiply(history, MANY))


def by_hand(codex: Codex, **options: Any) -> list[str]:
    found: list[str] = []
    page = codex.thread_list(**options)
    while True:
        found += [thread.id for thread in page.data]
        if page.next_cursor is None:
            return found
        page = codex.thread_list(**options, cursor=page.next_cursor)


def test_one_app_server(many: tuple[AppServerConfig, list[str]]) -> None:
    config, ids = many
    with Codex(config) as codex:
        assert len(set(by_hand(codex, limit=100))) < MANY, "its cursors are cut to seconds"
        found = [thread.id for thread in codex.threads()]
        assert sorted(found) == ids
        ordered = [thread.id for thread in codex.threads(sort_direction="asc")]
        assert ordered == sorted(ordered) == ids
        assert list(codex.threads(cwd="/nowhere")) == list(codex.threads(archived=True)) == []
        with pytest.raises(InvalidInputError, match="threads\\(\\) begins at the beginning"):
            codex.threads(cursor="x")

    async def read() -> list[str]:
        async with AsyncCodex(config) as codex:
            return [thread.id async for thread in codex.threads(use_state_db_only=True)]

    assert sorted(asyncio.run(read())) == ids


def test_a_pool(many: tuple[AppServerConfig, list[str]], tmp_path: Path) -> None:
    config, ids = many
    with Pool(2, config, log_file=tmp_path / "log") as pool, pool.connect() as codex:
        assert sorted(by_hand(codex, limit=100)) == ids
        assert sorted(by_hand(codex, limit=100, sort_key="updated_at")) == ids
        assert sorted(thread.id for thread in codex.threads()) == ids
        assert codex.thread_list(limit=5).data[0].preview == "hello"


def test_threads_that_the_workers_of_a_pool_have_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is in the database of one of them."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with LoopbackModel() as model:
        write_loopback_home(tmp_path / "home", model.base_url)
        config = AppServerConfig(env={"CODEX_HOME": str(tmp_path / "home")}, cwd=str(tmp_path))
        with Pool(2, config, log_file=tmp_path / "log") as pool:

            async def begin() -> list[str]:
                async with await pool.aconnect() as codex:
                    threads = await asyncio.gather(*(codex.thread_start() for _ in range(12)))
                    await asyncio.gather(*(thread.run("hello") for thread in threads))
                    await asyncio.gather(*(thread.set_name(f"number {n}") for n, thread in enumerate(threads)))
                    for thread in threads[:4]:
                        await codex.thread_archive(thread.id)
                    found = [each.id async for each in codex.threads()]
                    assert sorted(found) == sorted(thread.id for thread in threads[4:])
                    return [thread.id for thread in threads]

            ids = asyncio.run(begin())
            with pool.connect() as codex:
                for options in ({}, {"sort_key": "updated_at"}, {"sort_key": "recency_at"}, {"sort_direction": "asc"}):
                    assert sorted(by_hand(codex, limit=3, **options)) == sorted(ids[4:]), options
                assert sorted(by_hand(codex, limit=3, archived=True)) == sorted(ids[:4])
                assert {thread.name for thread in codex.threads()} == {f"number {n}" for n in range(4, 12)}
                assert [thread.name for thread in codex.threads(search_term="number 7")] == ["number 7"]
