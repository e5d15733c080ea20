"""Rows of a run's database as values, and the form of text and JSON in it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from .layout import SampleKey, directory_name, shown_name

# Statuses of attempts that can be scored.
VALID = ("completed", "limit")
# Of an attempt: its sample has the result of another one.
SUPERSEDED = "superseded"
# Of a record, who answered.
ANSWERED = ("model", "effort", "provider", "codex_version")


class Entry(msgspec.Struct, frozen=True):
    """A sample as the store takes it: `spec` is all of it as JSON, `digest` of what its answer depends on.

    `scorers`: what its scores are made of now, by scorer, as `scoring.dependencies` has it.
    """

    id: str
    epoch: int
    digest: str
    spec: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    scorers: Mapping[str, Any] | None = None
    variant: str = ""
    position: int | None = None
    """Place in the order of the dataset; None for one that follows the entry before it."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One scorer's result for a sample. `error`: the scorer itself failed, and there is no value.

    `basis` is what it was made of (see `outdated`), None where that is not known.
    """

    scorer: str
    value: float | None
    passed: bool | None
    answer: str | None
    explanation: str | None
    metadata: Any
    error: str | None
    duration_ms: int | None
    scored_at: float
    basis: dict[str, str] | None = None


class RecordRow(msgspec.Struct, frozen=True):
    """Record of a finished sample. `started_at`, `ended_at` are seconds since 1970; tokens in `usage`, `cost` in money.

    `turns`, `tool_calls`, `usage`, `final_response` are those of the last attempt, `attempts` counts all.
    `responses` has one response a turn; `artifacts` are names for `RunStore.artifact`.
    """

    status: str
    attempts: int
    limit: str | None = None
    final_response: str | None = None
    error: dict[str, str] | None = None
    usage: dict[str, int] | None = None
    cost: float | None = None
    thread_id: str | None = None
    turn_id: str | None = None
    worker: str | None = None
    turns: int | None = None
    tool_calls: int | None = None
    queued_ms: int | None = None
    duration_ms: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    responses: tuple[str | None, ...] = ()
    artifacts: tuple[str, ...] = ()
    agents_md: str | None = None
    """Way in which AGENTS.md reached the agent: `developer_instructions`, `codex`, or None."""
    model: str | None = None
    """Model that answered, as codex reported it, like `effort` (None: its default), `provider` and `codex_version`."""
    effort: str | None = None
    provider: str | None = None
    codex_version: str | None = None
    rerouted_from: str | None = None
    """Model that was asked, if the service let `model` answer instead."""
    container: dict[str, Any] | None = None
    """The container that the last attempt worked in: `engine`, `image`, `digest`, `sandbox`; `memory_kills`,
    how many processes its memory limit has ended, if any."""
    fingerprint: str | None = None
    """Digest of the effective configuration; None in what an earlier codex-pool recorded. Set by the store."""
    launch: int | None = None
    """Number of the launch that started the last attempt. Set by the store."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt at a sample. `status` is None while its end has not been seen."""

    n: int
    attempt: int
    key: str
    digest: str
    thread_id: str | None
    status: str | None
    error: dict[str, str] | None
    usage: dict[str, int] | None
    cost: float | None
    worker: str | None
    turn_id: str | None
    queued_ms: int | None
    duration_ms: int | None
    started_at: float
    ended_at: float | None
    safe_to_retry: bool | None
    note: str | None
    has_events: bool
    fingerprint: str | None = None
    """Digest of the effective configuration, and number of the launch, that it was started with."""
    launch: int | None = None
    host: str | None = None
    """Host that it was leased to, in a run on several machines."""

    @property
    def has_unknown_cost(self) -> bool:
        """True for one that was paid for, as far as is known, at an unknown price."""
        return self.cost is None and (self.turn_id is not None or self.status == "lost")


UNKNOWN_COST = "cost IS NULL AND (turn_id IS NOT NULL OR status IS 'lost')"
"""The same of a row of the table."""


class Spending(NamedTuple):
    """Spending of a run: `known` money, and the number of attempts and questions of judges of `unknown` cost."""

    tokens: int
    known: float
    unknown: int

    @property
    def cost(self) -> float | None:
        """The whole cost; None where it is not known."""
        return None if self.unknown else self.known


@dataclass(frozen=True, slots=True)
class HostRow:
    """Work of one host in a run on several machines: its attempts, by their outcome."""

    host: str
    attempts: int
    completed: int
    lost: int
    superseded: int
    started_at: float
    ended_at: float | None

    @property
    def per_minute(self) -> float | None:
        """Attempts completed in a minute, between its first start and its last end; None without any."""
        span_s = (self.ended_at or 0.0) - self.started_at
        return self.completed / span_s * 60 if self.completed and span_s > 0 else None

    @property
    def in_words(self) -> str:
        """The work of the host, in words."""
        rate = "" if self.per_minute is None else f", {self.per_minute:.1f} a minute"
        counts = ((self.lost, "lost"), (self.superseded, "superseded"))
        return f"{self.completed:,} completed{rate}" + "".join(
            f", {number:,} {name}" for number, name in counts if number
        )


