"""Copies samples of sources into the tables of a merged run, within one transaction of its writer.

Columns are copied by name, so those that a later schema adds are, too. Of each table that has a column `n`, the rows of
the sample are copied; `n`, `launch` and numbers of attempts become those of the merged run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..store import layout
from ..store.directory import Append
from .choose import Choice, SampleState
from .source import MERGE_PID, LaunchId, Source, launch_id

Row = dict[str, Any]

NOT_TAKEN = "of another directory of its shard, whose result was not taken"
ENDED = "its run ended before the attempt did; its turns were not looked for"


class Copy:
    """Copies into the tables of `db`. `sources` are numbered as `SampleState.source`; `target` is the merged run."""

    def __init__(
        self,
        db: sqlite3.Connection,
        sources: Sequence[Source],
        target: Source | None,
        append: Append,
        append_rollout: Append,
    ) -> None:
        self._db = db
        self._sources = sources
        self._target = None if target is None else target.place
        self._append = {layout.EVENTS: append, layout.ROLLOUTS: append_rollout}
        self._launches: dict[tuple[int, int], int] = {}
        names = [row[0] for row in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
        columns = {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in names}
        self._columns = {name: each for name, each in columns.items() if "n" in each}
        self._of_launches = columns["launches"]

    def launches(self) -> None:
        """Add the launches of all sources, in the order in which they began; those that are there are brought up to
        date."""
        there: dict[LaunchId, int] = {
            (row["pid"], row["started_at"]): row["number"]
            for row in self._db.execute("SELECT number, pid, started_at FROM launches")
        }
        found = [(launch["started_at"], source.place, launch) for source in self._sources for launch in source.launches]
        found = [each for each in found if each[2]["pid"] != MERGE_PID]
        for _, place, launch in sorted(found, key=lambda each: each[:2]):
            identity, number = launch_id(launch), launch["number"]
            row = {**launch, "state": "died" if launch["state"] == "running" else launch["state"]}
            if place != self._target:
                if identity not in there:
                    next_number = "SELECT coalesce(max(number), 0) + 1 FROM launches"
                    there[identity] = self._db.execute(next_number).fetchone()[0]
                self._put("launches", self._of_launches, {**row, "number": there[identity]})
            self._launches[place, number] = there[identity]

    def sample(self, choice: Choice) -> None:
        """Take a sample, with all attempts at it."""
        taken, tables = choice.taken, self._columns
        source = self._sources[taken.source]
        (sample,) = source.rows("samples", taken.n)
        extra = list(self._attempts_of_others(choice))
        shift = len(extra)
        found = {name: source.rows(name, taken.n) for name in tables if name != "samples"}
        n = self._number(sample)
        attempts = [
            *extra,
            *(self._attempt(taken, row, {"attempt": row["attempt"] + shift}) for row in found.pop("attempts")),
        ]
        for name in found:
            self._db.execute(f"DELETE FROM {name} WHERE n = ?", (n,))
        self._db.execute("DELETE FROM attempts WHERE n = ?", (n,))
        self._put("samples", tables["samples"], {**sample, "n": n, "state": _state(sample["state"])})
        for number, row in enumerate(attempts, 1):
            self._put("attempts", tables["attempts"], {**row, "n": n, "attempt": number})
        for name, rows in found.items():
            for row in rows:
                row = self._with_launch(taken.source, {**row, "n": n})
                if "attempt" in row:
                    row["attempt"] += shift
                if name == "rollouts":
                    self._move(taken.source, row, layout.ROLLOUTS)
                if name == "records":
                    row["attempts"] += shift
                self._put(name, tables[name], row)

    def _attempts_of_others(self, choice: Choice) -> Iterable[Row]:
        """Yield the attempts that the taken state does not have, the oldest first."""
        there = set(choice.taken.attempts)
        found: list[Row] = []
        for state in choice.others:
            for row in self._sources[state.source].rows("attempts", state.n):
                identity = (row["key"], row["started_at"])
                if identity not in there:
                    there.add(identity)
                    found.append(self._attempt(state, row, {"note": row["note"] or NOT_TAKEN}))
        return sorted(found, key=lambda row: row["started_at"])

    def _attempt(self, state: SampleState, row: Row, changes: Row) -> Row:
        """An attempt for the merged run, with its event log there."""
        row = self._with_launch(state.source, {**row, **changes})
        if row["status"] is None:
            row |= {"status": "lost", "note": row["note"] or ENDED}
        self._move(state.source, row, layout.EVENTS)
        return row

    def _move(self, place: int, row: Row, directory: str) -> None:
        """Have a row's member of a segment stand in the merged run."""
        if row["length"] is not None and place != self._target:
            member = self._sources[place].member(directory, row)
            row["segment"], row["offset"], row["length"] = self._append[directory](member)

    def _with_launch(self, place: int, row: Row) -> Row:
        if row.get("launch") is not None:
            row["launch"] = self._launches[place, row["launch"]]
        return row

    def _number(self, sample: Mapping[str, Any]) -> int:
        """The number of a sample in the merged run: what it has, else that of its place if that is free."""
        key = (sample["id"], sample["epoch"], sample["variant"])
        row = self._db.execute("SELECT n FROM samples WHERE id = ? AND epoch = ? AND variant = ?", key).fetchone()
        if row is not None:
            return int(row[0])
        n = sample["position"] + 1
        is_taken = self._db.execute("SELECT 1 FROM samples WHERE n = ?", (n,)).fetchone() is not None
        return int(self._db.execute("SELECT max(n) + 1 FROM samples").fetchone()[0]) if is_taken else n

    def _put(self, table: str, columns: Sequence[str], row: Mapping[str, Any]) -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        marks = ", ".join("?" * len(columns))
        self._db.execute(
            f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", [row.get(name) for name in columns]
        )


def _state(state: str) -> str:
    """The state of a sample whose run has ended."""
    return "pending" if state == "running" else state
