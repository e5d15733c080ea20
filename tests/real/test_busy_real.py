"""A thread is busy while compaction, a goal or a review runs on it, over one app-server and over a pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import AppServerConfig, AsyncCodex, Codex, RequestTimeoutError, ThreadBusyError
from codex_app_server._sync.api import Thread
from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, write_loopback_home
from codex_pool import Pool

pytestmark = pytest.mark.real

LIMIT_S = 30.0
BEFORE = '[[text "before"]]'
# codex repeats the last prompt when it goes on with a goal.
BEFORE_GOAL = f'{BEFORE} [[text "a b c d e f" deltas=6 pace_ms=250]]'
# The first rule: what codex asks the model for when it compacts.
SLOWLY = Text(text="a b c d e f g h i j", deltas=10, pace_ms=150)
SCRIPT = Script(
    rules=(Rule(answer=SLOWLY, contains="CONTEXT CHECKPOINT COMPACTION"), Rule(answer=SLOWLY, contains="SLOW"))
)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[LoopbackModel, AppServerConfig]]:
    with LoopbackModel(SCRIPT) as model:
        home = write_loopback_home(tmp_path / "slow", model.base_url)
        yield model, AppServerConfig(env={"CODEX_HOME": str(home)}, cwd=str(tmp_path))


@pytest.fixture(params=["app-server", "pool"])
def codex(request: pytest.FixtureRequest, slow: tuple[LoopbackModel, AppServerConfig]) -> Iterator[Codex]:
    if request.param == "app-server":
        with Codex(slow[1]) as codex:
            yield codex
    else:
        with Pool(1, slow[1]) as pool, pool.connect() as codex:
            yield codex


def until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def busy_with(codex: Codex, what: str) -> Thread:
    """A thread on which something runs that takes 1.5 s at least, and has been begun just now."""
    thread = codex.thread_start()
    thread.run(BEFORE_GOAL if what == "goal" else BEFORE)
    if what == "compaction":
        thread.compact()
    elif what == "goal":
        thread.set_goal("go on", token_budget=1_000_000)
        until(lambda: codex.client.running_turn(thread.id)[0])
    else:
        thread.review({"type": "custom", "instructions": "SLOW"})
    return thread


WHAT = pytest.mark.parametrize("what", ["compaction", "goal", "review"])


def prompts(model: LoopbackModel) -> list[str]:
    return [record.prompt for record in model.requests]


@WHAT
def test_a_turn_is_refused_meanwhile(codex: Codex, slow: tuple[LoopbackModel, AppServerConfig], what: str) -> None:
    thread = busy_with(codex, what)
    until(lambda: codex.client.running_turn(thread.id)[1])
    with pytest.raises(ThreadBusyError, match="pass on_busy=") as raised:
        thread.run("refused")
    assert raised.value.turn_id is not None
    with pytest.raises(RequestTimeoutError):
        thread.run("refused", on_busy="queue", timeout=0.2)
    if what == "goal":
        thread.clear_goal()
    assert thread.run('[[text "after"]]', on_busy="queue", timeout=LIMIT_S).final_response == "after"
    assert codex.client.running_turn(thread.id) == (False, None)
    assert not any("refused" in prompt for prompt in prompts(slow[0]))


@WHAT
def test_a_turn_waits_for_the_end(codex: Codex, slow: tuple[LoopbackModel, AppServerConfig], what: str) -> None:
    thread = busy_with(codex, what)
    assert thread.run('[[text "queued"]]', on_busy="queue", timeout=LIMIT_S).final_response == "queued"
    if what == "goal":
        thread.clear_goal()
    # A goal may have gone on before.
    records = slow[0].requests
    # Going on with a goal repeats the last prompt: the first of them is ours.
    place = next(number for number, record in enumerate(records) if "queued" in record.prompt)
    assert place >= 2 and records[1].outcome == records[place].outcome == "completed"
    assert records[place - 1].ended_at < records[place].received_at


@pytest.mark.parametrize("what", ["compaction", "review"])
def test_what_takes_no_input_is_not_steered(codex: Codex, what: str) -> None:
    thread = busy_with(codex, what)
    until(lambda: codex.client.running_turn(thread.id)[1])
    with pytest.raises(ThreadBusyError):
        thread.run("steered", on_busy="steer")
    assert thread.run('[[text "after"]]', on_busy="queue", timeout=LIMIT_S).final_response == "after"


def test_a_goal_is_steered(codex: Codex) -> None:
    thread = busy_with(codex, "goal")
    turn = thread.turn('[[text "as steered"]]', on_busy="steer")
    assert turn.run(timeout=LIMIT_S).final_response == "as steered"
    thread.clear_goal()


def test_another_client_of_the_pool_waits_too(slow: tuple[LoopbackModel, AppServerConfig]) -> None:
    with Pool(1, slow[1]) as pool, pool.connect() as codex, pool.connect() as other:
        thread = codex.thread_start()
        thread.run(BEFORE)
        same = other.thread_resume(thread.id)
        thread.compact()
        assert same.run('[[text "other"]]', on_busy="queue", timeout=LIMIT_S).final_response == "other"
        review = thread.review({"type": "custom", "instructions": "SLOW"})
        assert same.run('[[text "again"]]', on_busy="queue", timeout=LIMIT_S).final_response == "again"
        assert review.run(timeout=LIMIT_S).status == "completed"


def test_right_after_the_request_it_is_busy_too(slow: tuple[LoopbackModel, AppServerConfig]) -> None:
    """Before a word has come of the turn; a pool has it wait then."""
    with Codex(slow[1]) as codex:
        for on_busy in ("error", "steer"):
            thread = busy_with(codex, "compaction")
            with pytest.raises(ThreadBusyError):
                thread.run("refused", on_busy=on_busy)  # type: ignore[arg-type]
    with Pool(1, slow[1]) as pool, pool.connect() as codex:
        thread = busy_with(codex, "compaction")
        codex.client.request("turn/start", {"thread_id": thread.id, "input": [{"type": "text", "text": "held"}]})
        until(lambda: [record for record in slow[0].requests if record.prompt == "held"])
        compaction, held = slow[0].requests[-2:]
        assert compaction.ended_at < held.received_at


def test_asyncio(slow: tuple[LoopbackModel, AppServerConfig]) -> None:
    async def run() -> None:
        async with AsyncCodex(slow[1]) as codex:
            thread = await codex.thread_start()
            await thread.run(BEFORE)
            await thread.compact()
            with pytest.raises(ThreadBusyError):
                await thread.run("refused")
            with pytest.raises(ThreadBusyError):
                await thread.run("refused", on_busy="steer")
            result = await thread.run('[[text "queued"]]', on_busy="queue", timeout=LIMIT_S)
            assert result.final_response == "queued"

    asyncio.run(run())
