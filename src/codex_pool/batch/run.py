"""A run from the dataset to the exit code: what `codex-pool batch` calls."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import platform
import re
import signal
import sqlite3
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import codex_app_server
import codex_pool
from codex_app_server import AppServerConfig, AppServerError, AsyncCodex
from codex_pool.demo import demo_home
from codex_pool.endpoints import EndpointError
from codex_pool.pool import Pool, aconnect

from . import display, home, summary
from .attempt import Stopped
from .dataset import Dataset, DatasetError, Request, Sample
from .home import HomeError
from .launch import START_LIMIT_S, USER_HOME_START_LIMIT_S, NotStartedError, start_pool
from .policy import Outcome
from .progress import Progress, plural
from .runner import Runner, entry_of
from .store import RunDirectory, RunDirectoryError, SampleRow, layout, shown_name
from .store.rows import exported

OK, SOME_NOT_COMPLETED, USAGE, CANNOT_START, INTERRUPTED = 0, 1, 2, 3, 130
STATUS_EVERY_S = 0.25
CONNECT_LIMIT_S = 5.0
CONNECT_AGAIN_S = 0.05
_SECRET = re.compile("token|key|secret|password|auth|header|env", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was asked for. `endpoint` is that of a daemon, None for an own pool.

    `demo_dataset`: the demo's own dataset, in place of the request's source. `demo_script`: the demo's answers.
    """

    request: Request
    demo_dataset: bool = False
    output: Path
    workers: int
    turns_per_worker: int
    retries: int = 0
    home: str = home.RUN
    fresh: bool = False
    as_json: bool = False
    endpoint: str | None = None
    key: str | None = None
    overrides: tuple[str, ...] = ()
    codex_bin: str | None = None
    demo: bool = False
    demo_script: Path | None = None

    @property
    def dataset_name(self) -> str:
        return "the demo dataset" if self.demo_dataset else str(self.request.source)


def run_batch(settings: Settings) -> int:
    """Run a batch; messages go to stderr.

    The exit code: 0 all completed, 1 some not, 2 bad input, 3 the pool could not start, 130 interrupted.
    """
    try:
        samples = _read(settings)
    except DatasetError as error:
        print(error, file=sys.stderr)
        print(f"codex-pool: {plural(len(error.problems), 'problem')}; nothing was run", file=sys.stderr)
        return USAGE
    with samples:
        return _run(settings, samples)


def _run(settings: Settings, samples: Dataset) -> int:
    try:
        directory = RunDirectory(settings.output, fresh=settings.fresh)
    except RunDirectoryError as error:
        return _refuse(error)
    try:
        directory.load(map(entry_of, samples), settings.dataset_name)
        return asyncio.run(_Batch(settings, directory).run())
    except (RunDirectoryError, HomeError, EndpointError, FileExistsError) as error:
        return _refuse(error)
    except (OSError, sqlite3.Error) as error:
        print(f"codex-pool: {settings.output}: {error}; the run directory must be writable", file=sys.stderr)
        return SOME_NOT_COMPLETED
    finally:
        with contextlib.suppress(OSError, sqlite3.Error):
            directory.close()


def _read(settings: Settings) -> Dataset:
    stdin = sys.stdin.buffer
    if settings.demo_dataset:
        from codex_app_server.testing.loopback.demo import demo_jsonl

        stdin = io.BytesIO(demo_jsonl().encode())
    return settings.request.open(stdin=stdin)


def _refuse(error: Exception) -> int:
    print(f"codex-pool: {error}", file=sys.stderr)
    return USAGE


