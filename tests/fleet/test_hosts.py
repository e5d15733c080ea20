"""Runs on several hosts, each a process with a pool of the real binary: all is recorded once, whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest
from host_process import ProcessEngine
from host_runs import Launch, asked, texts, until
from programs import environment

from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.dataset import Sample

pytestmark = [pytest.mark.fleet, pytest.mark.real, pytest.mark.timeout(240)]


@pytest.fixture
def engine(tmp_path: Path, model_home: Path) -> ProcessEngine:
    return ProcessEngine(tmp_path / "spools", environment(model_home))


@pytest.fixture
def model_home(tmp_path: Path, model: LoopbackModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home, from which the hosts get their configuration."""
    from codex_app_server.testing.loopback import write_loopback_home

    home = tmp_path / "user"
    write_loopback_home(home, model.base_url)
    monkeypatch.setenv("CODEX_HOME", str(home))
    return home


def test_samples_of_two_hosts_with_workspaces_and_scorers(
    tmp_path: Path, engine: ProcessEngine, model: LoopbackModel
) -> None:
    template = tmp_path / "template"
    (template / "sub").mkdir(parents=True)
    (template / "sub" / "run.sh").write_text("#!/bin/sh\necho 1 > made\n")
    (template / "sub" / "run.sh").chmod(0o755)
    expected = tmp_path / "expected"
    expected.write_text("secret")
    check = {"type": "command", "command": "test -x sub/run.sh && cat given", "files": {"given": str(expected)}}
    samples = [
        Sample(str(n), (f'[[tool_call "echo {n} > made-{n}"]] [[text done]]',), workspace={"template": str(template)})
        for n in range(8)
    ]
    launch = Launch(tmp_path, samples, scorers=[json.dumps(check)])

    async def main() -> None:
        await engine.add("a")
        await engine.add("b")
        await launch.run(engine)

    asyncio.run(main())
    assert launch.statuses == {"completed": 8}, launch.said
    for row in launch.rows:
        assert row.record is not None and row.record.worker is not None
        assert [score.passed for score in row.scores] == [True] and "secret" in (row.scores[0].explanation or "")
        diff = (launch.out / "artifacts" / row.directory_name / "diff.patch").read_text()
        assert f"made-{row.id}" in diff and "sub/run.sh" not in diff
    assert {each.host for each in launch.attempts} == {"a", "b"}
    assert sorted(launch.lines()) == sorted(str(n) for n in range(8))
    # Nothing is left on the hosts of a run that is over.
    assert engine.closed is True and not any(path for path in engine.root.iterdir())


def test_a_machine_that_goes_loses_its_attempts_and_one_that_comes_gets_work(
    tmp_path: Path, engine: ProcessEngine, model: LoopbackModel
) -> None:
    launch = Launch(tmp_path, texts(20, "[[text deltas=4 pace_ms=100]] sample"))

    async def main() -> None:
        await engine.add("a")
        tasks = []

        async def replace() -> None:
            # A turn is under way: it has been asked, and its answer takes 400 ms.
            asked_before = len(model.requests)
            await until(lambda: len(model.requests) > asked_before)
            await engine.kill("a")
            await engine.add("b")

        def on_record(count: int) -> None:
            if count == 3:
                tasks.append(asyncio.ensure_future(replace()))

        launch.on_record = on_record
        await launch.run(engine)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert launch.statuses == {"completed": 20}, launch.said
    lost = [each for each in launch.attempts if each.status == "lost"]
    assert lost and {each.host for each in lost} == {"a"}
    assert {each.host for each in launch.attempts} == {"a", "b"}
    assert any("host a was lost: its machine has gone" in words for words in launch.said)
    assert sorted(launch.lines()) == sorted(str(n) for n in range(20))
    # A sample is asked once an attempt, and one that is recorded never again.
    tries = Counter(each.n for each in launch.attempts)
    requests = asked(model)
    for row in launch.rows:
        assert 1 <= requests[row.spec["prompts"][0]] <= tries[row.n]


def test_a_host_that_is_started_again_keeps_its_leases(
    tmp_path: Path, engine: ProcessEngine, model: LoopbackModel
) -> None:
    launch = Launch(tmp_path, texts(6, "[[text deltas=4 pace_ms=100]] sample"))

    async def main() -> None:
        await engine.add("a")
        tasks = []

        async def restart() -> None:
            await engine.kill("a", gone=False)
            await engine.add("a")

        def on_record(count: int) -> None:
            if count == 1:
                tasks.append(asyncio.ensure_future(restart()))

        launch.on_record = on_record
        await launch.run(engine, retries=3)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert launch.statuses == {"completed": 6}, launch.said
    # Interrupted is what was leased to it while it had no pool yet: no turn was started.
    assert {each.status for each in launch.attempts if each.note != "no turn of it was started"} <= {
        "completed",
        "lost",
        "superseded",
    }
    assert sorted(launch.lines()) == sorted(str(n) for n in range(6))


def test_what_a_host_did_while_the_run_was_dead_is_collected(
    tmp_path: Path, engine: ProcessEngine, model: LoopbackModel
) -> None:
    samples = texts(4, "[[text deltas=4 pace_ms=2000]] sample")
    first, second = Launch(tmp_path, samples, scorers=["includes"]), Launch(tmp_path, samples, scorers=["includes"])

    async def main() -> None:
        await engine.add("a")
        with contextlib.suppress(ZeroDivisionError):
            async with first.open(engine) as (scheduler, executor):
                running = asyncio.ensure_future(scheduler.run(executor, first.scorers))
                # The run dies with all of its samples asked, and none answered.
                await until(lambda: len(model.requests) == 4)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                raise ZeroDivisionError
        assert engine.closed is False
        spool = engine.root / "a" / "results"
        await until(lambda: len(list(spool.iterdir())) == 4)
        engine.rejoin("a")
        await second.run(engine)

    asyncio.run(main())
    assert second.statuses == {"completed": 4}, second.said
    # All were asked once, by the attempts of the first launch.
    assert len(model.requests) == 4 and [each.attempt for each in second.attempts] == [1] * 4
    assert all(score.passed for row in second.rows for score in row.scores)
    assert sum(row.record.usage["total_tokens"] > 0 for row in second.rows if row.record and row.record.usage) == 4


def test_the_first_complete_result_wins_and_a_later_one_is_superseded(
    tmp_path: Path, engine: ProcessEngine, model: LoopbackModel
) -> None:
    # The first attempt ends while its host is cut off; the second takes so long that the first comes back before it.
    launch = Launch(tmp_path, [Sample("0", ("[[text deltas=2 pace_ms=500]] sample 0",))])

    async def main() -> None:
        await engine.add("a")

        async def cut() -> None:
            await until(lambda: len(model.requests) == 1)
            engine.deaf.add("a")
            await engine.add("b")
            # Host b has the second attempt by now.
            await until(lambda: len(model.requests) == 2)
            engine.deaf.clear()

        cutting = asyncio.ensure_future(cut())
        await launch.run(engine)
        await cutting

    asyncio.run(main())
    assert launch.statuses == {"completed": 1}, launch.said
    assert launch.lines() == ["0"]
    ends = {each.host: each for each in launch.attempts}
    assert any("host a was lost" in words for words in launch.said)
    assert sorted(str(each.status) for each in ends.values()) == ["completed", "superseded"]
    late = next(each for each in ends.values() if each.status == "superseded")
    assert late.note is not None and "superseded" in late.note
