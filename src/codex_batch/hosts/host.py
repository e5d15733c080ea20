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
import dataclasses
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
from codex_app_server import AppServerError
from codex_app_server._runtime import threads
from codex_app_server._runtime.files import write_atomic
from codex_app_server.errors import InvalidInputError
from codex_pool.runtime import log

from ..configuration.defaults import stored
from ..configuration.effective import differences, fingerprint, in_words
from ..dataset import Sample
from ..redaction.known_secrets import known_secrets
from ..rules.breaker import Breaker
from ..rules.limits import RunLimits, RunMeter
from ..rules.progress import Progress
from ..rules.retry import CANCELLED
from ..run.background import BackgroundTasks
from ..run.context import RunCallbacks, RunContext, RunnerConfig
from ..run.disks import disks_of
from ..run.executor import SampleJob
from ..run.launch import NotStartedError
from ..run.live_transcripts import LiveTranscripts
from ..run.local_context import PERMITS, local_context
from ..run.local_executor import LocalExecutor
from ..run.loop_clock import RunningClock
from ..run.pool_clients import POOL_LOST
from ..run.run_pools import RunClients, RunPools, joined_slots
from ..run.stopping import Stopped, cancel_all
from ..run.storage import Storage
from ..scoring import ProcessPool, Scorers
from ..store import RunDirectory, RunDirectoryError, SampleRow, ScoreRow, layout
from ..store.reader import VARIANTS
from ..workspace import Repositories
from . import messages
from .bundle import Laid
from .leased_task import LeasedTask
from .messages import Delivery, Hello, Lease, Opened, Report, Spent
from .plan import CONFIG, HostPlan

LEASES, RESULTS, BUNDLE, FROM = "leases", "results", "bundle", "from"
# Larger artifacts, which a scorer may leave, stay on the host.
ARTIFACT_BYTES = 64 * 2**20
STATUS_EVERY_S = 1.0
# A host of which no run has asked anything for so long, and that has nothing under way, ends itself.
ALONE_S = 600.0
NOT_OPEN = "its pool is not open"

_log = logging.getLogger(__name__)
_questions: ContextVar[list[Spent] | None] = ContextVar("questions", default=None)


class HostError(Exception):
    """A host that cannot be used; the message gives the reason."""


