"""A batch whose disk is full, with the real binary and a real small disk: it waits for room, and loses nothing."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import LIMIT_S, Program, started
from small_disk import SmallDisk, small_disk

from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_batch.store import open_run
from codex_pool.runtime import processes

# Where the disk is shared, tests wait for each other.
pytestmark = pytest.mark.timeout(240)
MEGABYTES = 64
# What a sample makes is on the disk of the run: when that is full, only the run knows why it failed.
WORK = '[[tool_call "sleep 0.5; echo made > answer && cat answer"]] [[text "{output}"]]'
SAMPLES = 8


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", MEGABYTES) as disk:
        yield disk


@pytest.fixture
def command(tmp_path: Path, disk: SmallDisk, model: LoopbackModel) -> list[str]:
    """A batch with all that is its own on the small disk, as a user writes it."""
    write_loopback_home(disk.seen / "home", model.base_url)
    data = tmp_path / "data.jsonl"
    workspace = {"files": {"given": "x\n"}}
    samples = [{"id": f"s{n}", "prompt": f"{n} {WORK}", "workspace": workspace} for n in range(SAMPLES)]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    options = ["--workers", "1", "--turns-per-worker", "2", "--home", str(disk.path / "home"), "--json"]
    options += ["--scorer", "command:test -s answer", "-o", str(disk.path / "out")]
    return [*disk.within, sys.executable, "-m", "codex_pool_cli", "batch", str(data), *options]


def run(command: list[str]) -> Program:
    with started(command) as batch:
        batch.wait(LIMIT_S)
    return batch


def check(run: Path) -> None:
    """Every sample is there once, completed, with all that it made, and its score."""
    with open_run(run) as store:
        rows = list(store.samples())
        for row in rows:
            tried = [(attempt.status, attempt.error, attempt.note) for attempt in store.attempts(row.n)]
            assert row.record is not None and row.record.status == "completed", (row.id, row.record, tried)
            assert [(score.passed, score.error) for score in row.scores] == [(True, None)], (row.id, row.scores, tried)
            assert row.record.final_response == "made", (row.id, tried)
            assert b"+made\n" in store.artifact(row.n, "diff.patch")
        lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [row.id for row in rows] == [line["id"] for line in lines] == [f"s{n}" for n in range(SAMPLES)]


def fill_while_samples_run(disk: SmallDisk, model: LoopbackModel) -> None:
    """Two samples have ended then, and the commands of two have had no room."""
    # Each sample makes two requests, the second with what its command printed.
    model.wait_for(lambda request: True, LIMIT_S, count=6)
    disk.fill()
    model.wait_for(lambda request: True, LIMIT_S, count=8)


@pytest.mark.real
def test_a_run_whose_disk_is_full_waits_for_room_and_goes_on(
    tmp_path: Path, disk: SmallDisk, command: list[str], model: LoopbackModel
) -> None:
    out = disk.path / "out"
    with started(command) as batch:
        fill_while_samples_run(disk, model)
        said = batch.wait_for_line("paused: the disk is full")
        assert f"make room on the disk of {out}" in said and "the run goes on by itself then" in said
        disk.make_room()
        assert batch.wait(LIMIT_S) == 0, batch.lines
    ended = [json.loads(line) for line in batch.lines["stdout"]]
    assert sorted(line["id"] for line in ended if line["event"] == "sample") == [f"s{n}" for n in range(SAMPLES)]
    assert ended[-1]["event"] == "done" and ended[-1]["counts"]["completed"] == SAMPLES
    check(disk.copy("out", tmp_path / "copy"))


@pytest.mark.real
def test_a_run_that_is_ended_on_a_full_disk_is_finished_by_the_same_command(
    tmp_path: Path, disk: SmallDisk, command: list[str], model: LoopbackModel
) -> None:
    out = disk.path / "out"
    with started(command) as batch:
        fill_while_samples_run(disk, model)
        batch.wait_for_line("paused: the disk is full")
        assert batch.end(signal.SIGINT) == 130, batch.lines
    stderr = "\n".join(batch.lines["stderr"])
    assert "Traceback" not in stderr and f"make room on the disk of {out}" in stderr, stderr
    # As long as there is no room the command does not begin, and says the same.
    again = run(command)
    assert again.process.returncode == 2, again.lines
    assert f"make room on the disk of {out}" in again.lines["stderr"][-1], again.lines
    disk.make_room()
    finished = run(command)
    assert finished.process.returncode == 0, finished.lines
    check(disk.copy("out", tmp_path / "copy"))


@pytest.mark.real
def test_a_run_on_a_disk_that_is_full_from_the_start_says_so(
    disk: SmallDisk, command: list[str], model: LoopbackModel
) -> None:
    disk.fill()
    out = disk.path / "out"
    batch = run(command)
    assert batch.process.returncode == 2 and model.requests == []
    assert f"make room on the disk of {out}" in batch.lines["stderr"][-1], batch.lines


# The disk of the CODEX_HOME, when it is another one.


@pytest.fixture
def command_with_home_elsewhere(tmp_path: Path, disk: SmallDisk, model: LoopbackModel) -> list[str]:
    """A batch of which only the CODEX_HOME is on the small disk."""
    write_loopback_home(disk.seen / "home", model.base_url)
    data = tmp_path / "data.jsonl"
    samples: list[dict[str, Any]] = [{"id": "s0", "prompts": ["first", "second [[hang]] [[text ok]]"]}]
    samples += [{"id": f"s{n}", "prompt": f"{n} {'[[hang]] ' if n < 2 else ''}[[text ok]]"} for n in range(1, 4)]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    options = ["--workers", "1", "--turns-per-worker", "2", "--home", str(disk.path / "home"), "--json"]
    options += ["-o", str(tmp_path / "out")]
    return [*disk.within, sys.executable, "-m", "codex_pool_cli", "batch", str(data), *options]


@pytest.mark.real
def test_a_run_whose_home_is_on_a_full_disk_of_its_own_waits_for_room_too(
    tmp_path: Path, disk: SmallDisk, command_with_home_elsewhere: list[str], model: LoopbackModel
) -> None:
    with started(command_with_home_elsewhere) as batch:
        model.wait_for(lambda request: True, LIMIT_S, count=3)
        disk.fill()
        said = batch.wait_for_line("paused: the disk is full")
        assert f"make room on the disk of {disk.path / 'home'}; the run goes on by itself then" in said
        # What a worker comes to that cannot write may well be its death.
        (app_server,) = (
            process
            for process in processes.descendants(batch.process.pid)
            if b"app-server" in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        )
        processes.kill(app_server)
        disk.make_room()
        assert batch.wait(LIMIT_S) == 0, batch.lines
    with open_run(tmp_path / "out") as store:
        rows = list(store.samples())
        attempts = {row.id: [(a.status, (a.error or {}).get("kind")) for a in store.attempts(row.n)] for row in rows}
    assert [row.record and row.record.status for row in rows] == ["completed"] * 4, attempts
    again, once = [("failed", "diskFull"), ("completed", None)], [("completed", None)]
    assert attempts == {"s0": again, "s1": again, "s2": once, "s3": once}
    # What its turns did while the disk was full is not built on.
    assert [request.prompt for request in model.requests].count("first") == 2


@pytest.mark.real
def test_a_run_whose_home_is_on_a_disk_that_is_full_from_the_start_says_so(
    disk: SmallDisk, command_with_home_elsewhere: list[str], model: LoopbackModel
) -> None:
    disk.fill()
    batch = run(command_with_home_elsewhere)
    assert batch.process.returncode == 3 and model.requests == [], batch.lines
    assert f"make room on the disk of {disk.path / 'home'}" in batch.lines["stderr"][-1], batch.lines
