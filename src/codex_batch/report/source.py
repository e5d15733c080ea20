"""Source of a report: a run as its store reads it, and the facts at the top of a page."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from codex_app_server._runtime.files import resolved

from ..store import layout
from ..store.rows import AttemptRow, SampleRow
from . import units

NOT_RUN = "not run"

# Of a run's configuration: what is shown at once, as far as it is there.
_FACTS = ("dataset", "shard", "merged", "commit", "epochs", "workers", "turns_per_worker", "retries", "endpoint")


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
    """Facts about a run as a whole. `problem` is the reason why its figures are not final."""

    name: str
    facts: Sequence[tuple[str, str]]
    problem: str | None
    configuration: str | None
    """The whole configuration, as JSON."""
    currency: str | None


def rows_of(source: Source) -> Iterator[SampleRow]:
    """The samples of a run: those chosen for it, and those that an earlier run of it has recorded."""
    return (row for row in source.samples() if row.selected or row.record is not None)


def row_of(source: Source, sample_id: str, epoch: int) -> SampleRow | None:
    """Return the row of `rows_of` with that name, if there is one."""
    try:
        row = source.sample(sample_id, epoch)
    except KeyError:
        return None
    return row if row.selected or row.record is not None else None


def status_of(row: SampleRow) -> str:
    """Return the status of a sample: that of its record, else whether it runs."""
    if row.record is not None:
        return row.record.status
    return "running" if row.state == "running" else NOT_RUN


def tokens_of(row: SampleRow) -> int | None:
    """Input and output together."""
    usage = row.record.usage if row.record is not None else None
    return None if not usage or usage.get("total_tokens") is None else int(usage["total_tokens"])


def diff_of(source: Source, row: SampleRow) -> bytes | None:
    if row.record is None or layout.DIFF not in row.record.artifacts:
        return None
    try:
        return source.artifact(row.n, layout.DIFF)
    except KeyError:
        return None


def events_of(source: Source, n: int, attempt: int) -> Iterator[Mapping[str, Any]]:
    """The notifications of an attempt. What cannot be read is reported, and does not end the report."""
    try:
        yield from source.events(n, attempt)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        said = f"What was kept of this attempt cannot be read from here on: {error}"
        yield {"method": "error", "params": {"error": {"message": said}}}


def facts_of(info: Mapping[str, Any]) -> RunFacts:
    """Return the facts in a run's store, as text for people."""
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
    facts += [(f"host {host}", words) for host, words in info.get("hosts") or ()]
    gates = (info.get("outcome") or {}).get("gates") or ()
    for gate in gates:
        facts.append(("gate", f"{'passed' if gate['passed'] else 'failed'}: {gate['gate']}: {gate['reason']}"))
    if launches > 1:
        facts.insert(1, ("resumed", f"{launches - 1:,} times" if launches > 2 else "once"))
    problem = {
        "running": "This run was still under way when the report was made.",
        "died": "This run died and has not been resumed.",
        "interrupted": "This run was interrupted.",
    }.get(str(info.get("state")))
    name = resolved(str(info["path"])).name
    return RunFacts(
        f"{name}@{info['variant']}" if info.get("variant") else name,
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
