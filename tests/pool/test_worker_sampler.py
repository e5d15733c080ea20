"""Looks at the processes below a worker: with the counts that were asked for, and memory every now and then."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator

import pytest

from codex_pool.runtime import processes
from codex_pool.worker import sampler as sampler_room
from codex_pool.worker.census import ProcessSnapshot
from codex_pool.worker.sampler import Sampler


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    sampler = Sampler(os.getpid())
    yield sampler
    sampler.close()


def next_look(sampler: Sampler, timeout_s: float = 10.0) -> ProcessSnapshot:
    deadline = time.monotonic() + timeout_s
    while True:
        readable, _, _ = select.select([sampler], [], [], max(0.0, deadline - time.monotonic()))
        assert readable, "no look came"
        look = sampler.take()
        if look is not None:
            return look


def test_it_looks_with_memory_and_soon_after_it_was_asked(sampler: Sampler) -> None:
    assert sampler.take() is None and not sampler.is_running
    sampler.start()
    look = next_look(sampler)
    me = processes.identify(os.getpid())
    assert me is not None and look.memory[me].size_bytes > 1 << 20 and (look.loads, look.threads) == (0, 0)
    child = subprocess.Popen(["sleep", "1000"])
    sampler.ask(3, 2)
    asked_at = time.monotonic()
    while (look := next_look(sampler)).loads != 3:
        pass
    assert time.monotonic() - asked_at < sampler_room.MEMORY_EVERY_S
    assert child.pid in [process.id.pid for process in look.processes] and look.threads == 2
    child.kill()
    child.wait()


def test_memory_that_takes_long_to_read_is_read_less_often(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float] = []

    def slow(process: processes.ProcessId) -> None:
        read.append(time.monotonic())
        time.sleep(0.2)

    monkeypatch.setattr(processes, "memory", slow)
    monkeypatch.setattr(sampler_room, "MEMORY_EVERY_S", 0.3)
    monkeypatch.setattr(processes, "tree", lambda root: [])
    sampler.start()
    for _ in range(5):
        next_look(sampler)
    assert len(read) == 1, "0.2 s of it are enough for 10 s"


def test_it_looks_at_once_without_a_thread(sampler: Sampler) -> None:
    look = sampler.snapshot_now(4, 3)
    assert (look.loads, look.threads, look.memory) == (4, 3, {})
