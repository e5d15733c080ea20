"""A host on its spool, with a pool that opens at once: what it goes on with after it was killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codex_batch.dataset import Sample
from codex_batch.hosts import messages
from codex_batch.hosts.host import LEASES, RESULTS, Host
from codex_batch.hosts.messages import Collect, Delivery, Lease, Opened
from codex_batch.store import RecordRow, RunDirectory, SampleRow, Written

N = 3


class OpenPool:
    """A pool in whose place nothing runs."""

    def __init__(self) -> None:
        self.asked, self.slots, self.paused = (), (), None
        self.rate_limiter: dict[str, Any] = {}

        async def written(work: Callable[[], Written[Any]]) -> Any:
            return work().result()

        self.context = SimpleNamespace(storage=SimpleNamespace(written=written))

    async def open(self, plan: Any) -> Opened:
        return Opened(1, "1.0", {})


def killed_before_it_was_cleared(spool: Path) -> None:
    """A spool as of a host that was killed right after it kept a result."""
    for name in (LEASES, RESULTS):
        (spool / name).mkdir(parents=True)
    sample = Sample("a", ("hello",))
    record = RecordRow("completed", 1, final_response="of before")
    lease = Lease("k0", N, {}, {}, "digest")
    (spool / LEASES / "k0").write_bytes(messages.encode(lease))
    (spool / RESULTS / "k0").write_bytes(messages.encode(Delivery("k0", N, record=record)))
    directory = RunDirectory(spool)
    row = SampleRow(
        n=N,
        id=sample.id,
        epoch=1,
        variant="",
        digest="digest",
        spec={},
        tags=(),
        state="scoring",
        selected=True,
        position=N,
        record=record,
        scores=(),
    )
    directory.add_leased(row).result()
    directory.store.artifacts_of(N).mkdir(parents=True)
    (directory.store.artifacts_of(N) / "diff.patch").write_text("of before")
    directory.close()


def test_nothing_of_a_kept_result_is_left_for_the_next_attempt_at_its_sample(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    killed_before_it_was_cleared(spool)

    async def main() -> None:
        host = Host(spool)
        host._pool = OpenPool()  # type: ignore[assignment]
        try:
            store = host._directory.store
            artifacts = store.artifacts_of(N)
            assert store.sample_at(N).record is not None and artifacts.exists()
            await host._open(None)  # type: ignore[arg-type]
            with pytest.raises(KeyError):
                store.sample_at(N)
            assert not artifacts.exists()
            # Where it was done before, nothing is to do.
            await host._open(None)  # type: ignore[arg-type]
            report = messages.report(await host.collect(messages.encode(Collect((), {}, 0.0))))
            assert [each.key for each in report.deliveries] == ["k0"] and report.held == ("k0",)
        finally:
            host._directory.close()

    asyncio.run(main())
