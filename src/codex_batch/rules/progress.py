"""Progress of a run, as a display shows it: counts and figures. Pure; times are monotonic seconds passed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codex_app_server._runtime.text import duration, plural
from codex_pool.prices import UNKNOWN, amount

from ..store import SampleKey, SampleRow
from .retry import Outcome

ETA_FROM = 5


@dataclass(slots=True)
class Progress:
    """Counts of one run. `total` samples, of which `skipped` were completed by an earlier run."""

    total: int
    skipped: int = 0
    started_at: float | None = None
    ended: Counter[str] = field(default_factory=Counter)
    running: int = 0
    queued: int = 0
    attempts: int = 0
    retries: int = 0
    turns: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    slots: list[dict[str, Any]] = field(default_factory=list)
    """The workers of pool/status, as last seen."""
    hosts: list[dict[str, Any]] = field(default_factory=list)
    """The hosts of a run on several machines, as last seen."""
    turns_per_worker: int = 0
    scoring: int = 0
    cost: float = 0.0
    """Money, as far as it is known."""
    unknown_costs: int = 0
    """Attempts, and questions of judges, whose cost is not known."""
    currency: str | None = None
    """None without prices: then nothing is known of money."""
    failures: Counter[str] = field(default_factory=Counter)
    """Samples that were not completed, by status or kind of error."""
    paused: str | None = None
    """Reason that nothing is started, while nothing is."""
    rate_limiter: dict[str, Any] = field(default_factory=dict)
    """The rate limiter of the pool, of pool/status."""
    under_way: dict[SampleKey, float] = field(default_factory=dict)
    """Samples whose turn runs, and since when."""

    def turn_ended(self, outcome: Outcome) -> None:
        """An attempt came to its end, whichever; its tokens are spent."""
        self.attempts += 1
        self.turns += 1
        self.tokens.update(outcome.usage or {})
        if outcome.cost is not None or outcome.is_paid:
            self.spent(outcome.cost)

    def spent(self, cost: float | None) -> None:
        """An attempt or a question cost so much; None where that is not known."""
        if cost is None:
            self.unknown_costs += 1
        else:
            self.cost += cost

    def sample_ended(self, row: SampleRow) -> None:
        """Note that a sample has its record."""
        record = row.record
        assert record is not None
        self.ended[record.status] += 1
        if record.status != "completed":
            self.failures[record.limit or (record.error or {}).get("kind", record.status)] += 1

    def counted(self, key: SampleKey) -> Counted:
        """Counts an attempt among the queued, and from `begin` on among the running, while the context lasts."""
        return Counted(self, key)

    def slowest(self, count: int) -> list[tuple[SampleKey, float]]:
        """The samples that have run for longest, and since when."""
        return sorted(self.under_way.items(), key=lambda item: item[1])[:count]

    @property
    def done(self) -> int:
        """Samples that have ended, those of earlier runs included."""
        return self.skipped + sum(self.ended.values())

    @property
    def bad(self) -> int:
        """Samples that ended neither completed nor at a limit."""
        return self.done - self.skipped - self.ended["completed"] - self.ended["limit"]

    @property
    def waiting(self) -> int:
        """Samples that no attempt is under way for."""
        return max(0, self.total - self.done - self.running - self.queued - self.scoring)

    def elapsed_s(self, now: float) -> float:
        return 0.0 if self.started_at is None else max(0.0, now - self.started_at)

    def turns_per_s(self, now: float) -> float:
        elapsed_s = self.elapsed_s(now)
        return self.turns / elapsed_s if elapsed_s > 0 else 0.0

    def eta_s(self, now: float) -> float | None:
        """Seconds until all samples have ended, at the speed so far; None while too few have."""
        here = self.done - self.skipped
        if here < min(ETA_FROM, self.total - self.skipped):
            return None
        return self.elapsed_s(now) / here * (self.total - self.done)


class Counted:
    """See Progress.counted."""

    def __init__(self, progress: Progress, key: SampleKey) -> None:
        self._progress = progress
        self._key = key
        self._running = False

    def __enter__(self) -> Counted:
        self._progress.queued += 1
        return self

    def begin(self, now: float) -> None:
        if not self._running:
            self._running = True
            self._progress.queued -= 1
            self._progress.running += 1
            self._progress.under_way[self._key] = now

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._progress.running -= 1
            self._progress.under_way.pop(self._key, None)
        else:
            self._progress.queued -= 1


def money(known: float, unknown: int, currency: str | None) -> str:
    """A cost in words: of `unknown` attempts and questions it is not known. `currency` None: there are no prices."""
    if currency is None or (unknown and not known):
        return f"cost {UNKNOWN}"
    if not unknown:
        return amount(known, currency)
    return f"cost {UNKNOWN}, at least {amount(known, currency)}"


def figures(progress: Progress, now: float, separator: str) -> str:
    """Return speed, tokens, cost and remaining time in words."""
    parts = [f"{progress.turns_per_s(now):.1f} turns/s", f"{progress.tokens['total_tokens']:,} tokens"]
    if progress.currency is not None and (progress.cost or progress.unknown_costs):
        parts.append(money(progress.cost, progress.unknown_costs, progress.currency))
    eta_s = progress.eta_s(now)
    if eta_s is not None and progress.done < progress.total:
        parts.append(f"eta {duration(eta_s)}")
    return separator.join(parts)


def kinds(progress: Progress, count: int = 6) -> list[tuple[str, int]]:
    """Return kinds of what was not completed: the most frequent first, and the rest together."""
    most = progress.failures.most_common()
    rest = sum(number for _, number in most[count:])
    return [*most[:count], *([("other kinds", rest)] if rest else [])]


def rate_limit(progress: Progress) -> str | None:
    """Return in words how a pool limits its rate; None if none does."""
    return rate_limit_of(progress.rate_limiter)


def rate_limit_of(state: Mapping[str, Any]) -> str | None:
    """Return in words what `pace` of the status of a pool says of its rate; None if there is no limit."""
    paused_ms, limit = state.get("pausedMs") or 0, state.get("limit")
    reason = f": {state['reason']}" if state.get("reason") else ""
    if paused_ms:
        return f"rate limit, paused for {duration(paused_ms / 1000)}{reason}"
    if limit is not None:
        return f"rate limit, {plural(limit, 'turn')} at once{reason}"
    return None
