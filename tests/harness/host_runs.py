"""Runs on hosts that are processes, without the command: launches, their samples, and what they left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from host_process import ProcessEngine

from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.configuration.settings import HostOptions, Settings
from codex_batch.dataset import Sample
from codex_batch.dataset.request import Request
from codex_batch.hosts.run_hosts import RunHosts
from codex_batch.rules.limits import RunLimits, RunMeter
from codex_batch.rules.progress import Progress
from codex_batch.run.context import RunCallbacks, RunnerConfig
from codex_batch.run.disks import Disk
from codex_batch.run.scheduler import Scheduler, entry_of
from codex_batch.scoring import Scorers
from codex_batch.store import AttemptRow, RunDirectory, SampleRow
from codex_pool.options import PoolOptions

LIMIT_S = 150.0


class Launch:
    """One launch of a run on hosts that are processes; `on_record` is called with the number of records so far."""

    def __init__(
        self,
        tmp: Path,
        samples: Sequence[Sample],
        *,
        scorers: Sequence[str] = (),
        login: Path | None = None,
        limits: RunLimits | None = None,
    ) -> None:
        self.out = tmp / "out"
        self.scorers = Scorers(scorers)
        self.settings = Settings(
            request=Request(source="d.jsonl"),
            output=self.out,
            pool=PoolOptions(workers=1, turns_per_worker=4),
            hosts=HostOptions(address="processes", login=login),
        )
        self.samples = samples
        self.limits = limits or RunLimits()
        self.said: list[str] = []
        self.records: list[SampleRow] = []
        self.on_record: Callable[[int], None] = lambda count: None
        self.rows: list[SampleRow] = []
        self.attempts: list[AttemptRow] = []

    @contextlib.asynccontextmanager
    async def open(self, engine: ProcessEngine, **config: Any) -> AsyncIterator[tuple[Scheduler, Any]]:
        directory = self.directory = RunDirectory(self.out)
        try:
            directory.load((entry_of(each, self.scorers) for each in self.samples), "d.jsonl")
            directory.launch({})
            progress = Progress(total=len(self.samples))
            stop = asyncio.Event()

            def on_record(row: SampleRow) -> None:
                self.records.append(row)
                self.on_record(len(self.records))

            scheduler = Scheduler(
                directory,
                progress,
                stop,
                config=RunnerConfig(concurrency=1, **{"retries": 2, **config}),
                callbacks=RunCallbacks(
                    on_retry=lambda sample, outcome: self.said.append(f"{sample.id} {outcome.status}"),
                    on_record=on_record,
                    on_problem=self.said.append,
                ),
                meter=RunMeter(self.limits, time.monotonic()),
                disks=[Disk(self.out)],
            )
            hosts = RunHosts(
                self.settings,
                directory,
                scorers=self.scorers,
                prices=None,
                effective={},
                guarded=True,
                warn=lambda kind, message: self.said.append(f"{kind}: {message}"),
                on_failure=stop.set,
            )
            await hosts.prepare()
            self.hosts = hosts
            async with hosts.open(scheduler, engine) as executor:
                yield scheduler, executor
            self.rows = list(directory.store.samples())
            self.attempts = list(directory.store.all_attempts())
        finally:
            directory.close()

    async def run(self, engine: ProcessEngine, **config: Any) -> None:
        async with self.open(engine, **config) as (scheduler, executor):
            await asyncio.wait_for(scheduler.run(executor, self.scorers), LIMIT_S)

    @property
    def statuses(self) -> Counter[str | None]:
        return Counter(None if row.record is None else row.record.status for row in self.rows)

    def lines(self) -> list[str]:
        return [json.loads(line)["id"] for line in (self.out / "results.jsonl").read_text().splitlines()]


def texts(count: int, words: str = "[[text deltas=2]] sample") -> list[Sample]:
    return [Sample(str(number), (f"{words} {number}",), target=f"sample {number}") for number in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def asked(model: LoopbackModel) -> Counter[str]:
    return Counter(record.prompt for record in model.requests)
