"""The display of a run as a file, for `attach`: it is replaced every second while the run goes on."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import write_atomic

from ..redaction.redactor import NOTHING, Redactor
from ..rules.progress import Progress
from ..store import layout

EVERY_S = 1.0
_COUNTERS = ("ended", "tokens", "failures")


def publish(run: Path, progress: Progress, title: str, now: float, redactor: Redactor = NOTHING) -> None:
    """Write how far the run is. Raises OSError."""
    value = {one.name: getattr(progress, one.name) for one in fields(progress)}
    # Clocks differ from process to process; how long ago it was does not.
    value["started_at"] = None if progress.started_at is None else now - progress.started_at
    value["under_way"] = [[*key, now - since] for key, since in progress.slowest(10)]
    text = redactor.text(json.dumps({"pid": os.getpid(), "title": title, "progress": value}))
    write_atomic(run / layout.PROGRESS, text.encode())


def read(run: Path, now: float) -> tuple[str, Progress] | None:
    """The title and progress that a run has published last; None if there is none that can be read."""
    try:
        found = json.loads((run / layout.PROGRESS).read_bytes())
        value: dict[str, Any] = found["progress"]
        known = {one.name for one in fields(Progress)}
        progress = Progress(**{name: one for name, one in value.items() if name in known})
        for name in _COUNTERS:
            setattr(progress, name, Counter(value[name]))
        progress.started_at = None if progress.started_at is None else now - value["started_at"]
        progress.under_way = {tuple(key): now - age_s for *key, age_s in value["under_way"]}
        return found["title"], progress
    except (OSError, ValueError, KeyError, TypeError):
        return None
