"""The configuration of a run against those that its results were made with: one directory holds one of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from .layout import RunDirectoryError, shown_name
from .rows import from_json
from .statements import SETTLED

_SHOWN = 5
_SETTLED = ", ".join(f"'{status}'" for status in SETTLED)
# Samples with results of another configuration than they would be run with now.
_OTHERS = (
    f"FROM samples s JOIN records r USING (n) WHERE s.state IN ('done', 'scoring') AND r.status IN ({_SETTLED}) "
    "AND r.fingerprint IS NOT NULL AND r.fingerprint <> s.fingerprint"
)


class Configured(msgspec.Struct, frozen=True):
    """Numbers of samples to be run again, and of results whose configuration is not known."""

    again: int
    unknown: int


def configure(
    db: sqlite3.Connection,
    path: Path,
    fingerprint: Callable[[Mapping[str, Any]], str | None],
    *,
    rerun_changed: bool,
    differences: Callable[[Mapping[str, Any], str], str],
) -> Configured:
    """See RunDirectory.configure."""
    known = db.execute("SELECT n, spec, fingerprint FROM samples").fetchall()
    now = ((fingerprint(from_json(spec)), n, before) for n, spec, before in known)
    db.executemany(
        "UPDATE samples SET fingerprint = ? WHERE n = ?",
        ((new, n) for new, n, before in now if new is not None and new != before),
    )
    count = db.execute(f"SELECT count(*) {_OTHERS}").fetchone()[0]
    if count:
        left = db.execute(f"SELECT count(*) {_OTHERS} AND NOT s.selected").fetchone()[0]
        if not rerun_changed or left:
            raise RunDirectoryError(_refusal(db, path, count, left if rerun_changed else 0, differences))
        db.execute(f"UPDATE samples SET state = 'pending' WHERE n IN (SELECT s.n {_OTHERS})")
    # A turn of another configuration is not resumed.
    db.execute(
        "UPDATE attempts SET status = 'lost', note = 'the configuration was changed before it ended' "
        "WHERE status IS NULL AND fingerprint <> (SELECT s.fingerprint FROM samples s WHERE s.n = attempts.n)"
    )
    unknown = db.execute(
        "SELECT count(*) FROM samples s JOIN records r USING (n) WHERE s.state IN ('done', 'scoring') "
        f"AND r.status IN ({_SETTLED}) AND r.fingerprint IS NULL"
    ).fetchone()[0]
    return Configured(count, unknown)


def _refusal(
    db: sqlite3.Connection, path: Path, count: int, left: int, differences: Callable[[Mapping[str, Any], str], str]
) -> str:
    found = db.execute(f"SELECT s.id, s.epoch, s.variant {_OTHERS} ORDER BY s.n LIMIT {_SHOWN}").fetchall()
    names = ", ".join(repr(shown_name(*key)) for key in found)
    more = f" and {count - len(found)} more" if count > len(found) else ""
    said = _said(db, found[0][2], differences)
    held = f"{path} holds results of another configuration" + (f" ({said})" if said else "")
    if left:
        remedy = f"{left} of them are not among the samples of this run: name all of them, or use another directory"
    else:
        remedy = "use another directory, or --changed rerun to run them again, or --fresh to remove what is there"
    return f"{held}: {names}{more}; {remedy}"


def _said(db: sqlite3.Connection, variant: str, differences: Callable[[Mapping[str, Any], str], str]) -> str:
    """List what differs in a variant from the last launch that made such results; empty where that is not known."""
    found = db.execute(
        f"SELECT config FROM launches WHERE number = (SELECT max(r.launch) {_OTHERS} AND s.variant = ?)", (variant,)
    ).fetchone()
    config = {} if found is None else from_json(found[0])
    if variant:
        config = next((each for each in config.get("variants") or () if each["name"] == variant), {})
    before = config.get("effective")
    said = differences(before, variant) if before else ""
    return f"variant {variant!r}: {said}" if said and variant else said