class SampleRow(msgspec.Struct, frozen=True):
    """A sample as it stands: `state` is pending, running, scoring or done; `record` may be of an earlier run."""

    n: int
    id: str
    epoch: int
    digest: str
    spec: dict[str, Any]
    tags: tuple[str, ...]
    state: str
    selected: bool
    position: int
    record: RecordRow | None = None
    scores: tuple[ScoreRow, ...] = ()
    attempts: int = 0
    """Number of attempts, those under way included."""
    fingerprint: str | None = None
    """Digest of the effective configuration that the sample would be run with now."""
    variant: str = ""
    """Name of its variant; empty in a run without variants."""

    @property
    def key(self) -> SampleKey:
        """The id, epoch and variant."""
        return self.id, self.epoch, self.variant

    @property
    def shown_name(self) -> str:
        """The sample as people read it."""
        return shown_name(self.id, self.epoch, self.variant)

    @property
    def directory_name(self) -> str:
        """The name of its own directories."""
        return directory_name(self.id, self.epoch, self.variant)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def to_json(value: Any) -> str | None:
    """JSON in ASCII: no text in it that a database would not take."""
    return None if value is None else json.dumps(value, separators=(",", ":"))


def plain_json(value: Any) -> str | None:
    """The same, many times as fast, for what has finite numbers only."""
    if value is None:
        return None
    try:
        return _encode(value).decode("ascii")
    except UnicodeError:
        return to_json(value)


def from_json(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return _decode(text)
    except msgspec.DecodeError:
        # What is no number in JSON is one in ours.
        return json.loads(text)


def text(value: str | None) -> str | None:
    """Return the text in a form that UTF-8 can encode; a lone surrogate becomes its escape."""
    if value is None or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def record_of(row: Mapping[str, Any]) -> RecordRow:
    return RecordRow(
        status=row["status"],
        attempts=row["attempts"],
        limit=row["limit"],
        final_response=row["final_response"],
        error=from_json(row["error"]),
        usage=from_json(row["usage"]),
        cost=row["cost"],
        thread_id=row["thread_id"],
        turn_id=row["turn_id"],
        worker=row["worker"],
        turns=row["turns"],
        tool_calls=row["tool_calls"],
        queued_ms=row["queued_ms"],
        duration_ms=row["duration_ms"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        responses=tuple(from_json(row["responses"]) or ()),
        artifacts=tuple(from_json(row["artifacts"]) or ()),
        agents_md=row["agents_md"],
        model=row["model"],
        effort=row["effort"],
        provider=row["provider"],
        codex_version=row["codex_version"],
        rerouted_from=row["rerouted_from"],
        container=from_json(row["container"]),
        fingerprint=row["fingerprint"],
        launch=row["launch"],
    )


def sample_of(row: Mapping[str, Any], scores: Sequence[ScoreRow]) -> SampleRow:
    return SampleRow(
        n=row["n"],
        id=row["id"],
        epoch=row["epoch"],
        variant=row["variant"],
        digest=row["digest"],
        spec=from_json(row["spec"]),
        tags=tuple(from_json(row["tags"])),
        state=row["state"],
        selected=bool(row["selected"]),
        position=row["position"],
        attempts=row["tries"],
        fingerprint=row["wanted"],
        record=None if row["status"] is None else record_of(row),
        scores=tuple(scores),
    )


def score_of(row: Mapping[str, Any]) -> ScoreRow:
    return ScoreRow(
        scorer=row["scorer"],
        value=row["value"],
        passed=None if row["passed"] is None else bool(row["passed"]),
        answer=row["answer"],
        explanation=row["explanation"],
        metadata=from_json(row["metadata"]),
        error=row["error"],
        duration_ms=row["duration_ms"],
        scored_at=row["scored_at"],
        basis=from_json(row["basis"]),
    )


def attempt_of(row: Mapping[str, Any]) -> AttemptRow:
    return AttemptRow(
        n=row["n"],
        attempt=row["attempt"],
        key=row["key"],
        digest=row["digest"],
        fingerprint=row["fingerprint"],
        launch=row["launch"],
        thread_id=row["thread_id"],
        status=row["status"],
        error=from_json(row["error"]),
        usage=from_json(row["usage"]),
        cost=row["cost"],
        worker=row["worker"],
        turn_id=row["turn_id"],
        queued_ms=row["queued_ms"],
        duration_ms=row["duration_ms"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        safe_to_retry=None if row["safe_to_retry"] is None else bool(row["safe_to_retry"]),
        note=row["note"],
        has_events=row["length"] is not None,
        host=row["host"],
    )


def is_valid(status: str) -> bool:
    """Return True if a sample recorded with this status counts: the validity gate has decided on the status."""
    return status in VALID


def counted(values: Mapping[str, int]) -> str | None:
    """Values with the numbers of their records, for people; one alone without."""
    if len(values) <= 1:
        return next(iter(values), None)
    return ", ".join(f"{value} ({count:,})" for value, count in values.items())
