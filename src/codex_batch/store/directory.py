"""The run directory of the run that is under way: every change of it goes through here.

An attempt is on the disk before its turn is dispatched, a record before it is reported, and each once. What a
change answers is `Written`, once it is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codex_app_server import StartError
from codex_app_server._runtime import fork
from codex_app_server._runtime.files import write_atomic

from ..redaction.redactor import NOTHING, Redactor
from . import layout, redacting, statements
from .configured import Configured, configure
from .export import Results
from .layout import RunDirectoryError, SampleKey
from .outdated import DatasetChanges
from .reader import RunStore, open_run
from .rollouts import Rollout, insert_rollouts
from .rows import Entry, RecordRow, SampleRow, to_json
from .schema import open_for_reading, open_for_writing
from .segments import Segments
from .statements import Start
from .writer import Writer, Written

__all__ = ["Finished", "RunDirectory", "Start", "Written", "edit_run"]


Append = Callable[[bytes], tuple[int, int, int]]
"""Writes a member of a segment, such as an event log; answers its segment, offset and length."""


@dataclass(slots=True)
class Finished:
    """A sample that is done, as it stands in results.jsonl."""

    n: int
    row: SampleRow | None = None


class RunDirectory(fork.ProcessBound):
    """The run in a directory, held by this process until `close`. Methods may be called from any thread.

    What `redactor` knows for secret is not written into it.
    A process forked from this one neither holds nor closes it. Raises RunDirectoryError when the directory cannot be
    used, is in use, or belongs to something else.
    """

    _called = "run directory"

    def __init__(self, path: Path, *, fresh: bool = False, redactor: Redactor = NOTHING) -> None:
        self.path = path
        self.redactor = redactor
        self.as_asked: dict[SampleKey, dict[str, Any]] = {}
        """Specs as given to `load` of samples that are stored without a secret, by their keys."""
        self._removed = False
        self._launch = 0
        try:
            path.mkdir(parents=True, exist_ok=True)
            with fork.opening():
                self._lock = layout.take_lock(path)
                self._bind_to_process()
        except OSError as error:
            raise RunDirectoryError(f"{path} cannot be a run directory: {error.strerror}; name another") from None
        with contextlib.ExitStack() as stack:
            stack.callback(self._unlock)
            layout.refuse_foreign(path, fresh=fresh)
            if fresh:
                layout.clear(path)
            database = path / layout.DATABASE
            self._connection = open_for_writing(database)
            stack.callback(self._connection.close)
            self.store = RunStore(path, open_for_reading(database))
            stack.callback(self.store.close)
            # What a change has made of a sample is read where it was made, within its transaction.
            self._rows = RunStore(path, self._connection)
            self._segments = Segments(path / layout.EVENTS, statements.last_offset(self._connection))
            self._rollouts = Segments(path / layout.ROLLOUTS, statements.last_offset(self._connection, "rollouts"))
            self._results = Results(path)
            try:
                self._writer = Writer(
                    self._connection, database, before_commit=self._sync, after_commit=self._after_commit
                )
            except StartError as error:
                raise RunDirectoryError(f"{path} cannot be written: {error}") from None
            self._closing = stack.pop_all()

    def file(self, name: str) -> Path:
        return self.path / name

    def close(self) -> None:
        """Let what waits be written, results.jsonl be in the order of the dataset, and the directory go."""
        if self._is_inherited:
            return
        self._writer.close()
        try:
            if not self._removed and statements.launched(self._connection):
                self._rewrite_results()
        finally:
            self._results.close()
            self._segments.close()
            self._rollouts.close()
            self._closing.close()

    def _let_go(self) -> None:
        # The lock is of the open file, and so held for as long as any process has it open. The databases are not
        # closed here: to SQLite this process is not the one that opened them.
        fork.let_go(self._lock)
        fork.keep(*(vars(self).get(name) for name in ("_connection", "store", "_rows", "_closing")))

    def _unlock(self) -> None:
        lock, self._lock = self._lock, -1
        os.close(lock)

    def remove(self) -> None:
        """Remove the record and all that belongs to it; only `close` may be called after this."""
        self._writer.close()
        self._removed = True
        layout.clear(self.path)

    # A run.

    def launch(self, config: Mapping[str, Any]) -> None:
        """Note that a run begins, and its configuration; config.json holds the same. Raises OSError, sqlite3.Error."""
        config = self.redactor.value(config)

        def change(db: sqlite3.Connection) -> int:
            # Here, so that `outcome` knows it also when the caller no longer waits for this.
            self._launch = statements.launch(db, os.getpid(), time.time(), to_json(config))
            return self._launch

        number = self._do(change)
        text = json.dumps({"launch": number, **config}, indent=2) + "\n"
        write_atomic(self.file(layout.CONFIG), text.encode(), is_synced=True)

    def outcome(self, state: str, outcome: Mapping[str, Any]) -> Written[None]:
        """Note how the run that began with `launch` ended."""
        written = to_json(self.redactor.value(outcome))
        return self._submit(lambda db: statements.end_launch(db, self._launch, state, time.time(), written))

    def locked_s(self) -> float:
        """Seconds that writes have waited for a database that another program has locked."""
        since = self._writer.locked_since
        return 0.0 if since is None else time.monotonic() - since

    def hurry(self) -> None:
        """The run is to end: let changes fail that a locked database still keeps off the disk in a few seconds."""
        self._writer.hurry()

    def load(
        self,
        entries: Iterable[Entry],
        dataset: str,
        *,
        rerun_changed: bool = False,
        whole: Iterable[tuple[str, str]] | None = None,
    ) -> DatasetChanges:
        """Take the samples of a run, in this order. What is done stays done; all else is to be run, and what has no
        score of a scorer of now, or an outdated one, to be scored.

        `whole`, if these are only some of a dataset: id and digest of all of its samples. What else is there is left as
        it is then, and not of this run. Raises RunDirectoryError, with nothing changed, when samples were done that are
        not in the dataset, or that asked something else.
        """
        kept = redacting.entries(self.redactor, entries, self.as_asked) if self.redactor else entries
        changes: DatasetChanges = self._do(
            lambda db: statements.load(db, kept, self.path, dataset, rerun_changed=rerun_changed, whole=whole)
        )
        # From now on only what is done stands in there: what is to be run again has one line at any instant.
        self._rewrite_results(only_done=True)
        return changes

    def reload(self) -> None:
        """Take the samples that the run has, whichever its last command asked for, as they are stored."""
        self._do(statements.reload)
        self._rewrite_results(only_done=True)

    def configure(
        self,
        fingerprint: Callable[[Mapping[str, Any]], str | None],
        *,
        rerun_changed: bool = False,
        differences: Callable[[Mapping[str, Any], str], str] = lambda before, variant: "",
    ) -> Configured:
        """Compare the configuration of a run with those that its results were made with; call it after `load`.

        `fingerprint` gives that of a sample, of its JSON; None for one of a variant that is not run now, whose results
        stay as they are. `differences` lists what differs from the `effective` configuration that an earlier launch
        gave a variant, or gave the run (`""`). Raises RunDirectoryError, with nothing changed, when there are results
        of another one, unless they are to be run again and all are of samples of this run.
        """
        done: Configured = self._do(
            lambda db: configure(db, self.path, fingerprint, rerun_changed=rerun_changed, differences=differences)
        )
        if done.again:
            self._rewrite_results(only_done=True)
        return done

    def retry(self, numbers: Iterable[int]) -> int:
        """Let samples that are done be run again by the next run; how many."""
        count: int = self._do(lambda db: statements.retry(db, numbers))
        return count

    def to_do(self, size: int, after: tuple[int, int] | None = None) -> list[SampleRow]:
        """The next samples of this run that are not done, at most `size`."""
        return self.store.page(size, to_do=True, after=after)

    def add_leased(self, row: SampleRow) -> Written[None]:
        """Take one sample, with its record if only that is to be scored. Its number is that of the run it is of."""
        spec = to_json(row.spec) or "{}"
        return self._submit(lambda db: statements.add_leased(db, row, spec, time.time()))

    def forget(self, n: int) -> Written[None]:
        """Remove one sample, with all that is of it in the database."""
        return self._submit(lambda db: statements.forget(db, n))

    def start_attempt(self, n: int, key: str, thread_id: str | None, host: str | None = None) -> Written[Start]:
        """Note an attempt, and the host that it is leased to; its turn may be dispatched when that is written."""
        return self._submit(lambda db: statements.start_attempt(db, n, key, thread_id, time.time(), host))

    def end_attempt(
        self,
        start: Start,
        end: Mapping[str, Any],
        *,
        note: str | None = None,
        events: bytes | None = None,
        rollouts: Sequence[Rollout] = (),
    ) -> Written[None]:
        """Note an attempt that another one follows, or that is not counted."""
        end, note = redacting.end(self.redactor, end), None if note is None else self.redactor.text(note)

        def change(db: sqlite3.Connection) -> None:
            statements.end_attempt(db, start, end, note, time.time(), self._append(events))
            insert_rollouts(db, start, rollouts, self._rollouts.append)

        return self._submit(change)

    def finish(
        self,
        start: Start,
        record: RecordRow,
        end: Mapping[str, Any],
        *,
        to_score: bool = False,
        note: str | None = None,
        events: bytes | None = None,
        rollouts: Sequence[Rollout] = (),
    ) -> Written[Finished | None]:
        """The last attempt has ended, and with it the sample; unless it is still to be scored."""
        end, record = redacting.end(self.redactor, end), redacting.record(self.redactor, record)

        def change(db: sqlite3.Connection) -> Finished | None:
            statements.end_attempt(db, start, end, note, time.time(), self._append(events))
            insert_rollouts(db, start, rollouts, self._rollouts.append)
            statements.record(db, start.n, record, "scoring" if to_score else "done")
            return None if to_score else self._finished(start.n, scored=False)

        return self._submit(change)

    def not_started(self, n: int, record: RecordRow) -> Written[Finished]:
        """A sample that ends without another attempt."""
        record = redacting.record(self.redactor, record)

        def change(db: sqlite3.Connection) -> Finished:
            statements.record(db, n, record, "done")
            return self._finished(n, scored=False)

        return self._submit(change)

    def scored(
        self,
        n: int,
        scores: Sequence[Any],
        artifacts: Sequence[str] | None = None,
        dependencies: Mapping[str, Any] | None = None,
    ) -> Written[Finished]:
        """The scores of a sample, instead of any it had; it is done now. `artifacts`: what is kept of it, if new.

        `dependencies`: what scores of now are made of, by scorer.
        """
        scores = redacting.scores(self.redactor, scores)

        def change(db: sqlite3.Connection) -> Finished:
            statements.replace_scores(db, n, scores, time.time(), dependencies)
            if artifacts is not None:
                db.execute("UPDATE records SET artifacts = ? WHERE n = ?", (to_json(list(artifacts)), n))
            db.execute("UPDATE samples SET state = 'done' WHERE n = ? AND state = 'scoring'", (n,))
            return self._finished(n)

        return self._submit(change)

    def replace_scores(
        self,
        n: int,
        scores: Sequence[Any],
        artifacts: Sequence[str] | None = None,
        dependencies: Mapping[str, Any] | None = None,
    ) -> None:
        """The scores of a sample that is done, instead of those it had; on the disk when this returns.

        results.jsonl follows when the directory is closed. `artifacts` and `dependencies` are as for `scored`.
        """
        scores = redacting.scores(self.redactor, scores)

        def change(db: sqlite3.Connection) -> None:
            statements.replace_scores(db, n, scores, time.time(), dependencies)
            if artifacts is not None:
                db.execute("UPDATE records SET artifacts = ? WHERE n = ?", (to_json(list(artifacts)), n))

        self._do(change)

    def merge(self, change: Callable[[sqlite3.Connection, RunStore, Append, Append], None]) -> None:
        """Let `change` write rows, event logs and session files of other runs, in one transaction.

        results.jsonl follows at `close`.

        The store that `change` is given reads what it has written so far.
        """
        self._do(lambda db: change(db, self._rows, self._segments.append, self._rollouts.append))

    def judged(self, tokens: int, cost: float | None) -> Written[None]:
        """Add what a judge was paid for a question, whatever becomes of its answer; `cost` None where not known."""
        return self._submit(lambda db: statements.judged(db, tokens, cost))

    def note(self, key: str, value: Any) -> Written[None]:
        """Store a fact about the run, which `RunStore.info` returns."""
        return self._submit(lambda db: statements.note(db, key, to_json(self.redactor.value(value))))

    def _do(self, change: Callable[[sqlite3.Connection], Any]) -> Any:
        return self._submit(change).result()

    def _submit(self, change: Callable[[sqlite3.Connection], Any]) -> Written[Any]:
        self._check_process()
        return self._writer.submit(change)

    def _finished(self, n: int, *, scored: bool = True) -> Finished:
        return Finished(n, self._rows.sample_at(n, scored=scored))

    def _append(self, events: bytes | None) -> tuple[int, int, int] | None:
        return None if events is None else self._segments.append(events)

    def _sync(self) -> None:
        self._segments.sync()
        self._rollouts.sync()

    def _after_commit(self, results: list[Any]) -> None:
        finished = [result for result in results if isinstance(result, Finished)]
        if finished:
            self._results.append(one.row for one in finished if one.row is not None)

    def _rewrite_results(self, *, only_done: bool = False) -> None:
        self._results.rewrite(_with_records(self.store, only_done))


def _with_records(store: RunStore, only_done: bool) -> Iterator[SampleRow]:
    for row in store.samples(state="done" if only_done else None):
        # What is still to be scored has no line yet, and what another configuration has made has none any more.
        if row.record is not None and row.state != "scoring" and not _is_of_another(row):
            yield row


def _is_of_another(row: SampleRow) -> bool:
    assert row.record is not None
    made, wanted = row.record.fingerprint, row.fingerprint
    return row.state != "done" and made is not None and made != wanted


def edit_run(path: Path, redactor: Redactor = NOTHING) -> RunDirectory:
    """The run in a directory that is there, to be changed without running it. Raises RunDirectoryError."""
    open_run(path).close()
    return RunDirectory(path, redactor=redactor)
