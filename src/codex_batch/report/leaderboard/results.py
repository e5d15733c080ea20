"""Results of a run, or of one variant of it: outcomes by scorer and sample, and what they took. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ...store.rows import AttemptRow, SampleRow
from ..source import status_of

Key = tuple[str, int]
"""Id and epoch of a sample."""
OF_RUN = ""
"""Scorers of a sample that names none of its own: those of the run."""


class RunResult:
    """The results of a run, or of one `variant` of it (`""`: the run has none). Add every sample and attempt once.

    `info` is that of the run's store. `effective` is the configuration of the variant, as `Effective.to_json` gives it.
    """

    def __init__(
        self,
        name: str,
        info: Mapping[str, Any],
        *,
        variant: str = "",
        effective: Mapping[str, Any] | None = None,
        variant_settings: Mapping[str, Any] = MappingProxyType({}),
        shares_judges: bool = False,
    ) -> None:
        config = info.get("config") or {}
        dataset = config.get("dataset")
        self.name, self.variant = name, variant
        self.path = str(info.get("path", ""))
        self.state = str(info.get("state", ""))
        self.created_at: float | None = info.get("created_at")
        self.currency: str | None = config.get("currency")
        self.dataset = dataset if isinstance(dataset, Mapping) else {"name": dataset}
        self.effective = effective if effective is not None else config.get("effective")
        self.variant_settings = variant_settings
        """The variant as its run has stored it."""
        judged = {} if shares_judges else (info.get("judged") or {})
        self.cost = float(judged.get("cost") or 0.0)
        self.unknown_costs = int(judged.get("unknown") or 0)
        self.tokens = int(judged.get("tokens") or 0)
        self.shares_judges = shares_judges and bool(info.get("judged"))
        """True if judges were paid for all variants together, so that their cost is in none of them."""
        self.turns = self.tool_calls = 0
        self.statuses: Counter[str] = Counter()
        self.answered: dict[str, Counter[str]] = {"model": Counter(), "effort": Counter(), "codex_version": Counter()}
        self.durations_ms: list[int] = []
        self.digests: dict[Key, str] = {}
        """Every planned sample, by the digest of what it asks."""
        self.values: dict[str, dict[Key, float]] = defaultdict(dict)
        self.broken: Counter[str] = Counter()
        """Number of samples on which a scorer itself failed, by scorer."""
        self._started_s, self._ended_s = math.inf, -math.inf
        self._scorers_of: dict[Key, str] = {}
        self._names: dict[str, dict[str, None]] = defaultdict(dict)
        """Names of scorers by what samples say of their scorers."""
        for scorer in config.get("scorers") or ():
            if isinstance(scorer, Mapping) and scorer.get("name"):
                self._names[OF_RUN][str(scorer["name"])] = None

    def add_attempt(self, attempt: AttemptRow) -> None:
        """Add an attempt at one of the samples."""
        self.cost += attempt.cost or 0.0
        self.unknown_costs += attempt.has_unknown_cost
        self.tokens += int((attempt.usage or {}).get("total_tokens") or 0)
        self._started_s = min(self._started_s, attempt.started_at)
        self._ended_s = max(self._ended_s, attempt.ended_at or attempt.started_at)

    def add(self, row: SampleRow) -> None:
        key, record = (row.id, row.epoch), row.record
        self.statuses[status_of(row)] += 1
        self.digests[key] = row.digest
        own = row.spec.get("scorers")
        asked = OF_RUN if own is None else json.dumps(own, sort_keys=True)
        self._scorers_of[key] = asked
        if row.state == "done":
            for score in row.scores:
                self._names[asked][score.scorer] = None
                if score.error is not None or score.value is None or not math.isfinite(score.value):
                    self.broken[score.scorer] += 1
                else:
                    self.values[score.scorer][key] = float(score.value)
        if record is None:
            return
        self.turns += record.turns or 0
        self.tool_calls += record.tool_calls or 0
        if record.duration_ms is not None:
            self.durations_ms.append(record.duration_ms)
        if record.thread_id is not None:
            for name, counts in self.answered.items():
                counts[getattr(record, name) or ("unknown" if record.model is None else "default")] += 1

    @property
    def samples(self) -> int:
        """Number of planned samples, epochs counted each."""
        return len(self.digests)

    @property
    def epochs(self) -> int:
        return max((epoch for _, epoch in self.digests), default=1)

    @property
    def span_s(self) -> float | None:
        """Seconds from the first attempt's start to the last end; None without attempts."""
        return self._ended_s - self._started_s if self._ended_s >= self._started_s else None

    @property
    def mean_duration_ms(self) -> float | None:
        return math.fsum(self.durations_ms) / len(self.durations_ms) if self.durations_ms else None

    @property
    def known_cost(self) -> float | None:
        """Money of all attempts; None where it is not known."""
        return None if self.currency is None or self.unknown_costs else self.cost

    def scorers(self) -> list[str]:
        """Names of the scorers that have scored a sample, or were to."""
        return list(dict.fromkeys(name for names in self._names.values() for name in names))

    def planned(self, scorer: str, known: Mapping[str, Sequence[str]]) -> list[Key]:
        """Return the samples that a scorer is to score; none if the run does not have it.

        `known`: names of scorers by what samples say of their scorers, for samples none of which this run has scored.
        Where neither is known, a sample counts for every scorer of the run.
        """
        if not any(scorer in names for names in self._names.values()):
            return []
        applies = {
            asked: scorer in (self._names.get(asked) or known.get(asked) or (scorer,))
            for asked in set(self._scorers_of.values())
        }
        return [key for key, asked in self._scorers_of.items() if applies[asked]]


def names_by_scorers(results: Iterable[RunResult]) -> dict[str, list[str]]:
    """Collect the names of scorers by what samples say of their scorers, from all results."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for result in results:
        for asked, names in result._names.items():
            if asked != OF_RUN:
                found[asked].update(names)
    return {asked: list(names) for asked, names in found.items()}
