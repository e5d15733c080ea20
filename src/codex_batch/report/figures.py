"""Figures of runs as a whole, gathered sample by sample. Pure; only numbers are kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from codex_app_server._runtime.text import plural

from ..scoring import metric_rows as scoring_summary
from ..scoring import metrics
from ..store.rows import ANSWERED, AttemptRow, SampleRow, counted, is_valid
from .paired import Difference, of_epochs
from .plots import Span
from .source import NOT_RUN, status_of, tokens_of

STATUSES = ("completed", "limit", "failed", "stalled", "lost", "interrupted", "running", NOT_RUN)
USAGE = ("input_tokens", "cached_input_tokens", "output_tokens", "total_tokens")
TAGS_SHOWN = 30

Pairs = dict[str, tuple[list[float], list[float]]]
"""Values in A and in B by the id of their sample: one for each epoch."""


_NO_INFO: Mapping[str, Any] = MappingProxyType({})


class RunFigures:
    """The figures of one run, `info` as its store has it. Add every sample once."""

    def __init__(self, info: Mapping[str, Any] = _NO_INFO) -> None:
        self.samples = self.retries = self.tool_calls = 0
        self.epochs = 1
        self.ids: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self.limits: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.not_valid = 0
        self.tags: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        judged = info.get("judged") or {}
        self.cost = float(judged.get("cost") or 0.0)
        """Money, as far as it is known, of all attempts and of judges."""
        self.unknown_costs = int(judged.get("unknown") or 0)
        self.durations_ms: list[float] = []
        self.tokens: list[int] = []
        self.ends: list[tuple[float, bool]] = []
        self.spans: list[Span] = []
        self.answered: dict[str, Counter[str]] = {name: Counter() for name in ANSWERED}
        self.rerouted = 0
        self._scores: list[metrics.ScoreValue] = []

    def add(self, row: SampleRow, attempts: Sequence[AttemptRow]) -> None:
        place, status, tokens, record = self.samples, status_of(row), tokens_of(row), row.record
        self.samples += 1
        self.ids.add(row.id)
        self.epochs = max(self.epochs, row.epoch)
        self.statuses[status] += 1
        self.tags.update(set(row.tags))
        for attempt in attempts:
            self.cost += attempt.cost or 0.0
            self.unknown_costs += attempt.has_unknown_cost
            if attempt.worker is None or attempt.ended_at is None or attempt.duration_ms is None:
                continue
            start = max(attempt.started_at, attempt.ended_at - attempt.duration_ms / 1000)
            label = row.id if attempt.attempt == 1 else f"{row.id}, attempt {attempt.attempt}"
            self.spans.append(Span(attempt.worker, start, attempt.ended_at, attempt.status or "running", place, label))
        if row.state == "done":
            self._scores.extend(scoring_summary.rows_of([row]))
        if record is None:
            return
        self.not_valid += not is_valid(record.status)
        if record.thread_id is not None:
            for name, values in self.answered.items():
                values[getattr(record, name) or ("unknown" if record.model is None else "default")] += 1
            self.rerouted += record.rerouted_from is not None
        if record.limit:
            self.limits[record.limit] += 1
        if record.error and status not in ("completed", "limit"):
            self.errors[str(record.error.get("kind") or "other")] += 1
        self.retries += max(0, record.attempts - 1)
        self.tool_calls += record.tool_calls or 0
        for name in USAGE:
            self.usage[name] += int((record.usage or {}).get(name) or 0)
        if record.duration_ms is not None:
            self.durations_ms.append(record.duration_ms)
        if tokens is not None:
            self.tokens.append(tokens)
        ended_at = record.ended_at or (attempts[-1].ended_at if attempts else None)
        if ended_at is not None:
            self.ends.append((ended_at, status == "completed"))

    def scores(self) -> metrics.Summary:
        """Compute the metrics of every scorer, in all and by the tags most used. Takes a second for 5,000 samples."""
        shown = {tag for tag, _ in self.tags.most_common(TAGS_SHOWN)}
        rows = (
            metrics.ScoreValue(
                row.sample, row.scorer, row.value, row.passed, tuple(shown.intersection(row.tags)), row.failed
            )
            for row in self._scores
        )
        return metrics.summarise(rows, k=sorted({1, self.epochs}))

    def who_answered(self) -> list[tuple[str, str]]:
        """Model, effort, provider and version of codex of the records, each with how many have it if they differ."""
        facts = [
            (name.replace("_", " "), counted(dict(values.most_common()))) for name, values in self.answered.items()
        ]
        if self.rerouted:
            facts.append(("rerouted", plural(self.rerouted, "sample")))
        return [(name, said) for name, said in facts if said is not None]

    def ordered_statuses(self) -> list[tuple[str, int]]:
        """Statuses that occur, the known ones first."""
        unknown = sorted(status for status in self.statuses if status not in STATUSES)
        return [(status, self.statuses[status]) for status in (*STATUSES, *unknown) if self.statuses[status]]

    def span_s(self) -> float | None:
        """Return the seconds from the first attempt's start to the last end; None without attempts."""
        starts = [span.start_s for span in self.spans]
        ends = [span.end_s for span in self.spans] + [at for at, _ in self.ends]
        return max(ends) - min(starts) if starts and ends else None


class PairFigures:
    """The changes from one run to another. Add every pair once."""

    def __init__(self) -> None:
        self.only_a = self.only_b = self.both = self.asked_differently = 0
        self._tags: Counter[str] = Counter()
        self._scores: dict[tuple[str, str | None], Pairs] = defaultdict(dict)
        self._measures: dict[str, Pairs] = defaultdict(dict)

    def add(self, a: SampleRow | None, b: SampleRow | None) -> None:
        if a is None or b is None:
            self.only_b += a is None
            self.only_a += b is None
            return
        self.both += 1
        self.asked_differently += a.digest != b.digest
        self._tags.update(set(b.tags))
        before = {score.scorer: score.value for score in a.scores if score.error is None}
        for score in b.scores:
            value = before.get(score.scorer)
            if score.error is None and score.value is not None and value is not None:
                for tag in {None, *b.tags}:
                    _pair(self._scores[(score.scorer, tag)], a.id, value, score.value)
        if a.record is None or b.record is None or not a.record.status == b.record.status == "completed":
            return
        for name, first, second in (
            ("tokens", tokens_of(a), tokens_of(b)),
            ("duration_ms", a.record.duration_ms, b.record.duration_ms),
            ("cost", a.record.cost, b.record.cost),
        ):
            if first is not None and second is not None:
                _pair(self._measures[name], a.id, first, second)

    def scorers(self) -> list[str]:
        """Return the scorers that scored at least one sample in both runs."""
        return list(dict.fromkeys(scorer for scorer, tag in self._scores if tag is None))

    def tags(self) -> Sequence[str]:
        """Return the tags most used, sorted by name."""
        return sorted(tag for tag, _ in self._tags.most_common(TAGS_SHOWN))

    def score(self, scorer: str, tag: str | None = None) -> Difference | None:
        """Compare the samples that both runs scored; the epochs of one sample count as one, by their mean."""
        return _compare(self._scores.get((scorer, tag), {}))

    def measure(self, name: str) -> Difference | None:
        """The same of `tokens`, `duration_ms` or `cost`, of the samples that both runs completed."""
        return _compare(self._measures.get(name, {}))


def _pair(pairs: Pairs, key: str, a: float, b: float) -> None:
    first, second = pairs.setdefault(key, ([], []))
    first.append(a)
    second.append(b)


def _compare(pairs: Pairs) -> Difference | None:
    return of_epochs(list(pairs.values()))
