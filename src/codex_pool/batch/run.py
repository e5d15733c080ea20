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

from codex_app_server import AppServerError, HomeError, InvalidInputError
from codex_app_server._files import resolved
from codex_app_server._paths import lone_surrogate
from codex_pool import account_notice, log, start
from codex_pool.configuration import FULL_ACCESS, Configuration
from codex_pool.endpoints import EndpointError, is_tcp
from codex_pool.os_errors import describe

from . import attached, control, display, estimate, home, settings, summary
from .attempt import Stopped
from .dataset import Dataset, DatasetError, Sample
from .disk import Disk, disks_of, is_full
from .hang_up import HangUp
from .launch import NotStartedError
from .limits import RunMeter, parse_limits
from .notify import notify
from .policy import Outcome
from .pools import POOL_LOST, Pools
from .prices import Prices, PricesError, read_prices
from .progress import Progress, plural
from .run_pool import RunPool
from .runner import Rules, Runner, Told, entry_of
from .sampling import Means, has_answers, remove_left
from .scoring import ScorerError, Scorers
from .scoring import summary as scoring_summary
from .scoring.ask import Asking
from .scoring.metrics import summarise
from .settings import Settings
from .store import RunDirectory, RunDirectoryError, SampleRow, ScoreRow, layout, shown_name
from .store.rows import exported
from .tools import Tools, ToolsError, check_shell
from .workspace import Repositories, WorkspaceError, cwd_problem

OK, SOME_NOT_COMPLETED, USAGE, CANNOT_START, INTERRUPTED = 0, 1, 2, 3, 130
STATUS_EVERY_S = 0.25
REPOSITORIES = "repositories"
PROBLEMS_SAID = 20

_log = logging.getLogger(__name__)


def run_batch(asked: Settings) -> int:
    """Run a batch; messages go to stderr.

    The exit code: 0 all completed or at a limit, 1 some not, 2 bad input or no git, 3 the pool could not start or the
    CODEX_HOME cannot be used, 130 interrupted.
    """
    try:
        hang_up = HangUp()
        prices = None if asked.prices is None else read_prices(asked.prices)
        scorers = Scorers(asked.scorers)
        sources = Repositories(asked.output / REPOSITORIES)
        tools = Tools(scorers)
        samples = _read(asked, scorers, sources, tools)
    except HomeError as error:
        return _refuse(error, CANNOT_START)
    except EndpointError as error:
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
        # A hook may bring them.
        for program in tools.not_found(samples) if asked.hook is None else ():
            print(f"codex-pool: {program}", file=sys.stderr)
        return _run(asked, samples, prices, scorers, sources, hang_up)


