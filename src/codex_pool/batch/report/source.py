"""What a report is made of: a run as its store reads it, and what is said of it at the top of a page."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from codex_app_server._files import resolved

from ..store.rows import AttemptRow, SampleRow
from . import units

NOT_RUN = "not run"
DIFF = "diff.patch"

# Of a run's configuration: what is shown at once, as far as it is there.
_FACTS = ("dataset", "commit", "epochs", "workers", "turns_per_worker", "retries", "endpoint")


class Source(Protocol):
    """A run to report on, read piece by piece: `store.RunStore`."""

    def info(self) -> Mapping[str, Any]: ...

    def samples(self) -> Iterator[SampleRow]: ...

    def sample(self, sample_id: str, epoch: int = 1) -> SampleRow: ...

    def attempts(self, n: int) -> Sequence[AttemptRow]: ...

    def events(self, n: int, attempt: int) -> Iterator[Mapping[str, Any]]: ...

    def artifact(self, n: int, name: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of a run as a whole. `problem` says why its figures are not final."""

    name: str
    facts: Sequence[tuple[str, str]]
    problem: str | None
    configuration: str | None
    """All of it, as JSON."""
    currency: str | None


def rows_of(source: Source) -> Iterator[SampleRow]:
    """The samples of a run: those chosen for it, and those that an earlier run of it has recorded."""
    return (row for row in source.samples() if row.selected or row.record is not None)


def row_of(source: Source, sample_id: str, epoch: int) -> SampleRow | None:
    """One of `rows_of`, if there is one of that name."""
    try:
        row = source.sample(sample_id, epoch)
    except KeyError:
        return None
    return row if row.selected or row.record is not None else None


def status_of(row: SampleRow) -> str:
    """How a sample ended, or that it has not."""
    if row.record is not None:
        return row.record.status
    return "running" if row.state == "running" else NOT_RUN


def tokens_of(row: SampleRow) -> int | None:
    """Input and output together."""
    usage = row.record.usage if row.record is not None else None
    return None if not usage or usage.get("total_tokens") is None else int(usage["total_tokens"])


def diff_of(source: Source, row: SampleRow) -> bytes | None:
    if row.record is None or DIFF not in row.record.artifacts:
        return None
    try:
        return source.artifact(row.n, DIFF)
    except KeyError:
        return None


def events_of(source: Source, n: int, attempt: int) -> Iterator[Mapping[str, Any]]:
    """The notifications of an attempt. What cannot be read is said, and is not the end of the report."""
    try:
        yield from source.events(n, attempt)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        said = f"What was kept of this attempt cannot be read from here on: {error}"
        yield {"method": "error", "params": {"error": {"message": said}}}


def facts_of(info: Mapping[str, Any]) -> RunFacts:
    """What a run's store says of it, for people."""
    config = info.get("config") or {}
    known = {**(config.get("arguments") or {}), **config}
    dataset = known.get("dataset")
    if isinstance(dataset, Mapping):
        known["dataset"], known["commit"] = dataset.get("name"), _commit(dataset.get("git"))
    launches = len(info.get("launches") or ())
    facts = [
        ("started", units.moment(info.get("created_at"))),
        *((name.replace("_", " "), _plain(known[name])) for name in _FACTS if known.get(name) not in (None, "", [])),
        *((str(name), _plain(version)) for name, version in (config.get("versions") or {}).items()),
    ]
    if launches > 1:
        facts.insert(1, ("taken up", f"{launches - 1:,} times" if launches > 2 else "once"))
    problem = {
        "running": "This run was still under way when the report was made.",
        "died": "This run died and has not been taken up again.",
        "interrupted": "This run was interrupted.",
    }.get(str(info.get("state")))
    return RunFacts(
        resolved(str(info["path"])).name,
        facts,
        problem,
        json.dumps(config, indent=2, ensure_ascii=False) if config else None,
        config.get("currency"),
    )


def _commit(git: Any) -> str | None:
    if not isinstance(git, Mapping) or not git.get("commit"):
        return None
    return str(git["commit"])[:12] + (", with changes" if git.get("changed") else "")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
