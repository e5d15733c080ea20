"""What is said of runs as a whole: figures gathered sample by sample. Pure; only numbers are kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from .estimates import Difference, Estimate, difference, estimate
from .plots import Span
from .rows import NOT_RUN, AttemptRow, SampleRow

STATUSES = ("completed", "limit", "failed", "stalled", "lost", "interrupted", "running", NOT_RUN)
USAGE = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens", "total_tokens")

Clusters = dict[str, list[float]]
"""Values by the id of their sample: one for each epoch."""


@dataclass(frozen=True, slots=True)
class ScoreFigures:
    """One scorer over a run, or over the samples of one tag."""

    scorer: str
    estimate: Estimate | None
    passed: int
    judged: int
    errors: int
    best_of_epochs: Estimate | None


class RunFigures:
    """The figures of one run. Add every sample once."""

    def __init__(self) -> None:
        self.samples = self.retries = self.tool_calls = 0
        self.epochs = 1
        self.statuses: Counter[str] = Counter()
        self.limits: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        self.cost: float | None = None
        self.durations_ms: list[float] = []
        self.tokens: list[int] = []
        self.ends: list[tuple[float, bool]] = []
        self.spans: list[Span] = []
        self._values: dict[tuple[str, str | None], Clusters] = defaultdict(lambda: defaultdict(list))
        self._passed: dict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)

    def add(self, row: SampleRow, attempts: Iterable[AttemptRow]) -> None:
        place = self.samples
        self.samples += 1
        self.epochs = max(self.epochs, row.epoch)
        self.statuses[row.status] += 1
        self.tags.update(row.tags)
        if row.limit:
            self.limits[row.limit] += 1
        if row.error and row.status != "completed":
            self.errors[str(row.error.get("kind") or "other")] += 1
        self.retries += max(0, row.attempts - 1)
        self.tool_calls += row.tool_calls or 0
        for name in USAGE:
            self.usage[name] += int((row.usage or {}).get(name) or 0)
        if row.cost is not None:
            self.cost = (self.cost or 0.0) + row.cost
        if row.duration_ms is not None:
            self.durations_ms.append(row.duration_ms)
        if row.tokens is not None:
            self.tokens.append(row.tokens)
        if row.ended_at is not None:
            self.ends.append((row.ended_at, row.status == "completed"))
        for attempt in attempts:
            if attempt.worker is None or attempt.started_at is None or attempt.duration_ms is None:
                continue
            end = attempt.started_at + attempt.duration_ms / 1000
            label = row.id if attempt.attempt == 1 else f"{row.id}, attempt {attempt.attempt}"
            self.spans.append(Span(attempt.worker, attempt.started_at, end, attempt.status or "running", place, label))
        for score in row.scores:
            for tag in (None, *row.tags):
                key = (score.scorer, tag)
                counts = self._passed[key]
                if score.error is not None or score.value is None:
                    counts["errors"] += 1
                    continue
                self._values[key][row.id].append(score.value)
                if score.passed is not None:
                    counts["judged"] += 1
                    counts["passed"] += score.passed

    def scores(self, scorer: str, tag: str | None = None) -> ScoreFigures:
        clusters = self._values.get((scorer, tag), {})
        counts = self._passed[(scorer, tag)]
        best = None
        if self.epochs > 1 and counts["judged"]:
            best = estimate([[max(values)] for values in clusters.values()])
        return ScoreFigures(
            scorer, estimate(list(clusters.values())), counts["passed"], counts["judged"], counts["errors"], best
        )

    def ordered_statuses(self) -> list[tuple[str, int]]:
        """Statuses that occur, the known ones first."""
        unknown = sorted(status for status in self.statuses if status not in STATUSES)
        return [(status, self.statuses[status]) for status in (*STATUSES, *unknown) if self.statuses[status]]

    def span_s(self) -> float | None:
        """From the first attempt's start to the last end."""
        starts = [span.start_s for span in self.spans]
        ends = [span.end_s for span in self.spans] + [at for at, _ in self.ends]
        return max(ends) - min(starts) if starts and ends else None


class PairFigures:
    """The changes from one run to another. Add every pair once."""

    def __init__(self) -> None:
        self.only_a = self.only_b = self.both = self.asked_differently = 0
        self._scores: dict[tuple[str, str | None], dict[str, tuple[list[float], list[float]]]] = defaultdict(dict)
        self._measures: dict[str, dict[str, tuple[list[float], list[float]]]] = defaultdict(dict)

    def add(self, a: SampleRow | None, b: SampleRow | None) -> None:
        if a is None or b is None:
            self.only_b += a is None
            self.only_a += b is None
            return
        self.both += 1
        self.asked_differently += bool(a.digest and b.digest and a.digest != b.digest)
        before = {score.scorer: score.value for score in a.scores if score.error is None}
        for score in b.scores:
            value = before.get(score.scorer)
            if score.error is None and score.value is not None and value is not None:
                for tag in (None, *b.tags):
                    _pair(self._scores[(score.scorer, tag)], a.id, value, score.value)
        if a.status == b.status == "completed":
            for name in ("tokens", "duration_ms", "cost"):
                first, second = getattr(a, name), getattr(b, name)
                if first is not None and second is not None:
                    _pair(self._measures[name], a.id, first, second)

    def scorers(self) -> list[str]:
        """Those that scored at least one sample in both runs."""
        return [scorer for scorer, tag in self._scores if tag is None]

    def tags(self) -> list[str]:
        return sorted({tag for _, tag in self._scores if tag is not None})

    def score(self, scorer: str, tag: str | None = None) -> tuple[Estimate, Estimate, Difference] | None:
        """Both means and the difference, of the samples that both runs scored."""
        return _compare(self._scores.get((scorer, tag), {}))

    def measure(self, name: str) -> tuple[Estimate, Estimate, Difference] | None:
        """The same of `tokens`, `duration_ms` or `cost`, of the samples that both runs completed."""
        return _compare(self._measures.get(name, {}))


def _pair(clusters: dict[str, tuple[list[float], list[float]]], key: str, a: float, b: float) -> None:
    first, second = clusters.setdefault(key, ([], []))
    first.append(a)
    second.append(b)


def _compare(clusters: dict[str, tuple[list[float], list[float]]]) -> tuple[Estimate, Estimate, Difference] | None:
    a = estimate([first for first, _ in clusters.values()])
    b = estimate([second for _, second in clusters.values()])
    change = difference([(sum(x) / len(x), sum(y) / len(y)) for x, y in clusters.values()])
    return None if a is None or b is None or change is None else (a, b, change)