class Host:
    """See the module's docstring. Its methods run on one event loop; `directory` is that of its spool.

    The process is its own: `open` sets its CODEX_HOME and its environment.
    """

    def __init__(self, directory: Path, *, on_alone: Callable[[], None] = lambda: None) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = self._path = directory
        self._redactor = known_redactor()
        self._directory = RunDirectory(directory, redactor=self._redactor)
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
        self._stack = contextlib.AsyncExitStack()
        self._stopping: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._opening: asyncio.Task[Opened] | None = None
        self._context: RunContext | None = None
        self._executor: LocalExecutor | None = None
        self._paused: str | None = None
        self._slots: list[dict[str, Any]] = []
        self._rate_limiter: dict[str, Any] = {}
        self._asked_at = time.monotonic()
        self._on_alone = on_alone

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
        if self._context is None:
            raise HostError(NOT_OPEN)
        if any(other.n == lease.n and key not in self._ready for key, other in self._leases.items()):
            raise HostError("it has another attempt at the sample")
        self._leases[lease.key] = lease
        await threads.in_thread(_write, self._path / LEASES / lease.key, message)
        self._start(lease)

    async def collect(self, message: bytes) -> bytes:
        """Return a Report, at once if there is a new result, or else after a while. Raises HostError."""
        if self._context is None:
            raise HostError(NOT_OPEN)
        request = messages.collect(message)
        self._asked_at = time.monotonic()
        for key in request.acknowledged:
            self._forget(key)
        for key, why in request.halted.items():
            if key in self._tasks and not (halt := self._tasks[key][1].halt).done():
                halt.set_result(why)
        if not self._ready - self._reported and request.waits_s > 0:
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
                paused=self._paused,
                free_bytes=shutil.disk_usage(self._path).free,
                slots=tuple(self._slots),
                rate_limiter=self._rate_limiter,
            )
        )

    async def again(self) -> None:
        """Report all results once more: another run process asks."""
        self._reported.clear()

    async def close(self, remove: bool) -> None:
        """End the pool; with `remove` the spool is removed too, unless there are results that were not acknowledged."""
        if not self._stopping.done():
            self._stopping.set_result(None)
        for _, job, _ in self._tasks.values():
            if not job.halt.done():
                job.halt.set_result(CANCELLED)
        if self._opening is not None:
            await cancel_all([self._opening])
        await cancel_all([task for _, _, task in self._tasks.values()])
        await self._stack.aclose()
        await threads.in_thread(self._directory.close)
        if remove and not self._leases:
            await threads.in_thread(shutil.rmtree, self._path, True)

    # The pool.

    async def _open(self, plan: HostPlan) -> Opened:
        if self._context is not None:
            return self._opened
        try:
            await self._open_pools(plan)
        except Exception as error:
            # The run asks again, and all begins from the start.
            await self._stack.aclose()
            known = (AppServerError, InvalidInputError, NotStartedError, RunDirectoryError, OSError, HostError)
            raise HostError(str(error) if isinstance(error, known) else f"{type(error).__name__}: {error}") from None
        for lease in list(self._leases.values()):
            if lease.key not in self._ready:
                self._start(lease)
        return self._opened

    async def _open_pools(self, plan: HostPlan) -> None:
        self._take_home(plan)
        stack, directory = self._stack, self._directory
        stack.enter_context(log.to_file("batch", directory.file(layout.LOG), self._redactor.text))
        for name in (layout.WORK, layout.EVENTS, layout.ARTIFACTS, layout.JUDGE):
            directory.file(name).mkdir(exist_ok=True)
        settings = dataclasses.replace(plan.settings, output=self._path)
        defaults = settings.defaults
        scorers = Scorers(self._bundle.resolved(plan.scorers))
        sources = Repositories(directory.file(layout.REPOSITORIES))
        private = tuple(self._path / name for name in (LEASES, RESULTS, BUNDLE, FROM))
        pools = RunPools(
            settings,
            directory,
            guarded=plan.guarded,
            private=private,
            scorers=scorers,
            sources=sources,
            say=_log.warning,
            on_slots=self._on_slots,
        )
        found = await pools.prepare(stack, self._stopping)
        for name, each in found.items():
            wanted = plan.effective.get(name)
            if wanted is not None and fingerprint(each) != fingerprint(wanted):
                what = in_words(differences(wanted.to_json(), each.to_json()))
                raise HostError(f"codex is configured otherwise here than where the run is: {what}")
        clients = await pools.open(stack, self._stopping, say=self._on_pool_news, on_given_up=self._on_given_up)
        if defaults.variants:
            noted = [stored(each, found[each.name].to_json()) for each in defaults.each()]
            await threads.in_thread(lambda: directory.note(VARIANTS, noted).result())
        breaker = Breaker()
        home = pools.main.codex_home
        storage = Storage(directory, disks_of(self._path, home), breaker, self._stopping, lambda: None)
        clock = RunningClock()
        process_pool = ProcessPool(PERMITS)
        stack.push_async_callback(process_pool.close)
        for work in (clock.beat(), storage.watch(), self._watch(clients, breaker)):
            stack.push_async_callback(cancel_all, [asyncio.ensure_future(work)])
        self._executor = LocalExecutor(
            local_context(
                settings,
                directory,
                pools,
                clients,
                storage,
                self._used,
                scorers=scorers,
                prices=plan.prices,
                sources=sources,
                guarded=plan.guarded,
                containers=None,
                process_pool=process_pool,
                clock=clock,
                live=LiveTranscripts(self._path),
            )
        )
        stack.callback(self._executor.close)
        places = pools.workers * pools.main.turns_per_worker
        background = BackgroundTasks(on_failure=self._on_given_up)
        stack.push_async_callback(_end_background, background)
        self._context = RunContext(
            executor=self._executor,
            directory=directory,
            storage=storage,
            config=RunnerConfig(concurrency=places, defaults=defaults),
            callbacks=RunCallbacks(
                on_retry=lambda sample, outcome: None,
                on_record=self._on_record,
                on_problem=_log.warning,
            ),
            progress=Progress(total=0),
            breaker=breaker,
            meter=RunMeter(RunLimits(), time.monotonic()),
            background=background,
            show_pause=lambda: None,
            end_early=lambda reason: None,
            scorers=scorers,
        )
        self._opened = Opened(
            places=places,
            codex_version=clients.main.codex.client.runtime_version,
            effective={name: each.to_json() for name, each in found.items()},
        )

    def _take_home(self, plan: HostPlan) -> None:
        """Make the CODEX_HOME that the pool's is made of, and take the environment that the user has named."""
        given = self._path / FROM
        if plan.config is not None:
            write_atomic(given / CONFIG, plan.config)
        if plan.login is not None:
            write_atomic(given / "auth.json", plan.login)
            (given / "auth.json").chmod(0o600)
        os.environ.update(plan.environment)
        os.environ["CODEX_HOME"] = str(given)
        self._redactor.add({name: value for value, name in plan.redactor._names.items()})
        self._redactor.add(known_secrets(os.environ, [given]))

    async def _watch(self, clients: RunClients, breaker: Breaker) -> None:
        while True:
            slots: dict[str, Any] = {}
            for name, pools in clients.all().items():
                with contextlib.suppress(AppServerError):
                    status = await pools.codex.client.request("pool/status")
                    slots[name], self._rate_limiter = status["workers"], status.get("rateLimiter") or {}
            if len(slots) == len(clients.all()):
                self._slots = joined_slots(slots)
            # The run decides about all other trouble.
            self._paused = breaker.pause.message if breaker.pause is not None else None
            idle = not self._tasks and time.monotonic() - self._asked_at >= ALONE_S
            if idle:
                self._on_alone()
            await asyncio.sleep(STATUS_EVERY_S)

    def _on_slots(self, slots: list[dict[str, Any]]) -> None:
        self._slots = slots

    def _on_pool_news(self, kind: str, message: str) -> None:
        self._paused = message if kind == POOL_LOST else None
        _log.warning(message)

    def _on_given_up(self) -> None:
        _log.error("the host gives up: its pool is not replaced any more, or a sample failed in a way it should not")
        self._on_alone()

    async def _used(self, tokens: int, cost: float | None, unpriced: str | None) -> None:
        questions = _questions.get()
        if questions is not None:
            questions.append(Spent(tokens, cost, unpriced))

    # Samples.

    def _start(self, lease: Lease) -> None:
        assert self._context is not None
        sample = Sample.from_json(self._bundle.resolved(lease.sample))
        halt: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        job = SampleJob(_row_of(lease, sample), sample, halt)
        task = LeasedTask(self._context, job)
        running = asyncio.ensure_future(self._run(lease, task, job))
        self._tasks[lease.key] = task, job, running
        running.add_done_callback(lambda _: self._tasks.pop(lease.key, None))

    async def _run(self, lease: Lease, task: LeasedTask, job: SampleJob) -> None:
        questions: list[Spent] = []
        _questions.set(questions)
        store, context = self._directory.store, self._context
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
            if self._stopping.done():
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
        context = self._context
        assert context is not None
        data = messages.encode(delivery)
        await context.storage.written(lambda: asyncio.ensure_future(threads.in_thread(_write, path, data)))
        artifacts = self._directory.store.artifacts_of(delivery.n)
        await threads.in_thread(shutil.rmtree, artifacts, True)
        await context.storage.written(lambda: self._directory.forget(delivery.n))
        self._ready.add(delivery.key)
        self._changed.set()

    def _forget(self, key: str) -> None:
        """The run has a result on its disk."""
        if key not in self._ready:
            return
        (self._path / LEASES / key).unlink(missing_ok=True)
        (self._path / RESULTS / key).unlink(missing_ok=True)
        self._leases.pop(key, None)
        self._ready.discard(key)
        self._reported.discard(key)

    def _on_record(self, row: SampleRow) -> None:
        self._changed.set()


async def _end_background(background: BackgroundTasks) -> None:
    await cancel_all(background.tasks)


def known_redactor() -> Any:
    """Return a redactor of what is secret in the environment of this process."""
    from ..redaction.redactor import Redactor

    return Redactor(known_secrets(os.environ, []))


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
