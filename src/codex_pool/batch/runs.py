"""What people do with runs from outside: find them, look at them, tell them something, remove them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import attached, control
from .display import Display
from .progress import Progress
from .store import RunDirectory, RunDirectoryError, RunStore, SampleRow, edit_run, layout, open_run, shown_name
from .store.rows import exported

DEPTH = 3
POLL_S = 0.25
# So long a list waits for a run that another program has locked.
LIST_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Listed:
    """A run as it stands in a list. `problem`: why it cannot be read."""

    path: Path
    state: str = ""
    counts: dict[str, int] | None = None
    created_at: float | None = None
    dataset: str = ""
    problem: str | None = None


def find(directory: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Run directories in and below a directory, in order of their names."""
    if (directory / layout.DATABASE).is_file():
        yield directory
        return
    if depth == 0:
        return
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from find(Path(entry.path), depth - 1)


def listed(path: Path) -> Listed:
    try:
        with open_run(path, limit_s=LIST_LIMIT_S) as store:
            info, counts = store.info(), store.counts()
    except RunDirectoryError as error:
        return Listed(path, problem=str(error))
    dataset = info["config"].get("dataset")
    name = str(dataset.get("name", "")) if isinstance(dataset, dict) else ""
    return Listed(path, info["state"], counts, info["created_at"], name)


def named(store: RunStore, name: str) -> SampleRow:
    """The sample that people call `name`: `ID`, or `ID#EPOCH`. Raises KeyError."""
    with contextlib.suppress(KeyError):
        return store.sample(name)
    sample_id, mark, epoch = name.rpartition("#")
    if mark and epoch.isdigit():
        return store.sample(sample_id, int(epoch))
    raise KeyError(f"{store.path} has no sample {name!r}")


def cancel(path: Path, sample: str | None) -> None:
    """Stop a run that is under way, or one of its samples. Raises RunDirectoryError when there is nothing to stop."""
    with open_run(path) as store:
        request: Any = "run"
        if sample is not None:
            row = named(store, sample)
            if row.state in ("done", "scoring"):
                raise RunDirectoryError(f"{path}: sample {sample!r} has ended; there is nothing to cancel")
            request = [row.id, row.epoch]
    pid = layout.holder(path)
    if pid is None:
        raise RunDirectoryError(f"{path} is not under way; there is nothing to cancel")
    if not control.ask(path, {"cancel": request}):
        raise RunDirectoryError(f"{path}: the run (pid {pid}) has not answered; `kill {pid}` stops it")


def retry(path: Path, samples: Sequence[str], statuses: Sequence[str]) -> int:
    """Let samples that are done be run again: those named, else those of the statuses; how many."""
    with contextlib.closing(edit_run(path)) as directory:
        store = directory.store
        if samples:
            numbers = [named(store, name).n for name in samples]
        else:
            numbers = [row.n for row in store.samples(state="done") if row.record and row.record.status in statuses]
        return directory.retry(numbers)


def begun(path: Path) -> int:
    """The number of samples that were begun and are not done. Raises RunDirectoryError."""
    with open_run(path) as store:
        return sum(1 for _ in store.samples(begun=True))


def remove(path: Path) -> None:
    """Remove what a run left, and its directory if nothing else is in it. Raises RunDirectoryError."""
    open_run(path).close()
    directory = RunDirectory(path)
    try:
        directory.remove()
    finally:
        directory.close()
    for name in (attached.PROGRESS, layout.LOCK, "batch.log"):
        (path / name).unlink(missing_ok=True)
    for name in (control.CONTROL, "repositories"):
        shutil.rmtree(path / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def tail(path: Path, count: int, follow: bool, say: Callable[[SampleRow], None]) -> None:
    """The last `count` finished samples by their end, and those that end meanwhile while the run goes on."""
    with open_run(path) as store:
        seen = store.done()
        for row in store.ended(count):
            say(row)
            seen.add(row.n)
        while follow:
            goes_on = layout.holder(path) is not None
            for n in sorted(store.done() - seen):
                say(store.sample_at(n))
                seen.add(n)
            if not goes_on:
                return
            time.sleep(POLL_S)


def attach(path: Path, make: Callable[[Progress], Display]) -> str:
    """Show a run as it shows itself, until it ends or Ctrl-C; its state then. Raises RunDirectoryError."""
    with open_run(path) as store:
        pid = layout.holder(path)
        if pid is None:
            return str(store.info()["state"])
        progress = Progress(total=store.counts()["total"])
        display = make(progress)
        told = attached.read(path, time.monotonic())
        display.start(told[0] if told is not None else str(path))
        seen = store.done()
        try:
            while layout.holder(path) == pid:
                told = attached.read(path, time.monotonic())
                if told is not None:
                    for name in Progress.__slots__:
                        setattr(progress, name, getattr(told[1], name))
                display.refresh()
                for n in sorted(store.done() - seen):
                    seen.add(n)
                    row = store.sample_at(n, scored=False)
                    assert row.record is not None
                    if row.record.status != "completed":
                        display.say(f"{shown_name(row.id, row.epoch)}: {row.record.status}")
                time.sleep(POLL_S)
        finally:
            display.stop()
        return str(store.info()["state"])


def write_line(row: SampleRow) -> None:
    """A sample as a line of results.jsonl on stdout."""
    sys.stdout.write(json.dumps(exported(row), ensure_ascii=True) + "\n")
    sys.stdout.flush()
