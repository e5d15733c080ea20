"""A run scored again, from the command's arguments to the exit code: what `codex-pool score` calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from codex_app_server import AppServerError, AsyncCodex, HomeError, InvalidInputError
from codex_app_server._runtime import threads
from codex_app_server._runtime.text import plural
from codex_pool import EndpointError, account_notice, aconnect
from codex_pool.demo import demo_home
from codex_pool.litellm_prices import NAME as LITELLM
from codex_pool.litellm_prices import find_prices
from codex_pool.options import PoolOptions
from codex_pool.prices import Prices, PricesError
from codex_pool.runtime import startup, workflow_commands

from ..container import ContainerError
from ..display import by_variant, summary
from ..display.summary import cost
from ..exit_codes import CANNOT_START, HUNG_UP, INTERRUPTED, OK, SOME_FAILED, USAGE
from ..redaction import scrub
from ..redaction.known_secrets import known_secrets
from ..redaction.redactor import Redactor
from ..rules.bill import Bill
from ..rules.pool_deaths import PoolDeaths
from ..rules.progress import Progress
from ..run import home
from ..run.launch import NotStartedError, OwnPool, own_pool
from ..run.pool_clients import Pools
from ..run.stopping import Stopped
from ..run.tools import ToolsError, check_git
from ..scoring import Score, ScorerError, Scorers
from ..scoring import metric_rows as scoring_summary
from ..scoring.ask import Asking
from ..scoring.metrics import summarise
from ..store import RunDirectory, RunDirectoryError, RunStore, SampleRow, edit_run, layout, open_run
from ..workspace import WorkspaceError
from .rescore import Counts, Plan, rescore

PROBLEMS_SHOWN = 20
SAY_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one command. `scorers` are those of the run if empty, `endpoint` an own pool if None."""

    run: Path
    scorers: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    missing: bool = False
    k: tuple[int, ...] = (1,)
    as_json: bool = False
    pool: PoolOptions = field(default_factory=PoolOptions)
    home: str = home.RUN
    endpoint: str | None = None
    key: str | None = None
    overrides: tuple[str, ...] = ()
    codex_bin: str | None = None
    demo: bool = False
    redact: bool = True
    prices: str | None = None
    """Prices of the judges' tokens; those of the run unless given."""


def score_run(settings: Settings) -> int:
    """Score a run again; messages go to stderr.

    The exit code, of `exit_codes`: OK all scored, SOME_FAILED some scorers failed, USAGE bad input, CANNOT_START the
    pool could not start, HUNG_UP the terminal is gone, INTERRUPTED.
    """
    startup.interrupt_on_signals()
    try:
        with open_run(settings.run) as store:
            prices = _prices(settings, store)
            specs: Sequence[Any] = settings.scorers or store.info()["config"].get("scorers", [])
            where = "--scorer" if settings.scorers else "scorers of the run"
            scorers = Scorers(specs, where=where)
            plan = Plan(scorers, bool(settings.scorers), frozenset(settings.samples), settings.missing)
            problems = list(islice(plan.problems(store), PROBLEMS_SHOWN + 1))
            if problems:
                return _refuse_all(problems)
            check_git(plan.workspaces(store, settings.run))
            needs = [any(s.needs_model for s in plan.wanted(row)[1]) for row in plan.rows(store) if plan.wanted(row)[1]]
        if not needs:
            why = f"no finished sample of {', '.join(settings.samples)}" if settings.samples else "nothing to score"
            print(f"codex-pool: {settings.run}: {why}; name scorers with --scorer, or see `--help`", file=sys.stderr)
            return OK if settings.missing else USAGE
        with contextlib.closing(edit_run(settings.run, _redactor_of(settings))) as directory:
            try:
                return asyncio.run(_Scoring(settings, plan, directory, len(needs), prices).run(any(needs)))
            finally:
                if any(needs):
                    _scrub(settings, directory.redactor)
    except (PricesError, ScorerError) as error:
        return _refuse_all(error.problems)
    except ToolsError as error:
        print(f"codex-pool: {error}; nothing was scored", file=sys.stderr)
        return USAGE
    except (HomeError, NotStartedError) as error:
        print(f"codex-pool: {error}", file=sys.stderr)
        return CANNOT_START
    except (RunDirectoryError, EndpointError, InvalidInputError) as error:
        print(f"codex-pool: {error}", file=sys.stderr)
        return USAGE
    except (PoolGoneError, ContainerError, WorkspaceError) as error:
        print(f"codex-pool: {error}", file=sys.stderr)
        return SOME_FAILED
    except KeyboardInterrupt as error:
        print("codex-pool: interrupted; what was scored is kept, --missing goes on with the rest", file=sys.stderr)
        return HUNG_UP if isinstance(error, startup.HungUp) else INTERRUPTED


