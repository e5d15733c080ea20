"""Events of a run, as statements within a transaction of the writer's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from .layout import RunDirectoryError, shown_name
from .outdated import DatasetChanges, dependency_digests, outdated
from .rows import VALID, Entry, RecordRow, SampleRow, ScoreRow, from_json, plain_json, text, to_json

# Statuses that a run leaves as they are; all others are run again.
SETTLED = VALID
_SHOWN = 5
_COMING = "coming c ON c.id = s.id AND c.epoch = s.epoch AND c.variant = s.variant"
_SETTLED = ", ".join(f"'{status}'" for status in SETTLED)


class Start(msgspec.Struct, frozen=True):
    """An attempt that was started."""

    n: int
    attempt: int


def last_offset(db: sqlite3.Connection, table: str = "attempts") -> tuple[int, int]:
    """Return the end of the last member that rows of `table` name: segment and offset."""
    found = db.execute(
        f"SELECT segment, max(offset + length) FROM {table} WHERE segment = (SELECT max(segment) FROM {table})"
    ).fetchone()
    return (1, 0) if found is None or found[0] is None else (found[0], found[1])


def launch(db: sqlite3.Connection, pid: int, now: float, config: str | None) -> int:
    db.execute("UPDATE launches SET state = 'died' WHERE state = 'running'")
    number = db.execute(
        "INSERT INTO launches (pid, started_at, state, config) VALUES (?, ?, 'running', ?)", (pid, now, config)
    ).lastrowid
    assert number is not None
    return number


def launched(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM launches LIMIT 1").fetchone() is not None


def end_launch(db: sqlite3.Connection, number: int, state: str, now: float, outcome: str | None) -> None:
    db.execute(
        "UPDATE launches SET state = ?, ended_at = ?, outcome = ? WHERE number = ?", (state, now, outcome, number)
    )


def note(db: sqlite3.Connection, key: str, value: str | None) -> None:
    db.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (key, value))


def judged(db: sqlite3.Connection, tokens: int, cost: float | None) -> None:
    """Add to what judges were paid, beside the attempts; `unknown` counts the questions whose cost is not known."""
    db.execute(
        "INSERT INTO run VALUES ('judged', json_object('tokens', :tokens, 'cost', :cost, 'unknown', :unknown)) "
        "ON CONFLICT (key) DO UPDATE SET value = json_object("
        "'tokens', json_extract(value, '$.tokens') + :tokens, 'cost', json_extract(value, '$.cost') + :cost, "
        "'unknown', coalesce(json_extract(value, '$.unknown'), 0) + :unknown)",
        {"tokens": tokens, "cost": cost or 0.0, "unknown": int(cost is None)},
    )


def load(
    db: sqlite3.Connection,
    entries: Iterable[Entry],
    path: Path,
    dataset: str,
    *,
    rerun_changed: bool,
    whole: Iterable[tuple[str, str]] | None,
) -> DatasetChanges:
    """See RunDirectory.load."""
    db.execute(
        "CREATE TEMP TABLE coming "
        "(position INTEGER PRIMARY KEY, id TEXT, epoch INTEGER, variant TEXT, digest TEXT, spec TEXT, tags TEXT, "
        "scorers TEXT, UNIQUE (id, epoch, variant))"
    )
    db.executemany(
        "INSERT INTO coming VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                position if e.position is None else e.position,
                text(e.id),
                e.epoch,
                text(e.variant),
                e.digest,
                plain_json(e.spec),
                plain_json(e.tags),
                plain_json(e.scorers or None),
            )
            for position, e in enumerate(entries)
        ),
    )
    # A variant that is not asked for now keeps its results, of the same samples: they all are in each variant.
    in_dataset = "coming c ON c.id = s.id AND c.epoch = s.epoch AND c.variant = (SELECT variant FROM coming LIMIT 1)"
    _refuse_other_kind(db, path)
    if whole is not None:
        # Results of samples that are not asked for now stand beside those of these, and are of the same dataset.
        db.execute("CREATE TEMP TABLE whole (id TEXT PRIMARY KEY, digest TEXT)")
        db.executemany("INSERT INTO whole VALUES (?, ?)", ((text(name), digest) for name, digest in whole))
        in_dataset = "whole c ON c.id = s.id"
    _refuse(
        db,
        f"SELECT s.id, s.epoch, s.variant FROM samples s JOIN records USING (n) LEFT JOIN {in_dataset} "
        "WHERE c.id IS NULL ORDER BY s.n",
        f"{path} holds results of other samples, not in {dataset}: {{}}; "
        "use another directory, or --fresh to remove what is there",
    )
    changed = (
        "FROM samples s JOIN {} JOIN records r ON r.n = s.n "
        f"WHERE c.digest <> s.digest AND s.state IN ('done', 'scoring') AND r.status IN ({_SETTLED})"
    )
    if not rerun_changed:
        _refuse(
            db,
            f"SELECT s.id, s.epoch, s.variant {changed.format(in_dataset)} ORDER BY s.n",
            f"{path} holds results of samples that had another prompt or other settings than in {dataset} now: {{}}; "
            "use another directory, or --changed rerun to run them again, or --fresh to remove what is there",
        )
    # What has been asked of a model in other words is no answer to these.
    db.execute(
        "UPDATE attempts SET status = 'lost', note = 'the sample was changed before it ended' WHERE status IS NULL "
        f"AND digest <> (SELECT c.digest FROM samples s JOIN {_COMING} WHERE s.n = attempts.n)"
    )
    changes = DatasetChanges()
    if rerun_changed:
        changes.rerun = db.execute(
            f"UPDATE samples SET state = 'pending' WHERE n IN (SELECT s.n {changed.format(_COMING)})"
        ).rowcount
    _outdate_scores(db, changes)
    if db.execute("SELECT 1 FROM samples LIMIT 1").fetchone() is not None:
        ((changes.added,),) = db.execute(
            "SELECT count(*) FROM (SELECT id, epoch, variant FROM coming EXCEPT SELECT id, epoch, variant FROM samples)"
        )
    db.execute("UPDATE samples SET selected = 0 WHERE selected")
    db.execute(
        "INSERT INTO samples (id, epoch, variant, digest, spec, tags, position, selected, state) "
        "SELECT id, epoch, variant, digest, spec, tags, position, 1, 'pending' FROM coming WHERE true "
        "ORDER BY position ON CONFLICT (id, epoch, variant) DO UPDATE SET digest = excluded.digest, "
        "spec = excluded.spec, tags = excluded.tags, position = excluded.position, selected = 1"
    )
    db.execute("DROP TABLE coming")
    db.execute("DROP TABLE IF EXISTS temp.whole")
    _go_on(db, "state <> 'pending'")
    return changes


def _outdate_scores(db: sqlite3.Connection, changes: DatasetChanges) -> None:
    """Remove scores of what is coming that do not hold any more, and let be scored what lacks one."""
    found = db.execute(
        "SELECT s.n, s.spec, c.spec, c.scorers, x.scorer, x.basis FROM samples s "
        f"JOIN {_COMING} JOIN records r ON r.n = s.n "
        "LEFT JOIN scores x ON x.n = s.n "
        f"WHERE s.state = 'done' AND r.status IN ({_SETTLED}) AND (c.scorers IS NOT NULL OR x.scorer IS NOT NULL) "
        "ORDER BY s.n"
    )
    removed: list[tuple[int, str]] = []
    to_score: list[tuple[int]] = []
    for (n, spec, coming_spec, coming_scorers), rows in groupby(found, key=itemgetter(0, 1, 2, 3)):
        scorers, before, now = from_json(coming_scorers) or {}, from_json(spec), from_json(coming_spec)
        missing, reasons = dict(scorers), set()
        for *_, name, basis in rows:
            if name is None:
                continue
            reason = outdated(from_json(basis), scorers.get(name), before, now)
            if reason is None:
                missing.pop(name, None)
                continue
            removed.append((n, name))
            if name in scorers:
                del missing[name]
                reasons.add(reason)
            else:
                changes.dropped[name] += 1
        if missing or reasons:
            reasons |= {f"not scored by {name} yet" for name in missing}
            changes.rescored += 1
            changes.reasons.update(reasons)
            to_score.append((n,))
    db.executemany("DELETE FROM scores WHERE n = ? AND scorer = ?", removed)
    db.executemany("UPDATE samples SET state = 'scoring' WHERE n = ?", to_score)


def reload(db: sqlite3.Connection) -> None:
    """See RunDirectory.reload."""
    db.execute("UPDATE samples SET selected = 1 WHERE NOT selected AND n IN (SELECT n FROM attempts)")
    _go_on(db, "state = 'scoring'")


def _go_on(db: sqlite3.Connection, ended: str) -> None:
    """Reset samples under way to be run again or resumed; those answered and not scored are only scored.

    `ended` selects the samples of which those whose answer does not count are to be run again.
    """
    db.execute(
        f"UPDATE samples SET state = 'pending' WHERE selected AND (state = 'running' OR {ended} AND "
        f"n IN (SELECT n FROM records WHERE status NOT IN ({_SETTLED})))"
    )


def retry(db: sqlite3.Connection, numbers: Iterable[int]) -> int:
    return sum(
        db.execute("UPDATE samples SET state = 'pending' WHERE n = ? AND state <> 'pending'", (n,)).rowcount
        for n in numbers
    )


def start_attempt(
    db: sqlite3.Connection, n: int, key: str, thread_id: str | None, now: float, host: str | None = None
) -> Start:
    attempt = db.execute("SELECT coalesce(max(attempt), 0) + 1 FROM attempts WHERE n = ?", (n,)).fetchone()[0]
    db.execute(
        "INSERT INTO attempts (n, attempt, key, digest, fingerprint, launch, thread_id, started_at, host) "
        "VALUES (?, ?, ?, (SELECT digest FROM samples WHERE n = ?), (SELECT fingerprint FROM samples WHERE n = ?), "
        "(SELECT max(number) FROM launches), ?, ?, ?)",
        (n, attempt, key, n, n, thread_id, now, host),
    )
    db.execute("UPDATE samples SET state = 'running' WHERE n = ? AND state <> 'running'", (n,))
    return Start(n, attempt)


def add_leased(db: sqlite3.Connection, row: SampleRow, spec: str, now: float) -> None:
    """See RunDirectory.add_leased."""
    db.execute(
        "INSERT INTO samples (n, id, epoch, variant, digest, spec, tags, position, selected, state, fingerprint) "
        "VALUES (?, ?, ?, ?, ?, ?, '[]', ?, 1, ?, NULL)",
        (row.n, row.id, row.epoch, row.variant, row.digest, spec, row.n, row.state),
    )
    if row.record is not None:
        record(db, row.n, row.record, row.state)
        replace_scores(db, row.n, row.scores, now)


def forget(db: sqlite3.Connection, n: int) -> None:
    """See RunDirectory.forget."""
    for table in ("scores", "records", "attempts", "samples"):
        db.execute(f"DELETE FROM {table} WHERE n = ?", (n,))


def end_attempt(
    db: sqlite3.Connection,
    start: Start,
    end: Mapping[str, Any],
    note: str | None,
    now: float,
    place: tuple[int, int, int] | None,
) -> None:
    safe = end.get("safe_to_retry")
    db.execute(
        "UPDATE attempts SET status = ?, error = ?, usage = ?, cost = ?, worker = ?, turn_id = ?, "
        "thread_id = coalesce(?, thread_id), queued_ms = ?, duration_ms = ?, ended_at = ?, safe_to_retry = ?, "
        "note = ?, segment = ?, offset = ?, length = ? WHERE n = ? AND attempt = ?",
        (
            end["status"],
            plain_json(end.get("error")),
            plain_json(end.get("usage")),
            end.get("cost"),
            end.get("worker"),
            end.get("turn_id"),
            end.get("thread_id"),
            end.get("queued_ms"),
            end.get("duration_ms"),
            now,
            None if safe is None else int(safe),
            text(note),
            *(place or (None, None, None)),
            start.n,
            start.attempt,
        ),
    )


def record(db: sqlite3.Connection, n: int, row: RecordRow, state: str) -> None:
    db.execute(
        'INSERT OR REPLACE INTO records (n, status, "limit", final_response, error, usage, cost, thread_id, turn_id, '
        "worker, attempts, turns, tool_calls, queued_ms, duration_ms, started_at, ended_at, responses, artifacts, "
        "agents_md, model, effort, provider, codex_version, rerouted_from, container) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            n,
            row.status,
            row.limit,
            text(row.final_response),
            plain_json(row.error),
            plain_json(row.usage),
            row.cost,
            row.thread_id,
            row.turn_id,
            row.worker,
            row.attempts,
            row.turns,
            row.tool_calls,
            row.queued_ms,
            row.duration_ms,
            row.started_at,
            row.ended_at,
            plain_json(row.responses) if len(row.responses) > 1 else None,
            plain_json(row.artifacts),
            row.agents_md,
            text(row.model),
            text(row.effort),
            text(row.provider),
            text(row.codex_version),
            text(row.rerouted_from),
            plain_json(row.container),
        ),
    )
    # An answer is of the configuration that its attempt was started with.
    db.execute(
        "UPDATE records SET (fingerprint, launch) = "
        "(SELECT fingerprint, launch FROM attempts WHERE n = ? AND attempt = ?) WHERE n = ?",
        (n, row.attempts, n),
    )
    # Scores are of an answer, and this is another one.
    db.execute("DELETE FROM scores WHERE n = ?", (n,))
    db.execute("UPDATE samples SET state = ? WHERE n = ?", (state, n))


def replace_scores(
    db: sqlite3.Connection, n: int, scores: Sequence[Any], now: float, dependencies: Mapping[str, Any] | None = None
) -> None:
    """The scores of a sample, in place of those it had. `dependencies`: what scores of now are made of, by scorer."""
    made_of: dict[str, Any] = {}
    if dependencies:
        ((spec,),) = db.execute("SELECT spec FROM samples WHERE n = ?", (n,))
        sample = from_json(spec)
        made_of = {name: dependency_digests(basis, sample) for name, basis in dependencies.items()}
    db.execute("DELETE FROM scores WHERE n = ?", (n,))
    for place, score in enumerate(scores):
        passed = score.passed
        db.execute(
            "INSERT INTO scores (n, scorer, place, value, passed, answer, explanation, metadata, error, duration_ms, "
            "scored_at, basis) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                n,
                score.scorer,
                place,
                None if score.error is not None else score.value,
                None if passed is None else int(passed),
                text(score.answer),
                text(score.explanation),
                to_json(score.metadata),
                text(score.error),
                score.duration_ms,
                now,
                # Those of earlier are with what they were made of.
                plain_json(score.basis if isinstance(score, ScoreRow) else made_of.get(score.scorer)),
            ),
        )


def _refuse(db: sqlite3.Connection, query: str, message: str) -> None:
    found = [shown_name(*key) for key in db.execute(query)]
    if found:
        names = ", ".join(map(repr, found[:_SHOWN]))
        more = len(found) - _SHOWN
        raise RunDirectoryError(message.format(names + (f" and {more} more" if more > 0 else "")))


def _refuse_other_kind(db: sqlite3.Connection, path: Path) -> None:
    """Raises RunDirectoryError where results without variants would stand beside those of variants."""
    found = db.execute(
        "SELECT s.variant FROM samples s JOIN records USING (n) "
        "WHERE (s.variant = '') <> ((SELECT variant FROM coming LIMIT 1) = '') ORDER BY s.n LIMIT 1"
    ).fetchone()
    if found is None:
        return
    what = (
        f"of variants, such as {found[0]!r}, and this command names none (one model or effort "
        "makes no variants): name them all, or in a file with --variants"
        if found[0]
        else "without variants, and this command names variants: leave them out"
    )
    raise RunDirectoryError(
        f"{path} holds results {what}, or use another directory, or --fresh to remove what is there"
    )
