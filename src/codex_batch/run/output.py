"""RunOutput: what a run reports while it goes on and at its end, to the display and as JSON lines on stdout."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codex_app_server._runtime.text import plural
from codex_pool.runtime import workflow_commands

from ..configuration.settings import Settings
from ..dataset import Sample
from ..display import live, summary
from ..display.next_steps import next_steps
from ..exit_codes import NOT_STARTED
from ..gates.prepare import split_run
from ..redaction.redactor import Redactor
from ..rules import estimate
from ..rules.progress import Progress
from ..rules.retry import Outcome
from ..store import RunDirectory, SampleRow, ScoreRow, layout, shown_name
from ..store.export import exported

# So many different problems of scorers are shown.
MAX_PROBLEMS = 20
MESSAGE_CHARACTERS = 500


class RunOutput:
    """Writes to `display`, and with --json to stdout; secrets are taken out of both."""

    def __init__(self, settings: Settings, directory: RunDirectory, progress: Progress) -> None:
        self._settings = settings
        self._directory = directory
        self._redactor: Redactor = directory.redactor
        self._progress = progress
        self._on_github = workflow_commands.is_on(os.environ)
        self._problems: set[tuple[str, str | None]] = set()
        self.workers: tuple[int, ...] = ()
        """Workers of each codex binary, if there are several."""
        self.is_stopping = False
        """True once the run was asked to stop: samples that end from then on are not named."""
        self.display = live.make(progress, self._redactor.text)

    def say(self, message: str) -> None:
        """Show a message, on the display that there is by then."""
        self.display.say(message)

    def warn(self, kind: str, message: str) -> None:
        """Show a warning, and emit it as an event of this kind."""
        self.display.say(f"codex-pool: {message}")
        self.emit({"event": "warning", "kind": kind, "message": message})

    def emit(self, event: Mapping[str, Any]) -> None:
        """Print an event as a line of JSON, if --json asks for them."""
        if self._settings.as_json:
            line = self._redactor.text(json.dumps(event))
            print(workflow_commands.json_line(line) if self._on_github else line, flush=True)

    # Samples.

    def on_retry(self, sample: Sample, outcome: Outcome) -> None:
        """Show an attempt that another one follows."""
        self.say(f"{shown_name(*sample.key)}: {outcome.status}, {summary.reason(outcome.error)}; trying again")

    def on_record(self, row: SampleRow) -> None:
        """Show a sample that has ended, unless it completed."""
        record = row.record
        assert record is not None
        if record.status != "completed" and not self.is_stopping:
            self.say(f"{row.shown_name}: {record.status}, {summary.reason(record.error)}")
        for score in row.scores:
            self._on_score(row, score)
        if self._settings.as_json:
            self.emit({"event": "sample", **exported(row)})

    def _on_score(self, row: SampleRow, score: ScoreRow) -> None:
        """Show once why a scorer fails, however many samples it concerns; the summary counts them."""
        problem = (score.scorer, score.error)
        if score.error is None or problem in self._problems or len(self._problems) >= MAX_PROBLEMS:
            return
        self._problems.add(problem)
        why = " ".join(score.error.split())[:MESSAGE_CHARACTERS]
        self.warn("not_scored", f"{row.shown_name}: {score.scorer}: not scored: {why}")

    # Start and end.

    def title(self, is_done: bool) -> str:
        """Return the first line of the display."""
        settings, progress = self._settings, self._progress
        title = f"batch: {plural(progress.total, 'sample')} of {settings.dataset_name}"
        if settings.shard is not None:
            title += f", shard {settings.shard}"
        if not progress.total:
            return f"{title}: nothing to do"
        if is_done:
            return f"{title}, all completed before: nothing to do; results in {self._directory.path}"
        before = f", {progress.skipped:,} of them completed before" if progress.skipped else ""
        of_binaries = " + ".join(map(str, self.workers))
        workers = plural(settings.workers, "worker") if len(self.workers) < 2 else f"{of_binaries} workers"
        pool = f"{workers} x {plural(settings.turns_per_worker, 'turn')}"
        if settings.hosts is not None:
            pool = f"hosts of Ray ({settings.hosts.address}), each {pool}"
        if settings.endpoint is not None:
            pool = f"the pool at {settings.endpoint}"
        return f"{title}{before}; {pool}"

    def launched(
        self, endpoint: str | None, workers: int, config: Mapping[str, Any], codex_version: str | None = None
    ) -> None:
        """Emit the event of the start, with the launch's `config`; without an endpoint there is nothing to be run."""
        self.emit(
            {
                "event": "launch",
                "endpoint": endpoint,
                "workers": workers,
                "turns_per_worker": self._progress.turns_per_worker,
                "dataset": self._settings.dataset_name,
                "shard": self._settings.shard,
                "samples": self._progress.total,
                "skipped": self._progress.skipped,
                "directory": str(self._directory.path),
                "effective": config.get("effective"),
                **({"variants": config["variants"]} if "variants" in config else {}),
                "codex_version": codex_version,
            }
        )

    def ended(
        self,
        outcome: Mapping[str, Any],
        scores: Sequence[tuple[str, str]],
        gates: Sequence[tuple[str, str]],
        now: float,
        *,
        was_run: bool,
        log: Path,
        config: Mapping[str, Any],
    ) -> None:
        """Show the summary of a run, if anything was run, and emit the last event.

        `outcome` is what the store keeps of the end; `scores` and `gates` are rows of the summary,
        `config` is that of the launch.
        """
        progress, code, problem = self._progress, outcome["exit_code"], outcome["problem"]
        if problem is not None:
            self.say(f"codex-pool: {problem}")
        results = str(self._directory.file(layout.RESULTS))
        if code not in NOT_STARTED and was_run:
            of_shard = f"{self._settings.shard}: figures are of its {plural(progress.total, 'sample')}"
            rows = [] if self._settings.shard is None else [("shard", of_shard)]
            rows += [*summary.summary(outcome["counts"], progress, now), *summary.not_valid(outcome["not_valid"])]
            rows += scores
            if self._settings.estimate is not None:
                rows += self._estimated()
            failures = summary.failures(*self._directory.store.failures(summary.FAILURES_SHOWN))
            self.display.finish([*rows, *gates, ("results", results)], failures)
        elif code not in NOT_STARTED:
            for name, value in gates:
                self.say(f"  {name}  {value}")
        if code not in NOT_STARTED and not self._settings.as_json:
            self._say_next(outcome["counts"], config)
        self.emit(
            {
                "event": "done",
                "shard": self._settings.shard,
                "counts": outcome["counts"],
                "not_valid": outcome["not_valid"],
                "skipped": progress.skipped,
                "attempts": progress.attempts,
                "retries": progress.retries,
                "duration_s": round(progress.elapsed_s(now), 3),
                "tokens": dict(progress.tokens),
                "cost": progress.cost if progress.currency is not None and not progress.unknown_costs else None,
                "unknown_costs": progress.unknown_costs,
                "metrics": outcome["metrics"],
                **({"variants": outcome["variants"]} if "variants" in outcome else {}),
                **({"hooks": outcome["hooks"]} if "hooks" in outcome else {}),
                "results": results,
                "log": str(log),
                "problem": problem,
                "gates": outcome["gates"],
                "exit_code": code,
            }
        )

    def _say_next(self, counts: Mapping[str, int], config: Mapping[str, Any]) -> None:
        """Show what a user may do after this run."""
        worse_than = self._settings.gates.worse_than
        baseline, variant = split_run(worse_than[0]) if worse_than else (None, None)
        steps = next_steps(
            str(self._directory.path),
            config["directory"],
            counts,
            config["command"],
            is_estimate=self._settings.estimate is not None,
            baseline=None if baseline is None else str(baseline),
            variant=variant,
        )
        if steps:
            self.say("next:")
        width = max((len(name) for name, _ in steps), default=0)
        for name, words in steps:
            self.say(f"  {name:<{width}}  {words}")

    def _estimated(self) -> list[tuple[str, str]]:
        """Rows of what the whole run will take, by what was run of it."""
        store = self._directory.store
        names = self._settings.defaults.names
        # Each sample is run in each variant.
        groups = [(self._canaries(name), self._progress.total // len(names)) for name in names]
        for name, (canaries, _) in zip(names, groups, strict=True):
            if not canaries:
                of_variant = f" of variant {name}" if name else ""
                return [("estimate", f"none: no sample{of_variant} was completed")]
        ran = [one for canaries, _ in groups for one in canaries]
        concurrency = self._settings.workers * self._progress.turns_per_worker
        spent = store.spending()
        more_tokens = spent.tokens - sum(one.tokens for one in ran)
        costs = [one.cost for one in ran if one.cost is not None]
        found = estimate.estimate_all(
            groups,
            concurrency,
            more_tokens=max(0, more_tokens),
            more_cost=None if spent.cost is None else max(0.0, spent.cost - sum(costs)),
        )
        currency = self._progress.currency or ""
        return [(f"estimate: {name}", figure) for name, figure in estimate.printed(found, currency)]

    def _canaries(self, variant: str) -> list[estimate.Canary]:
        """The samples that a variant, or a run without variants, has completed."""
        return [
            estimate.canary(exported(row))
            for row in self._directory.store.samples(selected=True, state="done", variant=variant)
            if row.record is not None and row.record.status in ("completed", "limit")
        ]
