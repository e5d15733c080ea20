"""Run directories for tests, as a batch leaves them, without a batch."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codex_batch.dataset import Sample
from codex_batch.scoring import Score
from codex_batch.store import Entry, EventLog, RecordRow, RunDirectory
from codex_batch.store.schema import MIGRATIONS


def make_run(
    path: Path,
    samples: Sequence[tuple[Sample, str | None]],
    *,
    scorers: Sequence[Any] = (),
    scores: Mapping[str, Sequence[Score]] | None = None,
    events: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    **of_record: Any,
) -> Path:
    """A run over `samples`, each with its final response, or failed with None. `scores` and `events` by sample id."""
    directory = RunDirectory(path)
    directory.launch(
        {
            "scorers": list(scorers),
            "dataset": {"name": "d.jsonl", "git": {"commit": "4f2a91c", "branch": "main", "changed": True}},
            "versions": {"codex_pool": "0.1.0"},
        }
    )
    directory.load(
        [Entry(s.id, s.epoch, s.digest, s.to_json(), s.tags, variant=s.variant) for s, _ in samples], "d.jsonl"
    )
    for sample, response in samples:
        n = directory.store.sample(*sample.key).n
        start = directory.start_attempt(n, "key", "thread").result(5)
        failed = {"status": "failed", "error": {"kind": "other", "message": "no"}}
        ends: dict[str, Any] = {"status": "completed"} if response is not None else failed
        record = RecordRow(
            **{**ends, "attempts": 1, "final_response": response, "artifacts": ("diff.patch",), **of_record}
        )
        log = EventLog()
        for notification in (events or {}).get(sample.id, ()):
            log.add(json.dumps(notification).encode())
        directory.finish(start, record, ends, events=log.member()).result(5)
        if scores is not None and sample.id in scores:
            directory.replace_scores(n, scores[sample.id])
    directory.outcome("finished", {})
    directory.close()
    return path


def make_older(path: Path, version: int) -> None:
    """Make the database of a run one of an earlier version of the schema, with what that had place for."""
    database = path / "run.sqlite"
    before = database.with_name("older.sqlite")
    with contextlib.closing(sqlite3.connect(before, isolation_level=None)) as db:
        for statements in MIGRATIONS[:version]:
            db.executescript(statements)
        db.execute("ATTACH DATABASE ? AS new", (str(database),))
        for (table,) in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
            columns = ", ".join(f'"{row[1]}"' for row in db.execute(f"PRAGMA main.table_info({table})"))
            db.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
        db.execute("DETACH DATABASE new")
        db.execute(f"PRAGMA user_version = {version}")
    for rest in path.glob("run.sqlite-*"):
        rest.unlink()
    before.replace(database)
