"""The threads of clients with a key, as the broker knows them from the store; the changes that are to be written. Pure.

A thread that is not here is the pool's owner's. A row is written by a `SaveOwners`, and what it is the answer
to waits until it is on the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ..auth.ownership import Row


class ThreadOwners:
    """See the module's docstring. `durable`: answers wait for the store; without a store all is in memory only."""

    def __init__(self, *, durable: bool = False) -> None:
        self.durable = durable
        self._rows: dict[str, Row] = {}
        self._of: dict[str, dict[str, None]] = {}
        self._stored: Counter[str] = Counter()
        # Threads that are on no disk but in a worker.
        self._loaded: dict[str, dict[str, None]] = {}
        self._changed: dict[str, None] = {}
        # Threads with rows on their way to the store, which are newer than what is read from there.
        self._writing: Counter[str] = Counter()
        # Threads that could not be written, until the next beat.
        self._failed_rows: dict[str, None] = {}
        # Threads that the store has never had.
        self._new: set[str] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, thread_id: str | None) -> Row | None:
        return self._rows.get(thread_id or "")

    def owner_of(self, thread_id: str | None) -> str:
        """The client that has this thread; "" is the pool's owner."""
        row = self._rows.get(thread_id or "")
        return row.owner if row is not None else ""

    def of(self, owner: str) -> Iterator[Row]:
        """The threads of one client."""
        return (self._rows[thread_id] for thread_id in self._of.get(owner, ()))

    def stored(self, owner: str) -> int:
        """Count the threads of a client on disk, without archived ones."""
        return self._stored[owner]

    def is_stored(self, thread_id: str) -> bool:
        row = self._rows.get(thread_id)
        return row is not None and row.stored

    def loaded(self, owner: str) -> int:
        """Count the threads of a client that a worker has and no disk."""
        return len(self._loaded.get(owner, ()))

    def load(self, thread_id: str) -> None:
        """Note that a worker has this thread."""
        row = self._rows.get(thread_id)
        if row is not None and not row.stored:
            self._loaded.setdefault(row.owner, {})[thread_id] = None

    def unload(self, thread_id: str) -> None:
        """Note that no worker has this thread any more."""
        row = self._rows.get(thread_id)
        if row is not None:
            self._loaded.get(row.owner, {}).pop(thread_id, None)

    def is_pending(self, thread_id: str) -> bool:
        """True while the store has yet to be given what is known of a thread."""
        return thread_id in self._changed or thread_id in self._writing

    def add(self, row: Row) -> bool:
        """Add a thread that was made for a client. False when it is another client's already."""
        known = self._rows.get(row.thread_id)
        if known is None:
            self._set(row)
            self._changed[row.thread_id] = None
            self._new.add(row.thread_id)
            return True
        return known.owner == row.owner

    def change(self, thread_id: str, **fields: Any) -> None:
        """Change fields of the row of a thread, if it is a client's."""
        row = self._rows.get(thread_id)
        if row is None or all(getattr(row, name) == value for name, value in fields.items()):
            return
        self._set(msgspec.structs.replace(row, **fields))
        self._changed[thread_id] = None

    def forget(self, thread_id: str) -> None:
        """Note that a thread no longer exists."""
        if thread_id in self._rows:
            self._changed[thread_id] = None
            self._set(msgspec.structs.replace(self._rows[thread_id], gone=True))

    def take_changed(self) -> list[Row]:
        """The rows to be written, each once; `written` is to be called with them."""
        if not self._changed:
            return []
        rows = [self._rows[thread_id] for thread_id in self._changed]
        self._changed = {}
        for row in rows:
            self._writing[row.thread_id] += 1
            if row.gone:
                del self._rows[row.thread_id]
        return rows

    def written(self, rows: Iterable[Row], *, ok: bool = True) -> None:
        """Note that these rows are in the store, or, unless `ok`, could not be written.

        In that case threads that the store has never had are no client's; the others are tried again at the next beat.
        """
        for row in rows:
            self._writing[row.thread_id] -= 1
            if self._writing[row.thread_id] <= 0:
                del self._writing[row.thread_id]
            if ok:
                self._new.discard(row.thread_id)
            else:
                self._failed(row.thread_id)

    def tick(self) -> None:
        """Try again what could not be written."""
        self._changed.update((thread_id, None) for thread_id in self._failed_rows if thread_id in self._rows)
        self._failed_rows = {}

    def replace(self, rows: Iterable[Row]) -> None:
        """Replace all rows by these, of a store that was just opened."""
        self._rows, self._of, self._stored, self._changed, self._loaded = {}, {}, Counter(), {}, {}
        self._writing, self._new, self._failed_rows = Counter(), set(), {}
        self.read(rows)

    def read(self, rows: Iterable[Row]) -> list[str]:
        """Rows that another pool may have written; the threads that have another owner than was known."""
        moved: list[str] = []
        for row in rows:
            if row.thread_id in self._failed_rows or self.is_pending(row.thread_id):
                continue
            before = self.owner_of(row.thread_id)
            self._set(row)
            if row.gone:
                self._rows.pop(row.thread_id, None)
            if self.owner_of(row.thread_id) != before:
                moved.append(row.thread_id)
        return moved

    def _failed(self, thread_id: str) -> None:
        known = self._rows.get(thread_id)
        if thread_id not in self._new:
            if known is not None:
                self._failed_rows[thread_id] = None
            return
        self._new.discard(thread_id)
        self._changed.pop(thread_id, None)
        if known is not None:
            self._set(msgspec.structs.replace(known, gone=True))
            del self._rows[thread_id]

    def _set(self, row: Row) -> None:
        before = self._rows.get(row.thread_id)
        if before is not None and _counts(before):
            self._stored[before.owner] -= 1
        self._rows[row.thread_id] = row
        mine = self._of.setdefault(row.owner, {})
        if row.gone or row.stored:
            self._loaded.get(row.owner, {}).pop(row.thread_id, None)
        if row.gone:
            mine.pop(row.thread_id, None)
        else:
            mine[row.thread_id] = None
        if _counts(row):
            self._stored[row.owner] += 1


def _counts(row: Row) -> bool:
    return row.stored and not row.archived and not row.gone
