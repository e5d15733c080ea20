"""Runs: those in and below some directories, found again as they come and go, by keys that stay the same."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import resolved

from ..manage import listing
from ..report.leaderboard.operands import Chosen, named
from ..report.packing import pack
from .live_result import LiveResult, stamp

FIND_EVERY_S = 10.0
LOOK_EVERY_S = 2.0


class Runs:
    """The runs that are shown. May be used from several threads. `clock` counts seconds."""

    def __init__(self, directories: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._directories = directories
        self._clock = clock
        self._lock = threading.Lock()
        self._find_at = self._look_at = 0.0
        self._paths: list[Path] = []
        self._listed: dict[Path, tuple[str, listing.Listed]] = {}
        self._results: dict[str, LiveResult] = {}
        self._lines: list[dict[str, Any]] = []

    def result(self, key: str) -> LiveResult:
        """Return the run with a key. Raises KeyError for one that there is not."""
        with self._lock:
            self._look()
            return self._results[key]

    def only(self) -> str | None:
        """Return the key of the only run, if there is just one."""
        with self._lock:
            self._look()
            return next(iter(self._results)) if len(self._results) == len(self._lines) == 1 else None

    def changes(self, version: str) -> str | None:
        """Return the lines of the list, packed; None if they have not changed since `version`."""
        with self._lock:
            self._look()
            packed = pack(self._lines)
            current = hashlib.sha256(packed.encode()).hexdigest()[:16]
            return None if current == version else pack({"version": current, "runs": self._lines})

    def _look(self) -> None:
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        if now >= self._find_at:
            self._find_at = now + FIND_EVERY_S
            found = (resolved(path) for directory in self._directories for path in listing.find(directory))
            self._paths = list(dict.fromkeys(found))
        for path in self._paths:
            version = stamp(path)
            if path not in self._listed or self._listed[path][0] != version:
                self._listed[path] = version, listing.listed(path)
        for gone in self._listed.keys() - set(self._paths):
            del self._listed[gone]
        self._draw()

    def _draw(self) -> None:
        """Make the lines of the list, and what answers for each."""
        runs = [self._listed[path][1] for path in self._paths]
        chosen = named(
            [
                Chosen(run.path, part.variant, "", len(run.parts))
                for run in runs
                for part in run.parts or (listing.Part("", {}, {}, {}, {}),)
            ]
        )
        self._lines, kept = [], self._results
        self._results = {}
        parts = [(run, part) for run in runs for part in run.parts or (None,)]
        for one, (run, part) in zip(chosen, parts, strict=True):
            key = hashlib.sha256(f"{one.path}\0{one.variant}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
            self._lines.append({"key": key, "name": one.name, **_line(run, part)})
            if run.problem is None:
                self._results[key] = kept.get(key) or LiveResult(one)


def _line(run: listing.Listed, part: listing.Part | None) -> dict[str, Any]:
    if part is None:
        return {"problem": run.problem or "it cannot be read", "state": "unreadable", "created_at": run.created_at}
    return {
        "problem": None,
        "state": run.state,
        "done": part.counts["done"],
        "total": part.counts["total"],
        "score": part.mean,
        "scorer": None if part.score is None else part.score[0],
        "model": ", ".join(list(part.models)[:2]),
        "effort": ", ".join(list(part.efforts)[:2]),
        "created_at": run.created_at,
        "dataset": run.dataset,
    }
