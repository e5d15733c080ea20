"""What a run shows, for whoever looks at it from outside: a file that is replaced every second while it runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from .progress import Progress
from .redaction import NOTHING, Redactor
from .store import layout

EVERY_S = 1.0
PROGRESS = "progress.json"
_COUNTERS = ("ended", "tokens", "failures")


def publish(run: Path, progress: Progress, title: str, now: float, redactor: Redactor = NOTHING) -> None:
    """Say how far the run is. Raises OSError."""
    value = {one.name: getattr(progress, one.name) for one in fields(progress)}
    # Clocks differ from process to process; how long ago it was does not.
    value["started_at"] = None if progress.started_at is None else now - progress.started_at
    value["under_way"] = [[sample_id, epoch, now - since] for (sample_id, epoch), since in progress.slowest(10)]
    path = run / PROGRESS
    partial = layout.partial(path)
    partial.write_text(redactor.text(json.dumps({"pid": os.getpid(), "title": title, "progress": value})))
    partial.replace(path)


def read(run: Path, now: float) -> tuple[str, Progress] | None:
    """The title and progress that a run has published last; None if there is none that can be read."""
    try:
        found = json.loads((run / PROGRESS).read_bytes())
        value: dict[str, Any] = found["progress"]
        known = {one.name for one in fields(Progress)}
        progress = Progress(**{name: one for name, one in value.items() if name in known})
        for name in _COUNTERS:
            setattr(progress, name, Counter(value[name]))
        progress.started_at = None if progress.started_at is None else now - value["started_at"]
        progress.under_way = {(name, epoch): now - age_s for name, epoch, age_s in value["under_way"]}
        return found["title"], progress
    except (OSError, ValueError, KeyError, TypeError):
        return None