def _prices(settings: Settings, store: RunStore) -> Prices | None:
    """The prices that judges are paid by: those that were named, else those of the run, if they are still there.

    Raises PricesError for those that were named.
    """
    if settings.prices is not None:
        return find_prices(settings.prices)
    config = store.info()["config"]
    asked = (config.get("arguments") or {}).get("prices")
    if not asked:
        return None
    kind, colon, name = asked.rpartition(":")
    if asked != LITELLM:
        # Named relative to where the run was started.
        asked = f"{kind}{colon}{Path(config.get('directory', '.')) / Path(name).expanduser()}"
    try:
        return find_prices(asked)
    except PricesError as error:
        print(
            f"codex-pool: the prices of the run are not there any more, so the cost is unknown: {error}",
            file=sys.stderr,
        )
        return None


def _redactor_of(settings: Settings) -> Redactor:
    """Knows the secrets that are known where scoring begins."""
    homes = [*home.known(settings.home, settings.endpoint), settings.run / layout.HOME]
    secrets = known_secrets(os.environ, homes, settings.overrides, settings.key) if settings.redact else {}
    return Redactor(secrets)


def _scrub(settings: Settings, redactor: Redactor) -> None:
    """Take secrets out of what the judges' pool has written; it has ended."""
    try:
        scrub.Log(settings.run / layout.LOG).mask(redactor)
        if settings.endpoint is None and (settings.home == home.RUN or settings.demo):
            scrub.redact_home(settings.run / layout.HOME, redactor)
    except OSError as error:
        print(f"codex-pool: secrets may be left in {settings.run}: {error}", file=sys.stderr)


def _refuse_all(problems: Sequence[str]) -> int:
    for problem in problems[:PROBLEMS_SHOWN]:
        print(problem, file=sys.stderr)
    more = " at least" if len(problems) > PROBLEMS_SHOWN else ""
    print(f"codex-pool:{more} {plural(len(problems), 'problem')}; nothing was scored", file=sys.stderr)
    return USAGE


class PoolGoneError(Exception):
    """No pool is left to ask the judge on; the message gives the reason, and how to go on."""


