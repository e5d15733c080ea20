"""A run from the dataset to the exit code: what `codex-pool batch` calls."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from codex_app_server import AppServerError, AsyncCodex, HomeError, InvalidInputError, _threads
from codex_app_server._files import resolved
from codex_app_server._paths import lone_surrogate
from codex_pool import account_notice, log, start
from codex_pool.configuration import FULL_ACCESS
from codex_pool.endpoints import EndpointError, is_tcp
from codex_pool.os_errors import describe

from . import attached, control, detach, display, estimate, home, scrub, settings, summary
from .answering import ask_who_answers
from .attempt import Stopped, unless_stopped
from .bill import Answering, Bill
from .clock import RunningClock
from .dataset import STDIN, Dataset, DatasetError, Sample
from .disk import Disk, disks_of, is_full
from .effective import differences, said
from .fingerprints import Fingerprints
from .hang_up import HangUp
from .launch import NotStartedError
from .limits import RunMeter, parse_limits
from .litellm_prices import find_prices
from .money import Models, UnpricedRunError, check
from .notify import notify
from .policy import Outcome
from .pools import POOL_LOST, Pools
from .prices import Prices, PricesError
from .progress import Progress, plural
from .redaction import Redactor
from .run_pool import RunPool
from .runner import LOCKED_S, Rules, Runner, Told, entry_of
from .sampling import Means, has_answers, remove_left
from .scoring import Places, ScorerError, Scorers
from .scoring import summary as scoring_summary
from .scoring.ask import Asking
from .scoring.metrics import summarise
from .secrets import known_secrets
from .settings import Settings
from .store import RunDirectory, RunDirectoryError, SampleRow, ScoreRow, layout, locked, shown_name
from .store.rows import exported
from .stored import begun_samples
from .tools import Tools, ToolsError, check_shell
from .waking import Waking
from .workspace import Repositories, WorkspaceError, cwd_problem

OK, SOME_NOT_COMPLETED, USAGE, CANNOT_START, INTERRUPTED = 0, 1, 2, 3, 130
# Nothing has begun then.
NOT_BEGUN = (USAGE, CANNOT_START)
STATUS_EVERY_S = 0.25
REPOSITORIES = "repositories"
# How many scorers, and how many set-ups, there may be at once.
PLACES = max(1, os.cpu_count() or 1)
PROBLEMS_SAID = 20

_log = logging.getLogger(__name__)


def run_batch(asked: Settings) -> int:
    """Run a batch; messages go to stderr.

    The exit code: 0 all completed or at a limit, 1 some not, 2 bad input or no git, 3 the pool could not start or the
    CODEX_HOME cannot be used, 130 interrupted.
    """
    try:
        hang_up = HangUp()
        prices = None if asked.prices is None else find_prices(asked.prices)
        models = Models(asked.model)
        scorers = Scorers(asked.scorers)
        sources = Repositories(asked.output / REPOSITORIES)
        tools = Tools(scorers)
        samples = _read(asked, scorers, sources, tools, models)
    except HomeError as error:
        return _refuse(error, CANNOT_START)
    except (EndpointError, RunDirectoryError) as error:
        return _refuse(error)
    except (DatasetError, PricesError, ScorerError) as error:
        print(error, file=sys.stderr)
        print(f"codex-pool: {plural(len(error.problems), 'problem')}; nothing was run", file=sys.stderr)
        return USAGE
    # Many small objects and few cycles, for hours.
    start.collect_rarely()
    with samples:
        try:
            check_shell({"--workspace-hook": asked.hook, "--notify": asked.notify})
            tools.check(samples)
        except ToolsError as error:
            print(f"codex-pool: {error}; nothing was run", file=sys.stderr)
            return USAGE
        if prices is not None and asked.run_limits.cost is not None:
            problems = models.without_price(prices)
            if problems:
                print(f"codex-pool: {UnpricedRunError(problems, prices.source)}; nothing was run", file=sys.stderr)
                return USAGE
        # A hook may bring them.
        for program in tools.not_found(samples) if asked.hook is None else ():
            print(f"codex-pool: {program}", file=sys.stderr)
        return _run(asked, samples, prices, models, scorers, sources, hang_up)


def _run(
    asked: Settings,
    samples: Dataset,
    prices: Prices | None,
    models: Models,
    scorers: Scorers,
    sources: Repositories,
    hang_up: HangUp,
) -> int:
    disk = Disk(asked.output)
    try:
        for what, path in (("run directory", asked.output), ("dataset", samples.path)):
            if path is not None and (odd := lone_surrogate(resolved(path))) is not None:
                raise RunDirectoryError(
                    f"the path of the {what}, {odd!r}, is not UTF-8 here, and the app-server cannot speak of it; use "
                    "one that is, and a UTF-8 locale"
                )
        # Before anything is made there; what --fresh removes may be the room that is missing.
        shortage = None if asked.fresh else disk.shortage()
        if shortage is not None:
            raise RunDirectoryError(disk.problem(shortage))
        directory = RunDirectory(asked.output, fresh=asked.fresh, redactor=redactor_of(asked))
    except RunDirectoryError as error:
        return _refuse(error)
    except OSError as error:
        return _refuse(RunDirectoryError(f"{asked.output} cannot be a run directory: {describe(error)}"))
    try:
        if asked.stored:
            directory.reload()
        else:
            news = directory.load(
                (entry_of(sample, scorers) for sample in samples),
                asked.dataset_name,
                rerun_changed=asked.rerun_changed,
                whole=samples.digests if asked.is_partly else None,
            )
            for line in summary.news(news):
                print(f"codex-pool: {line}", file=sys.stderr)
        specs = [scorer.spec for scorer in scorers.run]
        config = settings.config(asked, samples.fingerprint, len(samples), specs)
        if asked.stored:
            config["dataset"] = directory.store.info()["config"].get("dataset", config["dataset"])
        config["currency"] = None if prices is None else prices.currency
        config["prices"] = None if prices is None else prices.source
        private = [path for scorer in scorers.run for path in scorer.private]
        private += [] if samples.path is None else [samples.path]
        batch = _Batch(asked, directory, config, prices, models, scorers, sources, tuple(private))
        try:
            return asyncio.run(batch.run(hang_up))
        finally:
            _scrub(asked, directory)
    except HomeError as error:
        return _refuse(error, CANNOT_START)
    except (RunDirectoryError, EndpointError, InvalidInputError, FileExistsError) as error:
        return _refuse(error)
    except (OSError, sqlite3.Error) as error:
        if is_full(error):
            why = disk.problem(error)
        elif locked.is_locked(error):
            why = f"{locked.problem(directory.file(layout.DATABASE))}; then the same command goes on"
        elif isinstance(error, OSError):
            why = describe(error)
        else:
            why = (
                f"{asked.output}: {error}; see that nothing else changes what is in it, and run the same command again"
            )
        print(f"codex-pool: {why}", file=sys.stderr)
        return SOME_NOT_COMPLETED
    finally:
        try:
            directory.close()
        except (OSError, sqlite3.Error) as error:
            where = directory.file(layout.RESULTS)
            why = disk.problem(error) if is_full(error) else f"{error}; the same command writes it again"
            print(f"codex-pool: {where} is not up to date: {why}", file=sys.stderr)


def redactor_of(asked: Settings) -> Redactor:
    """Knows the secrets that are known where a run begins."""
    if not asked.redact:
        return Redactor()
    homes = [*home.known(asked.home, asked.endpoint), asked.output / layout.HOME]
    return Redactor(known_secrets(os.environ, homes, asked.overrides, asked.key))


def _scrub(asked: Settings, directory: RunDirectory) -> None:
    """Take secrets out of what others have written; the pool has ended."""
    try:
        for name in (layout.LOG, detach.OUTPUT):
            scrub.Log(directory.file(name)).mask(directory.redactor)
        if asked.endpoint is None and (asked.home == home.RUN or asked.demo):
            scrub.redact_home(directory.file(layout.HOME), directory.redactor)
    except OSError as error:
        print(f"codex-pool: secrets may be left in {directory.path}: {describe(error)}", file=sys.stderr)


def _read(asked: Settings, scorers: Scorers, sources: Repositories, tools: Tools, models: Models) -> Dataset:
    homes = home.known(asked.home, asked.endpoint)
    is_no_file = asked.demo_dataset or str(asked.request.source) == STDIN
    dataset = None if is_no_file else resolved(asked.request.source)

    def check(sample: Sample, where: str) -> list[str]:
        wrong = [f"{where}: {problem.partition(': ')[2]}" for problem in scorers.problems([sample])]
        if not wrong:
            tools.see(sample)
            models.see(sample, scorers)
        if sample.workspace is not None and is_elsewhere:
            problem = f"cannot be made where {asked.endpoint} runs; expected an own pool, or a daemon on this machine"
            wrong.append(f"{where}: workspace: {problem}")
        if not wrong and _is_guarded(asked) and sample.sandbox != FULL_ACCESS and has_answers(sample, scorers):
            private = map(resolved, scorers.files_of(sample))
            in_private = cwd_problem(sample, asked.output, dataset, homes, private)
            wrong += [] if in_private is None else [f"{where}: cwd: {in_private}"]
        return wrong + [f"{where}: limits: {problem}" for problem in parse_limits(sample.limits)[1]]

    def check_repository(repository: str, revision: str) -> str:
        # Without git the run is refused.
        return sources.check(repository, revision) if tools.git_problem is None else revision

    is_elsewhere = asked.endpoint is not None and is_tcp(asked.endpoint)

    if asked.stored:
        # What an agent must not read, if it is still there.
        path = None if dataset is None or not dataset.exists() else dataset
        return begun_samples(
            asked.output, asked.dataset_name, path, check_sample=check, check_repository=check_repository
        )
    stdin = sys.stdin.buffer
    if asked.demo_dataset:
        from codex_app_server.testing.loopback.demo import demo_jsonl

        stdin = io.BytesIO(demo_jsonl().encode())
    return asked.request.open(stdin=stdin, check_sample=check, check_repository=check_repository)


def _is_guarded(asked: Settings) -> bool:
    # Elsewhere there is nothing of the run to be read.
    return not (asked.unguarded or (asked.endpoint is not None and is_tcp(asked.endpoint)))


def _refuse(error: Exception, code: int = USAGE) -> int:
    print(f"codex-pool: {error}", file=sys.stderr)
    return code


class _Batch:
    """One run on its event loop."""

    def __init__(
        self,
        asked: Settings,
        directory: RunDirectory,
        config: dict[str, Any],
        prices: Prices | None,
        models: Models,
        scorers: Scorers,
        sources: Repositories,
        private: tuple[Path, ...],
    ) -> None:
        self._settings = asked
        self._redactor = directory.redactor
        self._logs = [scrub.Log(directory.file(name)) for name in (layout.LOG, detach.OUTPUT)]
        self._directory = directory
        self._config = config
        self._prices = prices
        self._models = models
        self._scorers = scorers
        self._problems_said: set[tuple[str, str | None]] = set()
        self._sources = sources
        self._guarded = _is_guarded(asked)
        self._log = directory.file(layout.LOG)
        counts = directory.store.counts()
        self._progress = Progress(total=counts["total"], skipped=counts["done"])
        self._is_done = counts["total"] == counts["done"]
        self._progress.turns_per_worker = asked.turns_per_worker
        self._progress.currency = None if prices is None else prices.currency
        self._display = display.make(self._progress, self._redactor.text)
        self._pool = RunPool(
            asked,
            directory,
            guarded=self._guarded,
            private=private,
            scorers=scorers,
            sources=sources,
            say=self._display.say,
            on_slots=self._on_slots,
        )
        self._signals = 0
        self._logins: list[int] = []
        self._app_server = ""
        self._is_configured = self._is_launched = False
        self._runner: Runner | None = None
        self._cancelled: set[tuple[str, int]] = set()
        self._only: frozenset[int] | None = None
        if asked.estimate is not None:
            self._only = frozenset(estimate.choose(counts["total"] - counts["done"], asked.estimate))
        elif asked.stored:
            self._only = directory.store.begun_places()

    async def run(self, hang_up: HangUp) -> int:
        """The exit code."""
        with log.to_file("batch", self._log, self._redactor.text):
            return await self._run(hang_up)

    async def _run(self, hang_up: HangUp) -> int:
        self._stop = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, task)
        code, problem = None, None
        try:
            async with contextlib.AsyncExitStack() as stack:
                stopping = asyncio.ensure_future(self._stop.wait())
                stack.callback(stopping.cancel)
                if self._is_done:
                    await self._compare_done(stack, stopping)
                self._display.start(self._title())
                hang_up.tell(self._on_hang_up)
                if self._is_done:
                    self._emit_launch(None)
                    await self._remove_left()
                else:
                    control.clear(self._directory.path)
                    problem = await self._on_pool(stack, stopping)
        except NotStartedError as error:
            code, problem = CANNOT_START, str(error)
        except UnpricedRunError as error:
            code, problem = USAGE, f"{error}; nothing was run"
        except (asyncio.CancelledError, Stopped):
            # The second Ctrl-C, or one before samples were run: what there is stands in the files.
            pass
        finally:
            self._display.stop()
        code = await self._finish(code, problem)
        # A Ctrl-C more ends the wait, not what is done for the user.
        with contextlib.suppress(asyncio.CancelledError):
            await self._notify(code)
        return code

    async def _compare_done(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> None:
        """All is done: find out whether it is of the configuration that is asked for now."""
        try:
            await self._configure(stack, stopping)
        except (NotStartedError, HomeError, EndpointError, AppServerError, FileExistsError) as error:
            if self._settings.rerun_changed:
                raise
            # Nothing is run, so nothing is mixed.
            self._display.say(f"the results could not be compared with the configuration of now: {error}")

    async def _configure(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> None:
        """Find out the configuration, and compare it with that of the results that there are.

        Raises RunDirectoryError, and what `RunPool.prepare` raises.
        """
        # A profile can deny only what is there, so these are before the first agent is.
        for name in (layout.WORK, layout.EVENTS, layout.ARTIFACTS):
            self._directory.file(name).mkdir(exist_ok=True)
        effective = await self._pool.prepare(stack, stopping)
        self._config["effective"] = effective.to_json()
        done = self._directory.configure(
            Fingerprints(effective),
            rerun_changed=self._settings.rerun_changed,
            differences=lambda before: said(differences(before, self._config["effective"])),
        )
        self._is_configured = True
        if done.unknown:
            self._display.say(
                f"{plural(done.unknown, 'result')} of an earlier codex-pool in {self._directory.path}: which "
                "configuration that was is not known, and not compared"
            )
        if done.again:
            self._display.say(f"{plural(done.again, 'sample')} of another configuration: run again")
            counts = self._directory.store.counts()
            self._is_done, self._progress.skipped = False, counts["done"]

    async def _on_pool(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> str | None:
        """Run what is pending; why that could not go on to the end, if it could not."""
        settings, progress = self._settings, self._progress
        async with contextlib.AsyncExitStack() as inner:
            inner.callback(asyncio.ensure_future(self._refresh()).cancel)
            if not self._is_configured:
                await self._configure(stack, stopping)
            await self._launch()
            pools = await self._pool.open(inner, stopping, say=self._on_pool_news, on_given_up=self._stop.set)
            codex = pools.codex
            self._app_server = codex.metadata.user_agent
            if self._guarded and self._pool.configuration.sandbox == FULL_ACCESS:
                self._display.say(
                    "the configured sandbox is danger-full-access: agents of samples that name no other can read the "
                    "dataset and the run"
                )
            workers, progress.turns_per_worker = self._pool.workers, self._pool.turns_per_worker
            self._emit_launch(self._pool.endpoint, workers)
            login = account_notice.remedy(settings.endpoint, settings.home)
            missing = None if settings.demo else await account_notice.anotice(codex, login)
            if missing is not None:
                self._warn("login_missing", f"codex-pool: {missing}", missing)
            await self._check_prices(codex, stopping)
            inner.callback(asyncio.ensure_future(self._watch(pools)).cancel)
            spent = self._directory.store.spending()
            runner = self._runner = Runner(
                self._directory,
                progress,
                self._stop,
                rules=Rules(
                    concurrency=workers * progress.turns_per_worker,
                    retries=settings.retries,
                    retry_on=settings.retry_on,
                    max_failures=settings.max_failures,
                    only=self._only,
                ),
                told=Told(on_retry=self._on_retry, on_record=self._on_record, on_trouble=self._say),
                cancelled=self._cancelled,
                disks=disks_of(self._directory.path, self._pool.codex_home),
                meter=RunMeter(
                    settings.run_limits,
                    time.monotonic(),
                    tokens=spent.tokens,
                    cost=spent.known,
                    unknown=spent.unknown,
                ),
            )
            await self._remove_left()
            clock = RunningClock()
            inner.callback(asyncio.ensure_future(clock.beat()).cancel)
            places = Places(PLACES)
            inner.push_async_callback(places.close)
            await runner.run(self._means(pools, runner, clock, places))
            if pools.given_up is None:
                return runner.ended_early
            return f"the pool is gone: {pools.given_up}; see {self._log}"

    async def _launch(self) -> None:
        """Note that the run begins, once."""
        if not self._is_launched:
            self._is_launched = True
            await _threads.in_thread(self._directory.launch, self._config)

    async def _check_prices(self, codex: AsyncCodex, stopping: asyncio.Future[Any]) -> None:
        """Raises UnpricedRunError, Stopped."""
        if self._prices is None:
            return
        directory = self._directory.file(layout.WORK) / ".judge"
        directory.mkdir(exist_ok=True)

        async def ask(model: str | None) -> Answering:
            return await unless_stopped(stopping, ask_who_answers(codex, model, directory))

        limited = self._settings.run_limits.cost is not None
        await check(
            self._prices,
            self._models,
            ask,
            limited=limited,
            warn=lambda message: self._warn("no_price", f"codex-pool: {message}", message),
        )

    async def _remove_left(self) -> None:
        if self._settings.keep:
            return
        try:
            await remove_left(self._directory)
        except WorkspaceError as error:
            self._display.say(str(error))

    def _means(self, pools: Pools, runner: Runner, clock: RunningClock, scoring_places: Places) -> Means:
        settings, pool = self._settings, self._pool

        async def on_usage(tokens: int, bill: Bill) -> None:
            pools.turn_finished()
            await runner.used(tokens, bill)

        return Means(
            pools=pools,
            directory=self._directory,
            thread_options={"approval_policy": pool.effective.approval_policy},
            limits=settings.limits,
            scorers=self._scorers,
            prices=self._prices,
            ask=Asking(
                pools.codex,
                self._directory.file(layout.WORK) / ".judge",
                on_usage=on_usage,
                prices=self._prices,
                replaced=pools.replaced,
            ),
            sources=self._sources,
            hook=settings.hook,
            keep=settings.keep,
            guarded=self._guarded,
            trusting=settings.trust_workspaces,
            private=(self._directory.path, *pool.private),
            linked=pool.linked,
            targets=pool.targets,
            configuration=pool.configuration,
            effective=pool.effective,
            written=runner.written,
            room=runner.room,
            was_full=runner.was_full,
            scoring_places=scoring_places,
            setup_places=asyncio.Semaphore(PLACES),
            clock=clock,
        )

    # What happens meanwhile.

    def _on_signal(self, task: asyncio.Task[Any]) -> None:
        self._signals += 1
        if self._signals == 1:
            self._stop.set()
            self._directory.hurry()
            if self._runner is None:
                # Whatever the start waits for: a daemon that does not answer, say.
                task.cancel()
            self._display.say("interrupted: what runs is being stopped; once more ends at once")
        elif self._signals == 2:
            task.cancel()
        else:
            # Whatever hangs: the pool's processes see their death pipe close.
            os._exit(INTERRUPTED)

    def _on_hang_up(self) -> None:
        """The terminal is gone."""
        where = self._directory.path
        _log.warning(
            "SIGHUP: the terminal is gone; the run goes on without its display, and says here what it has to say; "
            f"codex-pool attach {where} shows it, and codex-pool runs cancel {where} stops it"
        )
        self._display.leave()

    def _say(self, message: str) -> None:
        """Say it on the display that there is by then."""
        self._display.say(message)

    async def _refresh(self) -> None:
        published_at = 0.0
        while True:
            for request in control.requests(self._directory.path):
                self._take(request)
            self._display.refresh()
            now = time.monotonic()
            if now - published_at >= attached.EVERY_S:
                published_at = now
                with contextlib.suppress(OSError):
                    attached.publish(self._directory.path, self._progress, self._title(), now, self._redactor)
                with contextlib.suppress(OSError):
                    self._know_more()
            await asyncio.sleep(display.REFRESH_S)

    def _know_more(self) -> None:
        """Look for tokens that were refreshed, and take secrets out of the logs. Raises OSError."""
        if not self._redactor:
            return
        homes = home.known(self._settings.home, self._settings.endpoint)
        seen = [path.stat().st_mtime_ns for path in (one / "auth.json" for one in homes) if path.exists()]
        if seen != self._logins:
            self._logins = seen
            self._redactor.add(known_secrets({}, homes))
        for each in self._logs:
            each.mask(self._redactor)

    def _take(self, request: dict[str, Any]) -> None:
        """Something was asked of this run from outside."""
        if request.get("cancel") == "run":
            self._signals += 1
            self._stop.set()
            self._display.say("cancelled: what runs is being stopped")
        elif isinstance(request.get("cancel"), list):
            sample_id, epoch = request["cancel"]
            self._cancelled.add((sample_id, epoch))
            if self._runner is not None:
                self._runner.cancel(sample_id, epoch)

    async def _watch(self, pools: Pools) -> None:
        """What the slots do, for whoever looks."""
        while True:
            with contextlib.suppress(AppServerError):
                status = await pools.codex.client.request("pool/status")
                self._progress.slots, self._progress.pace = status["workers"], status.get("pace") or {}
            await asyncio.sleep(STATUS_EVERY_S if self._display.is_live else attached.EVERY_S)

    def _on_slots(self, slots: list[dict[str, Any]]) -> None:
        # Once the run goes on, `_watch` says more.
        if self._progress.started_at is None:
            self._progress.slots = slots

    def _on_pool_news(self, kind: str, message: str) -> None:
        """The pool was lost, or replaced."""
        self._progress.paused = message if kind == POOL_LOST else None
        self._warn(kind, f"codex-pool: {message}", message)

    def _warn(self, kind: str, shown: str, message: str) -> None:
        self._display.say(shown)
        self._emit({"event": "warning", "kind": kind, "message": message})

    def _on_retry(self, sample: Sample, outcome: Outcome) -> None:
        self._display.say(f"{shown_name(*sample.key)}: {outcome.status}, {summary.reason(outcome.error)}; trying again")

    def _on_record(self, row: SampleRow) -> None:
        record = row.record
        assert record is not None
        if record.status != "completed" and not self._stop.is_set():
            self._display.say(f"{shown_name(row.id, row.epoch)}: {record.status}, {summary.reason(record.error)}")
        for score in row.scores:
            self._on_score(row, score)
        if self._settings.as_json:
            self._emit({"event": "sample", **exported(row)})

    def _on_score(self, row: SampleRow, score: ScoreRow) -> None:
        """Say once why a scorer fails, however many samples it concerns; the summary counts them."""
        said = (score.scorer, score.error)
        if score.error is None or said in self._problems_said or len(self._problems_said) >= PROBLEMS_SAID:
            return
        self._problems_said.add(said)
        message = f"{shown_name(row.id, row.epoch)}: {score.scorer}: not scored: {' '.join(score.error.split())[:500]}"
        self._warn("not_scored", f"codex-pool: {message}", message)

    # What is said at the start and at the end.

    def _title(self) -> str:
        settings, progress = self._settings, self._progress
        title = f"batch: {plural(progress.total, 'sample')} of {settings.dataset_name}"
        if self._is_done:
            return f"{title}, all completed before: nothing to do; results in {self._directory.path}"
        before = f", {progress.skipped:,} of them completed before" if progress.skipped else ""
        pool = f"{plural(settings.workers, 'worker')} x {plural(settings.turns_per_worker, 'turn')}"
        if settings.endpoint is not None:
            pool = f"the pool at {settings.endpoint}"
        return f"{title}{before}; {pool}"

    def _emit_launch(self, endpoint: str | None, workers: int = 0) -> None:
        self._emit(
            {
                "event": "launch",
                "endpoint": endpoint,
                "workers": workers,
                "turns_per_worker": self._progress.turns_per_worker,
                "dataset": self._settings.dataset_name,
                "samples": self._progress.total,
                "skipped": self._progress.skipped,
                "directory": str(self._directory.path),
                "effective": self._config.get("effective"),
            }
        )

    async def _finish(self, code: int | None, problem: str | None) -> int:
        progress, now = self._progress, time.monotonic()
        counts = summary.count(self._directory.store.counts())
        if code is None:
            wanted = progress.total if self._only is None else progress.skipped + len(self._only)
            code = OK if counts["completed"] + counts["limit"] >= wanted else SOME_NOT_COMPLETED
            code = INTERRUPTED if self._signals else code
        state = _state(code)
        epochs = self._settings.request.epochs
        store = self._directory.store
        samples = store.samples(selected=True) if store.has_scores() else ()
        scored = summarise(scoring_summary.rows_of(samples), k=sorted({1, epochs}))
        metrics = scoring_summary.as_json(scored)
        not_valid = store.not_valid()
        outcome = {
            "problem": problem,
            "exit_code": code,
            "counts": counts,
            "not_valid": not_valid,
            "metrics": metrics,
            "app_server": self._app_server,
        }
        if not self._is_done:
            # Only how it ended is not written down then; that of its samples is.
            unwritten = await self._note_outcome(state, outcome)
            problem = problem or unwritten
        if problem is not None:
            self._display.say(f"codex-pool: {problem}")
        if code not in NOT_BEGUN and not self._is_done:
            rows = [*summary.summary(counts, progress, now), *summary.not_valid(not_valid)]
            where = str(self._directory.file(layout.RESULTS))
            rows += scoring_summary.printed(scored)
            if self._settings.estimate is not None:
                rows += self._estimated()
            self._display.finish(
                [*rows, ("results", where)], summary.failures(*self._directory.store.failures(summary.FAILURES_SHOWN))
            )
        self._emit(
            {
                "event": "done",
                "counts": counts,
                "not_valid": not_valid,
                "skipped": progress.skipped,
                "attempts": progress.attempts,
                "retries": progress.retries,
                "duration_s": round(progress.elapsed_s(now), 3),
                "tokens": dict(progress.tokens),
                "cost": progress.cost if progress.currency is not None and not progress.unknown_costs else None,
                "unknown_costs": progress.unknown_costs,
                "metrics": metrics,
                "results": str(self._directory.file(layout.RESULTS)),
                "log": str(self._log),
                "problem": problem,
                "exit_code": code,
            }
        )
        return code

    async def _notify(self, code: int) -> None:
        """Run the user's command, with which nobody waits for a terminal or a reader of ours."""
        command = self._settings.notify
        if command is None:
            return
        said, wrong = await _threads.in_thread(notify, command, self._directory.path, _state(code), code)
        for line in said.splitlines():
            self._display.say(line)
        if wrong is not None:
            self._display.say(f"codex-pool: --notify {command}: {wrong}")

    async def _note_outcome(self, state: str, outcome: dict[str, Any]) -> str | None:
        """Write down how the run ended; why that could not be done."""
        try:
            await self._launch()
            writing = asyncio.ensure_future(Waking().result(self._directory.outcome(state, outcome)))
            await asyncio.wait({writing}, timeout=LOCKED_S)
            if not writing.done() and self._directory.locked_s():
                self._display.say(
                    f"codex-pool: {locked.problem(self._directory.file(layout.DATABASE))}; waiting for it"
                )
            await writing
        except (OSError, sqlite3.Error) as error:
            if locked.is_locked(error):
                return f"{locked.problem(self._directory.file(layout.DATABASE))}; the same command goes on"
            if not is_full(error):
                raise
            return Disk(self._directory.path).problem(error)
        except asyncio.CancelledError:
            # Once more Ctrl-C.
            return f"{self._directory.path}: how the run ended could not be written down; the same command goes on"
        return None

    def _estimated(self) -> list[tuple[str, str]]:
        """What the whole run will take, by what was run of it."""
        assert self._only is not None
        ran = [
            estimate.canary(exported(row))
            for row in self._directory.store.samples(selected=True, state="done")
            if row.record is not None and row.record.status in ("completed", "limit")
        ]
        if not ran:
            return [("estimate", "none: no sample was completed")]
        concurrency = self._settings.workers * self._progress.turns_per_worker
        spent = self._directory.store.spending()
        more_tokens = spent.tokens - sum(one.tokens for one in ran)
        costs = [one.cost for one in ran if one.cost is not None]
        found = estimate.estimate(
            ran,
            self._progress.total,
            concurrency,
            more_tokens=max(0, more_tokens),
            more_cost=None if spent.cost is None else max(0.0, spent.cost - sum(costs)),
        )
        currency = self._progress.currency or ""
        return [(f"estimate: {name}", figure) for name, figure in estimate.printed(found, currency)]

    def _emit(self, record: dict[str, Any]) -> None:
        if self._settings.as_json:
            print(self._redactor.text(json.dumps(record)), flush=True)


def _state(code: int) -> str:
    """The state of a run that ended so."""
    if code in NOT_BEGUN:
        return "not started"
    return "interrupted" if code == INTERRUPTED else "finished"
