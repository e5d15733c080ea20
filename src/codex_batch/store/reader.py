"""Reading a run: one that is over, and one that a process writes to meanwhile. Nothing here holds all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import layout, locked
from .layout import RunDirectoryError
from .rows import (
    ANSWERED,
    UNKNOWN_COST,
    VALID,
    AttemptRow,
    HostRow,
    SampleRow,
    ScoreRow,
    Spending,
    attempt_of,
    from_json,
    sample_of,
    score_of,
)
from .run_files import RunFiles
from .schema import open_for_reading

PAGE = 200
# Key of the table `run` that holds the variants.
VARIANTS = "variants"
# Keys of the shard, as I/N, and of what the run was merged of.
SHARD, MERGED = "shard", "merged"
_SAMPLE = (
    "s.n, s.id, s.epoch, s.variant, s.digest, s.spec, s.tags, s.position, s.selected, s.state, "
    "s.fingerprint AS wanted, (SELECT count(*) FROM attempts a WHERE a.n = s.n) AS tries"
)
_OF_VARIANT = "n IN (SELECT n FROM samples WHERE variant = ?)"
_BEGUN = "EXISTS (SELECT 1 FROM attempts a WHERE a.n = s.n)"


class RunStore(RunFiles):
    """The run in a directory, read-only. Every call sees what is committed at that moment. Close it, or use `with`.

    Calls may come from any thread.
    """

    def info(self) -> dict[str, Any]:
        """Return the facts of a run: `config` and `state` of the last launch, `pid` of its process (or None),
        `created_at`, `ended_at`, all `launches`, the oldest first, and the `hosts` in words."""
        launches = [
            {
                **dict(row),
                "config": from_json(row["config"]),
                "outcome": from_json(row["outcome"]),
            }
            for row in self._fetch("SELECT * FROM launches ORDER BY number")
        ]
        facts = self._fetch("SELECT key, value FROM run WHERE key <> ?", (VARIANTS,))
        pid = layout.holder(self.path)
        last = launches[-1] if launches else {}
        state = last.get("state", "new")
        if state == "running" and pid is None:
            state = "died"
        return {
            "path": str(self.path),
            "state": state,
            "pid": pid,
            "created_at": launches[0]["started_at"] if launches else None,
            "ended_at": last.get("ended_at"),
            "config": last.get("config", {}),
            "outcome": last.get("outcome"),
            "launches": launches,
            "hosts": [(host.host, host.in_words) for host in self.hosts()],
            **{row["key"]: from_json(row["value"]) for row in facts},
        }

    def samples(
        self,
        *,
        state: str | None = None,
        status: str | None = None,
        selected: bool | None = None,
        begun: bool = False,
        variant: str | None = None,
        after: tuple[int, int] | None = None,
    ) -> Iterator[SampleRow]:
        """Iterate over the samples with their records and scores, in the order of the dataset.

        `state`, `status`, `variant`: only those of that state, status or variant. `begun`: only those that were
        attempted and are not done.

        `after` is the (position, n) of a sample: only those after it.
        """
        while True:
            page = self.page(
                PAGE, state=state, status=status, selected=selected, begun=begun, variant=variant, after=after
            )
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1].position, page[-1].n

    def page(
        self,
        size: int,
        *,
        state: str | None = None,
        status: str | None = None,
        selected: bool | None = None,
        to_do: bool = False,
        begun: bool = False,
        variant: str | None = None,
        after: tuple[int, int] | None = None,
    ) -> list[SampleRow]:
        """Return at most `size` samples after `after`; `to_do`: of this run, and not done; `begun`: see `samples`."""
        where, values = ["(s.position, s.n) > (?, ?)"], list(after or (-1, -1))
        if to_do:
            where.append("s.selected AND s.state <> 'done'")
        if begun:
            where.append(f"s.state <> 'done' AND {_BEGUN}")
        for column, value in (("s.state", state), ("r.status", status), ("s.variant", variant)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)  # type: ignore[arg-type]
        if selected is not None:
            where.append("s.selected" if selected else "NOT s.selected")
        return self._rows(f"{' AND '.join(where)} ORDER BY s.position, s.n LIMIT {size:d}", values)

    def begun_positions(self) -> frozenset[int]:
        """The places, among all samples of this run that are not done, of those that were attempted."""
        found = self._fetch(
            f"SELECT {_BEGUN} AS begun FROM samples s WHERE s.selected AND s.state <> 'done' ORDER BY s.position, s.n"
        )
        return frozenset(place for place, row in enumerate(found) if row["begun"])

    def to_do_of_samples(self) -> list[int]:
        """Count what is to be done of each sample of this run, in order: variants of a sample are beside each other."""
        found = self._fetch(
            "SELECT count(*) AS count FROM samples WHERE selected AND state <> 'done' "
            "GROUP BY epoch, id ORDER BY min(position), min(n)"
        )
        return [row["count"] for row in found]

    def ended(self, size: int) -> list[SampleRow]:
        """The samples that ended last by the clock, at most `size`, the last one last."""
        return self._rows(f"s.state = 'done' ORDER BY r.ended_at DESC, s.n DESC LIMIT {size:d}", ())[::-1]

    def done(self) -> set[int]:
        """The numbers of the samples that are done. Who follows a run compares them: a clock may be stepped."""
        return {row["n"] for row in self._fetch("SELECT n FROM samples WHERE state = 'done'")}

    def sample(self, sample_id: str, epoch: int = 1, variant: str = "") -> SampleRow:
        """Return one sample. Raises KeyError when there is none of that name."""
        rows = self._rows("s.id = ? AND s.epoch = ? AND s.variant = ?", (sample_id, epoch, variant))
        if not rows:
            raise KeyError(f"{self.path} has no sample {layout.shown_name(sample_id, epoch, variant)!r}")
        return rows[0]

    def sample_at(self, n: int, *, scored: bool = True) -> SampleRow:
        """The sample of a number; if it is not `scored` its scores are not looked for. Raises KeyError."""
        rows = self._rows("s.n = ?", (n,), scored=scored)
        if not rows:
            raise KeyError(f"{self.path} has no sample number {n}")
        return rows[0]

    def attempts(self, n: int) -> list[AttemptRow]:
        """Return every attempt at a sample, the oldest first."""
        found = self._fetch("SELECT * FROM attempts WHERE n = ? ORDER BY attempt", (n,))
        return [attempt_of(row) for row in found]

    def all_attempts(self) -> Iterator[AttemptRow]:
        """Iterate over every attempt of the run, in the order of the samples' numbers."""
        after = (-1, -1)
        while True:
            page = self._fetch(
                f"SELECT * FROM attempts WHERE (n, attempt) > (?, ?) ORDER BY n, attempt LIMIT {PAGE}", after
            )
            yield from map(attempt_of, page)
            if len(page) < PAGE:
                return
            after = page[-1]["n"], page[-1]["attempt"]

    def attempt_of_key(self, key: str) -> AttemptRow | None:
        """The attempt with a key; None if there is none."""
        found = self._fetch("SELECT * FROM attempts WHERE key = ?", (key,))
        return attempt_of(found[0]) if found else None

    def counts(self, variant: str | None = None) -> dict[str, int]:
        """Count the samples of the run: `total`, by state, by the status of their record, and `not_run`.

        One that failed before and is to be run again is pending, and failed until then. Of one `variant`, samples that
        have a record count also when the last command did not name them.
        """
        where, values = of_run(variant)
        found = {"total": 0, "pending": 0, "running": 0, "scoring": 0, "done": 0, "not_run": 0}
        for row in self._fetch(
            "SELECT s.state, r.status, count(*) AS count FROM samples s LEFT JOIN records r USING (n) "
            f"WHERE {where} GROUP BY 1, 2",
            values,
        ):
            status = row["status"] or "not_run"
            found["total"] += row["count"]
            found[row["state"]] += row["count"]
            found[status] = found.get(status, 0) + row["count"]
        return found

    def not_valid(self, variant: str | None = None) -> dict[str, int]:
        """Count samples of the run that are recorded and cannot be scored, by the kind of their error, else status."""
        where, values = of_run(variant)
        marks = ", ".join("?" * len(VALID))
        found = self._fetch(
            "SELECT coalesce(json_extract(r.error, '$.kind'), r.status) AS kind, count(*) AS count "
            f"FROM samples s JOIN records r USING (n) WHERE {where} AND r.status NOT IN ({marks}) "
            "GROUP BY 1 ORDER BY 2 DESC, 1",
            (*values, *VALID),
        )
        return {row["kind"]: row["count"] for row in found}

    def answered(self, variant: str | None = None) -> dict[str, dict[str, int]]:
        """Count the records by each value of the fields in ANSWERED, most first.

        Records without a thread are left out. An effort that codex leaves to the model is `default`; what was recorded
        by an earlier codex-pool is `unknown`.
        """
        found: dict[str, dict[str, int]] = {name: {} for name in ANSWERED}
        where, values = ("", ()) if variant is None else (f"AND {_OF_VARIANT}", (variant,))
        for name in ANSWERED:
            value = f"coalesce({name}, CASE WHEN model IS NULL THEN 'unknown' ELSE 'default' END)"
            for row in self._fetch(
                f"SELECT {value} AS value, count(*) AS count FROM records WHERE thread_id IS NOT NULL {where} "
                "GROUP BY 1 ORDER BY 2 DESC, 1",
                values,
            ):
                found[name][row["value"]] = row["count"]
        return found

    def variants(self) -> list[dict[str, Any]]:
        """Return the variants of the run, those of the last command first: `name`, `model`, `effort`, `config`,
        `agents_md`, `codex_bin` and the `effective` configuration of each. None are of a run without variants.

        A variant that a later command did not name stands here as it was, as long as it has results.
        """
        found = self._fetch("SELECT value FROM run WHERE key = ?", (VARIANTS,))
        return list(from_json(found[0]["value"])) if found else []

    def agents_md(self, variant: str) -> str | None:
        """Return the text that is AGENTS.md in a variant; None if it names none."""
        return next((each["agents_md"] for each in self.variants() if each["name"] == variant), None)

    def variant_names(self) -> list[str]:
        """Return the names of the variants that the run has or had samples of, in order; none without variants."""
        there = {
            row["variant"]
            for row in self._fetch(
                "SELECT DISTINCT variant FROM samples s LEFT JOIN records r USING (n) "
                "WHERE variant <> '' AND (s.selected OR r.n IS NOT NULL)"
            )
        }
        known = [each["name"] for each in self.variants() if each["name"] in there]
        return [*known, *sorted(there.difference(known))]

    def hosts(self) -> list[HostRow]:
        """Return what the hosts of a run on several machines did, by name; none are of a run on one machine."""
        return [
            HostRow(**dict(row))
            for row in self._fetch(
                "SELECT host, count(*) AS attempts, coalesce(sum(status IN ('completed', 'limit')), 0) AS completed, "
                "sum(status IS 'lost') AS lost, sum(status IS 'superseded') AS superseded, "
                "min(started_at) AS started_at, max(ended_at) AS ended_at "
                "FROM attempts WHERE host IS NOT NULL GROUP BY host ORDER BY host"
            )
        ]

    def has_scores(self) -> bool:
        """True if any sample was scored."""
        return bool(self._fetch("SELECT 1 FROM scores LIMIT 1"))

    def spent(self) -> tuple[int, float | None]:
        """Tokens and money so far, of all attempts and of what judges were asked about them; None: not all is known."""
        spent = self.spending()
        return spent.tokens, spent.cost

    def spending(self, variant: str | None = None) -> Spending:
        """Return the spending so far, of all attempts and of judges; of one `variant`, of its attempts alone."""
        where, values = ("", ()) if variant is None else (f"WHERE {_OF_VARIANT}", (variant,))
        ((tokens, cost, unknown),) = self._fetch(
            "SELECT coalesce(sum(json_extract(usage, '$.total_tokens')), 0), coalesce(sum(cost), 0.0), "
            f"coalesce(sum({UNKNOWN_COST}), 0) FROM attempts {where}",
            values,
        )
        if variant is not None:
            return Spending(tokens, cost, unknown)
        for row in self._fetch("SELECT value FROM run WHERE key = 'judged'"):
            judged = from_json(row["value"])
            tokens, cost = tokens + judged["tokens"], cost + judged["cost"]
            unknown += judged.get("unknown", 0)
        return Spending(tokens, cost, unknown)

    def failures(self, size: int) -> tuple[list[SampleRow], int]:
        """The first of what went wrong, and how many there are. What the user stopped did not."""
        where = (
            "s.selected AND r.status NOT IN ('completed', 'limit') "
            "AND coalesce(json_extract(r.error, '$.kind'), '') <> 'interrupted'"
        )
        ((count,),) = self._fetch(f"SELECT count(*) FROM samples s JOIN records r USING (n) WHERE {where}")
        return self._rows(f"{where} ORDER BY s.position, s.n LIMIT {size:d}", ()), count

    def _rows(self, where: str, values: Sequence[Any], *, scored: bool = True) -> list[SampleRow]:
        found = self._fetch(f"SELECT {_SAMPLE}, r.* FROM samples s LEFT JOIN records r USING (n) WHERE {where}", values)
        if not found:
            return []
        scores: dict[int, list[ScoreRow]] = {}
        marks = ",".join("?" * len(found))
        of_these = f"SELECT * FROM scores WHERE n IN ({marks}) ORDER BY n, place"
        for row in self._fetch(of_these, [row["n"] for row in found]) if scored else ():
            scores.setdefault(row["n"], []).append(score_of(row))
        return [sample_of(row, scores.get(row["n"], ())) for row in found]


def of_run(variant: str | None) -> tuple[str, tuple[str, ...]]:
    """The condition for the samples of a run, or of one of its variants, with its values."""
    return ("s.selected", ()) if variant is None else ("s.variant = ? AND (s.selected OR r.n IS NOT NULL)", (variant,))


def open_run(path: Path, *, limit_s: float = locked.LIMIT_S) -> RunStore:
    """The run in a directory, to be read. While another program has its database locked it is waited for, `limit_s`
    seconds at most. Raises RunDirectoryError when there is none, or it cannot be read."""
    refuse_other(path)
    return RunStore(path, open_for_reading(path / layout.DATABASE, limit_s=limit_s))


def refuse_other(path: Path) -> None:
    """Raises RunDirectoryError for a path that is not the directory of a batch."""
    if not (path / layout.DATABASE).exists():
        if not path.is_dir():
            raise RunDirectoryError(f"{path}: no such directory; expected the run directory of a batch")
        layout.refuse_foreign(path, fresh=False)
        raise RunDirectoryError(f"{path} has no {layout.DATABASE}: it is not the directory of a batch; name another")