def _run(
    asked: Settings,
    samples: Dataset,
    prices: Prices | None,
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
        directory = RunDirectory(asked.output, fresh=asked.fresh)
    except RunDirectoryError as error:
        return _refuse(error)
    except OSError as error:
        return _refuse(RunDirectoryError(f"{asked.output} cannot be a run directory: {describe(error)}"))
    try:
        directory.load(
            map(entry_of, samples),
            asked.dataset_name,
            rerun_changed=asked.rerun_changed,
            partly=asked.is_partly,
        )
        specs = [scorer.spec for scorer in scorers.run]
        config = settings.config(asked, samples.fingerprint, len(samples), specs)
        config["currency"] = None if prices is None else prices.currency
        private = [path for scorer in scorers.run for path in scorer.private]
        private += [] if samples.path is None else [samples.path]
        return asyncio.run(_Batch(asked, directory, config, prices, scorers, sources, tuple(private)).run(hang_up))
    except HomeError as error:
        return _refuse(error, CANNOT_START)
    except (RunDirectoryError, EndpointError, InvalidInputError, FileExistsError) as error:
        return _refuse(error)
    except (OSError, sqlite3.Error) as error:
        if is_full(error):
            why = disk.problem(error)
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


def _read(asked: Settings, scorers: Scorers, sources: Repositories, tools: Tools) -> Dataset:
    homes = home.known(asked.home, asked.endpoint)
    dataset = None if asked.demo_dataset else resolved(asked.request.source)

    def check(sample: Sample, where: str) -> list[str]:
        wrong = [f"{where}: {problem.partition(': ')[2]}" for problem in scorers.problems([sample])]
        if not wrong:
            tools.see(sample)
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
        scorers: Scorers,
        sources: Repositories,
        private: tuple[Path, ...],
    ) -> None:
        self._settings = asked
        self._directory = directory
        self._config = config
        self._prices = prices
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
        self._display = display.make(self._progress)
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
        self._app_server = ""
        self._runner: Runner | None = None
        self._cancelled: set[tuple[str, int]] = set()
        self._only: frozenset[int] | None = None
        if asked.estimate is not None:
            self._only = frozenset(estimate.choose(counts["total"] - counts["done"], asked.estimate))

    async def run(self, hang_up: HangUp) -> int:
        """The exit code."""
        with log.to_file("batch", self._log):
            return await self._run(hang_up)

    async def _run(self, hang_up: HangUp) -> int:
        self._stop = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, task)
        code, problem = None, None
        try:
            self._display.start(self._title())
            hang_up.tell(self._on_hang_up)
            if self._is_done:
                self._emit_launch(None)
                await self._remove_left()
            else:
                control.clear(self._directory.path)
                # A profile can deny only what is there, so these are before the first agent is.
                for name in (layout.WORK, layout.EVENTS, layout.ARTIFACTS):
                    self._directory.file(name).mkdir(exist_ok=True)
                self._directory.launch(self._config)
                problem = await self._on_pool()
        except NotStartedError as error:
            code, problem = CANNOT_START, str(error)
        except (asyncio.CancelledError, Stopped):
            # The second Ctrl-C, or one before samples were run: what there is stands in the files.
            pass
        finally:
            self._display.stop()
        return self._finish(code, problem)

    async def _on_pool(self) -> str | None:
        """Run what is pending; why that could not go on to the end, if it could not."""
        settings, progress = self._settings, self._progress
        async with contextlib.AsyncExitStack() as stack:
            stopping = asyncio.ensure_future(self._stop.wait())
            stack.callback(stopping.cancel)
            stack.callback(asyncio.ensure_future(self._refresh()).cancel)
            pools = await self._pool.open(stack, stopping, say=self._on_pool_news, on_given_up=self._stop.set)
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
            stack.callback(asyncio.ensure_future(self._watch(pools)).cancel)
            tokens, cost = self._directory.store.spent()
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
                meter=RunMeter(settings.run_limits, time.monotonic(), tokens=tokens, cost=cost),
            )
            await self._remove_left()
            await runner.run(self._means(pools, runner))
            if pools.given_up is None:
                return runner.ended_early
            return f"the pool is gone: {pools.given_up}; see {self._log}"

    async def _remove_left(self) -> None:
        if self._settings.keep:
            return
        try:
            await remove_left(self._directory)
        except WorkspaceError as error:
            self._display.say(str(error))

    def _means(self, pools: Pools, runner: Runner) -> Means:
        settings, prices, pool = self._settings, self._prices, self._pool

        async def on_usage(usage: dict[str, int] | None, model: str | None) -> None:
            pools.turn_finished()
            cost = None if prices is None else prices.cost(usage, model or settings.model)
            await runner.used((usage or {}).get("total_tokens", 0), cost)

        places = max(1, os.cpu_count() or 1)
        return Means(
            pools=pools,
            directory=self._directory,
            thread_options={"approval_policy": _approval_policy(settings.overrides, pool.configuration)},
            limits=settings.limits,
            scorers=self._scorers,
            prices=prices,
            model=settings.model,
            ask=Asking(
                pools.codex,
                self._directory.file(layout.WORK) / ".judge",
                on_usage=on_usage,
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
            written=runner.written,
            room=runner.room,
            was_full=runner.was_full,
            scoring_places=asyncio.Semaphore(places),
            setup_places=asyncio.Semaphore(places),
        )

    # What happens meanwhile.

    def _on_signal(self, task: asyncio.Task[Any]) -> None:
        self._signals += 1
        if self._signals == 1:
            self._display.say("interrupted: what runs is being stopped; once more ends at once")
            self._stop.set()
            if self._runner is None:
                # Whatever the start waits for: a daemon that does not answer, say.
                task.cancel()
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
        self._display.stop()
        self._display = display.PlainDisplay(self._progress, write=_log.info)

    def _say(self, message: str) -> None:
        """Say it on the display that there is by then."""
        self._display.say(message)

    async def _refresh(self) -> None:
        published_at = 0.0
        while True:
            self._display.refresh()
            for request in control.requests(self._directory.path):
                self._take(request)
            now = time.monotonic()
            if now - published_at >= attached.EVERY_S:
                published_at = now
                with contextlib.suppress(OSError):
                    attached.publish(self._directory.path, self._progress, self._title(), now)
            await asyncio.sleep(display.REFRESH_S)

    def _take(self, request: dict[str, Any]) -> None:
        """Something was asked of this run from outside."""
        if request.get("cancel") == "run":
            self._signals += 1
            self._display.say("cancelled: what runs is being stopped")
            self._stop.set()
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
            await asyncio.sleep(STATUS_EVERY_S if isinstance(self._display, display.LiveDisplay) else attached.EVERY_S)

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
            }
        )

    def _finish(self, code: int | None, problem: str | None) -> int:
        progress, now = self._progress, time.monotonic()
        counts = summary.count(self._directory.store.counts())
        if code is None:
            wanted = progress.total if self._only is None else progress.skipped + len(self._only)
            code = OK if counts["completed"] + counts["limit"] >= wanted else SOME_NOT_COMPLETED
            code = INTERRUPTED if self._signals else code
        state = {INTERRUPTED: "interrupted", CANNOT_START: "not started"}.get(code, "finished")
        epochs = self._settings.request.epochs
        store = self._directory.store
        samples = store.samples(selected=True) if store.has_scores() else ()
        scored = summarise(scoring_summary.rows_of(samples), k=sorted({1, epochs}))
        metrics = scoring_summary.as_json(scored)
        outcome = {
            "problem": problem,
            "exit_code": code,
            "counts": counts,
            "metrics": metrics,
            "app_server": self._app_server,
        }
        if not self._is_done:
            try:
                self._directory.outcome(state, outcome)
            except (OSError, sqlite3.Error) as error:
                if not is_full(error):
                    raise
                # Only how it ended is not written down; that of its samples is.
                problem = problem or Disk(self._directory.path).problem(error)
        if problem is not None:
            self._display.say(f"codex-pool: {problem}")
        if code != CANNOT_START and not self._is_done:
            rows = summary.summary(counts, progress, now)
            where = str(self._directory.file(layout.RESULTS))
            rows += scoring_summary.printed(scored)
            if self._only is not None:
                rows += self._estimated()
            self._display.finish(
                [*rows, ("results", where)], summary.failures(*self._directory.store.failures(summary.FAILURES_SHOWN))
            )
        self._emit(
            {
                "event": "done",
                "counts": counts,
                "skipped": progress.skipped,
                "attempts": progress.attempts,
                "retries": progress.retries,
                "duration_s": round(progress.elapsed_s(now), 3),
                "tokens": dict(progress.tokens),
                "cost": progress.cost if progress.currency is not None else None,
                "metrics": metrics,
                "results": str(self._directory.file(layout.RESULTS)),
                "log": str(self._log),
                "problem": problem,
                "exit_code": code,
            }
        )
        if self._settings.notify is not None:
            wrong = notify(self._settings.notify, self._directory.path, state, code)
            if wrong is not None:
                self._display.say(f"codex-pool: --notify {self._settings.notify}: {wrong}")
        return code

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
        found = estimate.estimate(ran, self._progress.total, concurrency)
        currency = self._progress.currency or ""
        return [(f"estimate: {name}", figure) for name, figure in estimate.printed(found, currency)]

    def _emit(self, record: dict[str, Any]) -> None:
        if self._settings.as_json:
            print(json.dumps(record), flush=True)


def _approval_policy(overrides: tuple[str, ...], configuration: Configuration) -> Any:
    """Nobody is there to be asked, as in `codex exec`; unless the user has said otherwise for this run."""
    if any(override.partition("=")[0].strip() == "approval_policy" for override in overrides):
        return configuration.approval_policy
    return "never"
