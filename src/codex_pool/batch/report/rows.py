"""What a report is made of: rows of a run, as plain values. Times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """What one scorer said of one sample; with `error` it could not tell, and the value does not count."""

    scorer: str
    value: float | None
    passed: bool | None = None
    answer: str | None = None
    explanation: str | None = None
    metadata: Any = None
    error: str | None = None
    duration_ms: float | None = None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try at a sample. `attempt` counts from 1."""

    attempt: int
    status: str | None
    error: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None
    worker: str | None = None
    note: str | None = None
    queued_ms: float | None = None
    duration_ms: float | None = None
    started_at: float | None = None
    thread_id: str | None = None


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sample with its record, if it has one (else its status is `not run`), and its scores."""

    n: int
    id: str
    epoch: int = 1
    status: str = NOT_RUN
    limit: str | None = None
    digest: str | None = None
    prompts: tuple[str, ...] = ()
    target: Any = None
    tags: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: Any = None
    final_response: str | None = None
    error: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None
    cost: float | None = None
    thread_id: str | None = None
    turn_id: str | None = None
    worker: str | None = None
    attempts: int = 0
    turns: int | None = None
    tool_calls: int | None = None
    queued_ms: float | None = None
    duration_ms: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    artifacts: tuple[str, ...] = ()
    scores: tuple[ScoreRow, ...] = ()

    @property
    def tokens(self) -> int | None:
        """Input and output together."""
        total = (self.usage or {}).get("total_tokens")
        return None if total is None else int(total)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of a run as a whole: shown as it is, in this order."""

    name: str
    facts: Sequence[tuple[str, str]] = ()


class Source(Protocol):
    """A run to report on. All of it is read piece by piece; nothing is kept."""

    def facts(self) -> RunFacts: ...

    def samples(self) -> Iterator[SampleRow]:
        """In the order of the dataset."""
        ...

    def sample(self, sample_id: str, epoch: int) -> SampleRow | None: ...

    def attempts(self, n: int) -> Iterator[AttemptRow]: ...

    def events(self, n: int, attempt: int) -> Iterator[Mapping[str, Any]]:
        """The notifications of an attempt: `method` and `params`."""
        ...

    def diff(self, n: int) -> bytes | None: ...
