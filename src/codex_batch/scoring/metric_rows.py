"""Metrics as rows for people and as JSON for files. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from codex_app_server._runtime.text import plural

from .metrics import Metrics, ScoreValue, Summary

TAGS_SHOWN = 20


class ScoredRow(Protocol):
    """The fields of a stored sample that metrics use."""

    @property
    def id(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def scores(self) -> Sequence[Any]: ...


def rows_of(samples: Iterable[ScoredRow]) -> Iterator[ScoreValue]:
    """The scores of samples as the store gives them."""
    for sample in samples:
        for score in sample.scores:
            value = 0.0 if score.value is None else float(score.value)
            failed = score.error is not None or score.value is None
            yield ScoreValue(sample.id, score.scorer, value, score.passed, sample.tags, failed, score.error)


def printed(summary: Summary) -> list[tuple[str, str]]:
    """(name, figures) of each scorer, and below it of its tags."""
    rows = []
    for scorer, metrics in summary.scorers.items():
        rows.append((scorer, figures(metrics)))
        by_tag = summary.tags.get(scorer, {})
        rows += [(f"  {tag}", figures(of_tag)) for tag, of_tag in list(by_tag.items())[:TAGS_SHOWN]]
        if len(by_tag) > TAGS_SHOWN:
            rows.append((f"  and {len(by_tag) - TAGS_SHOWN:,} more tags", ""))
    return rows


def figures(metrics: Metrics) -> str:
    """Format one line: the mean with its standard error and interval, pass@k, and the number of scores."""
    parts = []
    if metrics.mean is not None:
        mean = f"{metrics.mean:.3f}"
        if metrics.stderr is not None:
            mean += f" ± {metrics.stderr:.3f}"
        if metrics.low is not None and metrics.high is not None:
            mean += f" [{metrics.low:.3f}, {metrics.high:.3f}]"
        parts.append(mean)
    parts += [f"pass@{k} {value:.3f}" for k, (value, _) in metrics.pass_at.items() if k > 1]
    number = plural(metrics.samples, "sample")
    parts.append(number if metrics.scores == metrics.samples else f"{metrics.scores:,} scores of {number}")
    if metrics.not_scored:
        parts.append(f"{metrics.not_scored:,} not scored: the scorer failed")
    return ", ".join(parts)


def as_json(summary: Summary) -> dict[str, Any]:
    """{scorer: {mean, stderr, low, high, ..., tags: {tag: {...}}}}."""
    return {
        scorer: {
            **_json(metrics),
            "tags": {tag: _json(of_tag) for tag, of_tag in summary.tags.get(scorer, {}).items()},
        }
        for scorer, metrics in summary.scorers.items()
    }


def _json(metrics: Metrics) -> dict[str, Any]:
    return {
        "scores": metrics.scores,
        "samples": metrics.samples,
        "not_scored": metrics.not_scored,
        "problem": metrics.problem,
        "mean": metrics.mean,
        "stderr": metrics.stderr,
        "low": metrics.low,
        "high": metrics.high,
        "interval": metrics.interval,
        "accuracy": metrics.accuracy,
        "pass_at": {str(k): {"value": value, "samples": samples} for k, (value, samples) in metrics.pass_at.items()},
    }