class _Scoring:
    def __init__(
        self, settings: Settings, plan: Plan, directory: RunDirectory, total: int, prices: Prices | None
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._directory = directory
        self._total = total
        self._prices = prices
        self._spent = Progress(total, currency=None if prices is None else prices.currency)
        self._done = 0
        self._said: set[tuple[str, str]] = set()
        self._said_at = time.monotonic()
        self._pools: Pools | None = None

    async def run(self, with_model: bool) -> int:
        """The exit code."""
        settings = self._settings
        at_once = settings.pool.workers * settings.pool.turns_per_worker
        self._emit({"event": "launch", "directory": str(settings.run), "samples": self._total})
        in_containers = self._plan.containers(self._directory.store)
        if in_containers:
            self._say(
                f"codex-pool: {plural(in_containers, 'sample')}: commands run in new containers of the same images; "
                "what agents changed outside of their workspaces is not there"
            )
        async with contextlib.AsyncExitStack() as stack:
            ask = await self._asking(stack) if with_model else None
            try:
                counts = await rescore(
                    self._directory,
                    self._plan,
                    ask=ask,
                    at_once=min(at_once, self._total),
                    on_scored=self._on_scored,
                    codex_bin=settings.codex_bin,
                )
            except Stopped:
                why = "" if self._pools is None else self._pools.given_up
                log = settings.run / layout.LOG
                kept = "what was scored is kept, --missing goes on with the rest"
                raise PoolGoneError(f"the pool is gone: {why}; see {log}; {kept}") from None
        return self._finish(counts)

    async def _asking(self, stack: contextlib.AsyncExitStack) -> Asking:
        settings = self._settings
        stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        own = None if settings.endpoint is not None else await self._own_pool(stack, stopping)

        async def connect() -> AsyncCodex:
            name = f"score {settings.run.name}"
            try:
                if own is not None:
                    await own.start(stopping)
                    return await own.pool.aconnect(name=name, priority="batch")
                return await aconnect(settings.endpoint, name=name, key=settings.key, priority="batch")
            except AppServerError as error:
                raise NotStartedError(str(error)) from None

        codex = await connect()
        pools = self._pools = Pools(
            codex,
            name="the pool" if own is not None else f"the pool at {settings.endpoint}",
            remedy="another is started" if own is not None else "it is waited for",
            reopen=connect,
            deaths=PoolDeaths(is_own=own is not None),
            stopping=stopping,
            say=self._on_pool_news,
            on_given_up=lambda: None,
        )
        stack.push_async_callback(pools.close)
        login = account_notice.remedy(settings.endpoint, settings.home)
        missing = None if settings.demo else await account_notice.anotice(codex, login)
        if missing is not None:
            self._say(f"codex-pool: {missing}")
            self._emit({"event": "warning", "kind": "login_missing", "message": missing})
        return Asking(
            codex,
            settings.run / layout.RESCORING_JUDGE,
            replaced=pools.replaced,
            on_usage=self._on_usage,
            prices=self._prices,
        )

    async def _on_usage(self, tokens: int, bill: Bill) -> None:
        """A question was answered, or given up: it counts in what the run has spent."""
        if self._pools is not None:
            self._pools.turn_finished()
        self._spent.tokens["total_tokens"] += tokens
        self._spent.spent(bill.cost)
        await threads.in_thread(self._directory.judged(tokens, bill.cost).result)

    def _on_pool_news(self, kind: str, message: str) -> None:
        self._say(f"codex-pool: {message}")
        self._emit({"event": "warning", "kind": kind, "message": message})

    async def _own_pool(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[None]) -> OwnPool:
        """The run's own pool, not started."""
        settings = self._settings
        path = settings.run / layout.HOME
        if settings.demo:
            path.mkdir(exist_ok=True)
            try:
                stack.enter_context(demo_home(path))
            except RuntimeError as error:
                raise NotStartedError(str(error)) from None
        else:
            path = home.prepare(settings.home, path)
        own = await own_pool(stopping, settings, path, cwd=settings.run, log=settings.run / layout.LOG)
        stack.push_async_callback(own.close)
        return own

    def _on_scored(self, row: SampleRow, scores: Sequence[Score]) -> None:
        self._done += 1
        for score in scores:
            said = score.scorer, score.error or ""
            if score.error is not None and said not in self._said and len(self._said) < PROBLEMS_SHOWN:
                # Once, however many samples it concerns; the summary counts them.
                self._said.add(said)
                self._say(f"{row.shown_name}: {score.scorer}: not scored: {score.error}")
        now = time.monotonic()
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            self._say(f"{self._done:,} of {plural(self._total, 'sample')} scored")
        named = {"id": row.id, "epoch": row.epoch, **({"variant": row.variant} if row.variant else {})}
        self._emit({"event": "sample", **named, "scores": [asdict(score) for score in scores]})

    def _finish(self, counts: Counts) -> int:
        store = self._directory.store
        variants = store.variant_names()
        # Scores of several variants have no mean.
        samples = () if variants else store.samples(state="done")
        found = summarise(scoring_summary.rows_of(samples), k=self._settings.k)
        of_variants = by_variant.by_variant(store, variants, k=self._settings.k)
        currency = store.info()["config"].get("currency")
        not_valid = store.not_valid()
        rows = [("scored", plural(counts.scored, "sample")), *summary.not_valid(not_valid)]
        rows += [*scoring_summary.printed(found), *by_variant.table(of_variants, currency)]
        if counts.scorer_failures:
            rows.insert(1, ("scorers failed", f"{counts.scorer_failures:,} times; --missing scores those again"))
        spent = self._spent
        if spent.cost or spent.unknown_costs:
            rows.append(("judges", f"{spent.tokens['total_tokens']:,} tokens"))
            rows.append(("cost", cost(spent.cost, spent.unknown_costs, spent.currency)))
        width = max(len(name) for name, _ in rows)
        for name, figures in rows:
            self._say(f"  {name:<{width}}  {figures}")
        code = SOME_FAILED if counts.scorer_failures else OK
        metrics = scoring_summary.as_json(found)
        known = spent.cost if spent.currency is not None and not spent.unknown_costs else None
        judged = {"tokens": spent.tokens["total_tokens"], "cost": known, "unknown_costs": spent.unknown_costs}
        done = {**asdict(counts), **judged, "not_valid": not_valid, "metrics": metrics, "exit_code": code}
        if variants:
            done["variants"] = by_variant.as_json(of_variants, currency)
        self._emit({"event": "done", **done})
        return code

    def _say(self, text: str) -> None:
        print(self._directory.redactor.text(text), file=sys.stderr)

    def _emit(self, record: dict[str, Any]) -> None:
        if self._settings.as_json:
            line = self._directory.redactor.text(json.dumps(record))
            print(workflow_commands.json_line(line) if workflow_commands.is_on(os.environ) else line, flush=True)
