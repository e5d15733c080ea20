"""Host: the machine's part of a run on several: a small run of its own, whose samples are leased.

Its directory, the spool, is a run directory: attempts are noted in it before a turn is dispatched, and recovered after
a death, as in any run. Beside that it holds

    leases/KEY     a lease, written before it is worked at
    results/KEY    its delivery, written before it is reported; both go when the run acknowledges it
    bundle/        files that came with leases
    from/          the CODEX_HOME that its own home is made of: config.toml, and a log-in if the user has named one

At most once holds over both disks: the run notes an attempt before it leases it, and leases a key once; the host notes
the lease, and then its attempt, before the turn. A host that dies leaves both notes, and neither side starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import codex_pool
from codex_app_server._runtime import threads
from codex_app_server._runtime.files import write_atomic

from ..dataset import Sample
from ..redaction.known_secrets import known_secrets
from ..redaction.redactor import Redactor
from ..rules.retry import CANCELLED
from ..run.executor import SampleJob
from ..run.stopping import Stopped, cancel_all
from ..store import RunDirectory, SampleRow, ScoreRow
from . import messages
from .bundle import Laid
from .engine import HostError
from .host_pool import HostCallbacks, HostPool
from .leased_task import LeasedTask
from .messages import Delivery, Hello, Lease, Opened, Report, Spent
from .plan import HostPlan

LEASES, RESULTS, BUNDLE, FROM = "leases", "results", "bundle", "from"
# Larger artifacts, which a scorer may leave, stay on the host.
ARTIFACT_BYTES = 64 * 2**20
# A host of which no run has asked anything for so long, and that has nothing under way, ends itself.
ALONE_S = 600.0
NOT_OPEN = "its pool is not open"

_log = logging.getLogger(__name__)
_questions: ContextVar[list[Spent] | None] = ContextVar("questions", default=None)


class Host:
    """See the module's docstring. Its methods run on one event loop; `directory` is that of its spool.

    The process is its own: `open` sets its CODEX_HOME and its environment. `on_alone`: it is to end.
    """

    def __init__(self, directory: Path, *, on_alone: Callable[[], None] = lambda: None) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = self._path = directory
        redactor = Redactor(known_secrets(os.environ, []))
        self._directory = RunDirectory(directory, redactor=redactor)
        for name in (LEASES, RESULTS, FROM):
            (directory / name).mkdir(exist_ok=True, mode=0o700)
        self._bundle = Laid(directory / BUNDLE)
        self._leases: dict[str, Lease] = {
            path.name: messages.lease(path.read_bytes()) for path in sorted((directory / LEASES).iterdir())
        }
        self._ready = {path.name for path in (directory / RESULTS).iterdir()}
        self._reported: set[str] = set()
        self._tasks: dict[str, tuple[LeasedTask, SampleJob, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        self._opening: asyncio.Task[Opened] | None = None
        self._asked_at = time.monotonic()
        self._on_alone = on_alone
        self._pool = HostPool(
            self._directory,
            self._bundle,
            redactor,
            HostCallbacks(self._used, self._changed.set, self._on_look, on_alone),
            given=directory / FROM,
            private=tuple(directory / name for name in (LEASES, RESULTS, BUNDLE, FROM)),
        )

    # Requests of the run.

    async def hello(self) -> bytes:
        """Return a Hello."""
        self._asked_at = time.monotonic()
        return messages.encode(
            Hello(
                protocol=messages.PROTOCOL,
                codex_pool=codex_pool.__version__,
                python=".".join(platform.python_version_tuple()[:2]),
                machine=platform.node(),
                pid=os.getpid(),
                spool=str(self._path),
                trees=self._bundle.trees,
            )
        )

    async def missing(self, manifest: bytes) -> list[str]:
        """Return the digests of the files of a tree that are to be sent."""
        return await threads.in_thread(self._bundle.missing, manifest)

    async def put(self, blobs: dict[str, bytes]) -> None:
        """Keep files of trees."""
        await threads.in_thread(self._bundle.put, blobs)

    async def lay(self, manifest: bytes) -> None:
        """Lay out a tree whose files are here."""
        await threads.in_thread(self._bundle.lay, manifest)

    async def open(self, plan: bytes) -> bytes:
        """Start the pool, once, and go on with the leases that are there; return an Opened. Raises HostError."""
        self._asked_at = time.monotonic()
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open(HostPlan.from_bytes(plan)))
        try:
            return messages.encode(await asyncio.shield(self._opening))
        except HostError:
            self._opening = None
            raise

    async def lease(self, message: bytes) -> None:
        """Take a lease. One that is here already is not taken twice. Raises HostError."""
        lease = messages.lease(message)
        if lease.key in self._leases:
            return
        if self._pool.context is None:
            raise HostError(NOT_OPEN)
        if any(other.n == lease.n and key not in self._ready for key, other in self._leases.items()):
            raise HostError("it has another attempt at the sample")
        self._leases[lease.key] = lease
        await threads.in_thread(_write, self._path / LEASES / lease.key, message)
        self._start(lease)

    async def collect(self, message: bytes) -> bytes:
        """Return a Report, at once if there is a new result, or else after a while. Raises HostError."""
        if self._pool.context is None:
            raise HostError(NOT_OPEN)
        request = messages.collect(message)
        self._asked_at = time.monotonic()
        for key in request.acknowledged:
            self._forget(key)
        for key, why in request.halted.items():
            if key in self._tasks and not (halt := self._tasks[key][1].halt).done():
                halt.set_result(why)
        if not self._ready - self._reported and not self._pool.asked and request.waits_s > 0:
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), request.waits_s)
        new = sorted(self._ready - self._reported)
        self._reported.update(new)
        read = [messages.delivery((self._path / RESULTS / key).read_bytes()) for key in new]
        return messages.encode(
            Report(
                held=tuple(self._leases),
                assigned=tuple(key for key, (task, _, _) in self._tasks.items() if task.is_assigned),
                deliveries=tuple(read),
                paused=self._pool.paused,
                free_bytes=shutil.disk_usage(self._path).free,
                slots=tuple(self._pool.slots),
                rate_limiter=self._pool.rate_limiter,
                asked=self._pool.asked,
            )
        )

    async def renewed(self, message: bytes) -> None:
        """Take new tokens of the log-in that the run lends."""
        self._pool.take_tokens(messages.renewed(message))

    async def again(self) -> None:
        """Report all results once more: another run process asks."""
        self._reported.clear()

    async def close(self, remove: bool) -> None:
        """End the pool; with `remove` the spool is removed too, unless there are results that were not acknowledged."""
        self._pool.stop()
        for _, job, _ in self._tasks.values():
            if not job.halt.done():
                job.halt.set_result(CANCELLED)
        if self._opening is not None:
            await cancel_all([self._opening])
        await cancel_all([task for _, _, task in self._tasks.values()])
        await self._pool.close()
        await threads.in_thread(self._directory.close)
        if remove and not self._leases:
            await threads.in_thread(shutil.rmtree, self._path, True)

    async def _open(self, plan: HostPlan) -> Opened:
        opened = await self._pool.open(plan)
        leases = list(self._leases.values())
        under_way = {lease.n for lease in leases if lease.key not in self._ready}
        for lease in leases:
            if lease.key not in self._ready:
                self._start(lease)
            elif lease.n not in under_way:
                # A host that was killed may have kept the result, and not come to this.
                with contextlib.suppress(KeyError):
                    await self._clear(lease.n)
        return opened

    def _on_look(self) -> None:
        if not self._tasks and time.monotonic() - self._asked_at >= ALONE_S:
            self._on_alone()

    async def _used(self, tokens: int, cost: float | None, unpriced: str | None) -> None:
        questions = _questions.get()
        if questions is not None:
            questions.append(Spent(tokens, cost, unpriced))

    # Samples.

    def _start(self, lease: Lease) -> None:
        context = self._pool.context
        assert context is not None
        sample = Sample.from_json(self._bundle.resolved(lease.sample))
        halt: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        job = SampleJob(_row_of(lease, sample), sample, halt)
        task = LeasedTask(context, job)
        running = asyncio.ensure_future(self._run(lease, task, job))
        self._tasks[lease.key] = task, job, running
        running.add_done_callback(lambda _: self._tasks.pop(lease.key, None))

    async def _run(self, lease: Lease, task: LeasedTask, job: SampleJob) -> None:
        questions: list[Spent] = []
        _questions.set(questions)
        store, context = self._directory.store, self._pool.context
        assert context is not None
        problem: str | None = None
        try:
            try:
                job.row = store.sample_at(lease.n)
            except KeyError:
                await context.storage.written(lambda: self._directory.add_leased(job.row))
                if lease.record is not None:
                    await threads.in_thread(_keep, store.artifacts_of(lease.n), lease.artifacts)
            if job.row.state != "done":
                await task.run()
                while not task.is_cleaned_up and context.background.tasks:
                    await context.background.any_done()
        except Stopped:
            if self._pool.is_stopping:
                return
        except Exception as error:
            _log.exception("%s: the attempt failed in a way it should not", job.sample.id)
            problem = f"{type(error).__name__}: {error}"
        made = await threads.in_thread(self._delivery, lease, task, tuple(questions), problem)
        await self._deliver(made)

    def _delivery(self, lease: Lease, task: LeasedTask, questions: tuple[Spent, ...], problem: str | None) -> Delivery:
        store = self._directory.store
        row = store.sample_at(lease.n)
        attempts = store.attempts(lease.n)
        if row.record is None:
            return Delivery(lease.key, lease.n, questions=questions, problem=problem)
        last = attempts[-1] if attempts else None
        artifacts = {}
        for path in sorted(store.artifacts_of(lease.n).rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= ARTIFACT_BYTES:
                artifacts[str(path.relative_to(store.artifacts_of(lease.n)))] = path.read_bytes()
        names = ("status", "error", "usage", "cost", "worker", "turn_id", "thread_id", "queued_ms", "duration_ms")
        return Delivery(
            lease.key,
            lease.n,
            record=row.record,
            end={} if last is None else {name: getattr(last, name) for name in names},
            note=None if last is None else last.note,
            events=None if last is None else store.event_member(lease.n, last.attempt),
            rollouts=() if last is None else store.rollout_members(lease.n, last.attempt),
            artifacts=artifacts,
            scores=tuple(map(_plain_score, row.scores)) if row.state == "done" else None,
            unpriced=task.unpriced,
            questions=questions,
            problem=problem,
        )

    async def _deliver(self, delivery: Delivery) -> None:
        path = self._path / RESULTS / delivery.key
        context = self._pool.context
        assert context is not None
        data = messages.encode(delivery)
        await context.storage.written(lambda: asyncio.ensure_future(threads.in_thread(_write, path, data)))
        await self._clear(delivery.n)
        self._ready.add(delivery.key)
        self._changed.set()

    async def _clear(self, n: int) -> None:
        """Remove what is kept of a sample beside its result: another attempt at it begins with nothing.

        Raises KeyError where nothing is.
        """
        context = self._pool.context
        assert context is not None
        await threads.in_thread(shutil.rmtree, self._directory.store.artifacts_of(n), True)
        await context.storage.written(lambda: self._directory.forget(n))

    def _forget(self, key: str) -> None:
        """The run has a result on its disk."""
        if key not in self._ready:
            return
        (self._path / LEASES / key).unlink(missing_ok=True)
        (self._path / RESULTS / key).unlink(missing_ok=True)
        self._leases.pop(key, None)
        self._ready.discard(key)
        self._reported.discard(key)


def _row_of(lease: Lease, sample: Sample) -> SampleRow:
    return SampleRow(
        n=lease.n,
        id=sample.id,
        epoch=sample.epoch,
        variant=sample.variant,
        digest=lease.digest,
        spec=lease.spec,
        tags=(),
        state="pending" if lease.record is None else "scoring",
        selected=True,
        position=lease.n,
        record=lease.record,
        scores=tuple(ScoreRow(**score) for score in lease.scores),
    )


def _plain_score(score: ScoreRow) -> dict[str, Any]:
    return {name: getattr(score, name) for name in ScoreRow.__slots__}


def _write(path: Path, data: bytes) -> None:
    write_atomic(path, data, is_synced=True)


def _keep(directory: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