class _Batch:
    """One run on its event loop."""

    def __init__(self, settings: Settings, directory: RunDirectory) -> None:
        self._settings = settings
        self._directory = directory
        self._log = directory.file(layout.LOG)
        counts = directory.store.counts()
        self._progress = Progress(total=counts["total"], skipped=counts["done"])
        self._is_done = counts["total"] == counts["done"]
        self._progress.turns_per_worker = settings.turns_per_worker
        self._display = display.make(self._progress)
        self._signals = 0
        self._app_server = ""

    async def run(self) -> int:
        """The exit code."""
        self._stop = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        # Under nohup the end of the terminal is nothing to us.
        hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, task)
        handler = logging.FileHandler(self._log, delay=True)
        logging.getLogger("codex_app_server").addHandler(handler)
        code, problem = None, None
        try:
            self._display.start(self._title())
            if self._is_done:
                self._emit_launch(None)
            else:
                self._directory.launch(self._config())
                problem = await self._on_pool()
        except NotStartedError as error:
            code, problem = CANNOT_START, str(error)
        except (asyncio.CancelledError, Stopped):
            # The second Ctrl-C, or one before there was a pool: what there is stands in the files.
            pass
        finally:
            self._display.stop()
            logging.getLogger("codex_app_server").removeHandler(handler)
            handler.close()
        return self._finish(code, problem)

    async def _on_pool(self) -> str | None:
        """Run what is pending; why that could not go on to the end, if it could not."""
        settings, progress = self._settings, self._progress
        async with contextlib.AsyncExitStack() as stack:
            stopping = asyncio.ensure_future(self._stop.wait())
            stack.callback(stopping.cancel)
            stack.callback(asyncio.ensure_future(self._refresh()).cancel)
            pool = None
            endpoint = settings.endpoint
            if endpoint is None:
                pool = await self._own_pool(stack, stopping)
                endpoint = pool.endpoint
            codex = await self._connect(endpoint)
            stack.push_async_callback(codex.close)
            self._app_server = codex.metadata.user_agent
            workers = settings.workers
            if pool is None:
                status = await codex.client.request("pool/status")
                workers, progress.turns_per_worker = len(status["workers"]), status["turnsPerWorker"]
            self._emit_launch(endpoint, workers)
            stack.callback(asyncio.ensure_future(self._watch(codex)).cancel)
            runner = Runner(
                codex,
                self._directory,
                progress,
                self._stop,
                concurrency=workers * progress.turns_per_worker,
                retries=settings.retries,
                thread_options=_thread_options(settings.overrides),
                on_retry=self._on_retry,
                on_record=self._on_record,
            )
            await runner.run()
            if runner.pool_gone is None:
                return None
            why = pool.failure if pool is not None else None
            return f"the pool is gone: {why or runner.pool_gone}; see {self._log}"

    async def _own_pool(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> Pool:
        settings = self._settings
        path = self._directory.file(layout.HOME)
        if settings.demo:
            try:
                stack.enter_context(demo_home(path, str(settings.demo_script or "demo")))
            except RuntimeError as error:
                raise NotStartedError(str(error)) from None
        else:
            path = home.prepare(settings.home, path)

        def on_slots(slots: list[dict[str, Any]]) -> None:
            if self._progress.started_at is None:
                self._progress.slots = slots

        config = AppServerConfig(
            codex_bin=settings.codex_bin,
            config_overrides=settings.overrides,
            cwd=self._directory.path,
            env={"CODEX_HOME": str(path.resolve())},
        )
        return await start_pool(
            stack,
            stopping,
            config,
            workers=settings.workers,
            turns_per_worker=settings.turns_per_worker,
            limit_s=START_LIMIT_S if settings.home == home.RUN else USER_HOME_START_LIMIT_S,
            log=self._log,
            on_slots=on_slots,
        )

    async def _connect(self, endpoint: str) -> AsyncCodex:
        # An own pool is ready when its workers are; its broker may hear of them a moment later.
        deadline = time.monotonic() + (CONNECT_LIMIT_S if self._settings.endpoint is None else 0.0)
        while True:
            try:
                name = f"batch {self._directory.path.name}"
                return await aconnect(endpoint, name=name, key=self._settings.key, priority="batch")
            except AppServerError as error:
                if time.monotonic() >= deadline:
                    raise NotStartedError(str(error)) from None
            await asyncio.sleep(CONNECT_AGAIN_S)

    # What happens meanwhile.

    def _on_signal(self, task: asyncio.Task[Any]) -> None:
        self._signals += 1
        if self._signals == 1:
            self._display.say("interrupted: what runs is being stopped; once more ends at once")
            self._stop.set()
        elif self._signals == 2:
            task.cancel()
        else:
            # Whatever hangs: the pool's processes see their death pipe close.
            os._exit(INTERRUPTED)

    async def _refresh(self) -> None:
        while True:
            self._display.refresh()
            await asyncio.sleep(display.REFRESH_S)

    async def _watch(self, codex: AsyncCodex) -> None:
        """What the slots do, for whoever looks."""
        while isinstance(self._display, display.LiveDisplay):
            with contextlib.suppress(AppServerError):
                self._progress.slots = (await codex.client.request("pool/status"))["workers"]
            await asyncio.sleep(STATUS_EVERY_S)

    def _on_retry(self, sample: Sample, outcome: Outcome) -> None:
        self._display.say(f"{sample.id}: {outcome.status}, {summary.reason(outcome.error)}; trying again")

    def _on_record(self, row: SampleRow) -> None:
        record = row.record
        assert record is not None
        if record.status != "completed" and not self._stop.is_set():
            self._display.say(f"{shown_name(row.id, row.epoch)}: {record.status}, {summary.reason(record.error)}")
        if self._settings.as_json:
            self._emit({"event": "sample", **exported(row)})

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
            code = OK if counts["completed"] == progress.total else SOME_NOT_COMPLETED
            code = INTERRUPTED if self._signals else code
        state = {INTERRUPTED: "interrupted", CANNOT_START: "not started"}.get(code, "finished")
        outcome = {"problem": problem, "exit_code": code, "counts": counts, "app_server": self._app_server}
        if not self._is_done:
            self._directory.outcome(state, outcome)
        if problem is not None:
            self._display.say(f"codex-pool: {problem}")
        if code != CANNOT_START and not self._is_done:
            rows = summary.summary(counts, progress, now)
            where = str(self._directory.file(layout.RESULTS))
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
                "results": str(self._directory.file(layout.RESULTS)),
                "log": str(self._log),
                "problem": problem,
                "exit_code": code,
            }
        )
        return code

    def _config(self) -> dict[str, Any]:
        """What was run, exactly; and with what."""
        arguments = {**asdict(self._settings), "overrides": list(map(_shown, self._settings.overrides))}
        arguments = {"dataset": self._settings.dataset_name, **json.loads(json.dumps(arguments, default=str))}
        return {
            "arguments": arguments,
            "versions": {
                "codex_pool": codex_pool.__version__,
                "codex_app_server": codex_app_server.__version__,
                "python": platform.python_version(),
            },
            "samples": self._progress.total,
            "skipped": self._progress.skipped,
        }

    def _emit(self, record: dict[str, Any]) -> None:
        if not self._settings.as_json:
            return
        try:
            print(json.dumps(record), flush=True)
        except BrokenPipeError:
            # Whoever read is gone, the results are in the files. Python flushes once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _thread_options(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Nobody is there to be asked, as in `codex exec`; unless the user has said otherwise."""
    if any(override.partition("=")[0].strip() == "approval_policy" for override in overrides):
        return {}
    return {"approval_policy": "never"}


def _shown(override: str) -> str:
    """An override as it may stand in a file: run directories hold no secrets."""
    key = override.partition("=")[0]
    return f"{key}=..." if _SECRET.search(key) else override
