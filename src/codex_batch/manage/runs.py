"""Runs from outside: look at them, make requests of them, remove them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from codex_pool.runtime import workflow_commands

from ..display import snapshot_file
from ..display.live import Display
from ..rules.progress import Progress
from ..store import RunDirectory, RunDirectoryError, RunStore, SampleRow, edit_run, layout, open_run
from ..store.export import exported
from . import control

POLL_S = 0.25


def named(store: RunStore, name: str) -> SampleRow:
    """The sample that people call `name`: `ID`, `ID#EPOCH`, `ID@VARIANT`, `ID@VARIANT#EPOCH`. Raises KeyError."""
    variants = store.variant_names()
    # Any of these marks may be part of an id.
    for rest, epoch in _epochs(name):
        for variant in variants or ("",):
            with contextlib.suppress(KeyError):
                if not variant or rest.endswith(f"@{variant}"):
                    return store.sample(rest.removesuffix(f"@{variant}") if variant else rest, epoch, variant)
    if variants:
        names = ", ".join(f"@{variant}" for variant in variants)
        raise KeyError(f"{store.path} has no sample {name!r}; name one of a variant: ID followed by one of {names}")
    raise KeyError(f"{store.path} has no sample {name!r}")


def _epochs(name: str) -> Iterator[tuple[str, int]]:
    """Yield what a name is without the number of its epoch, and that number, in the ways that it may be read."""
    yield name, 1
    rest, mark, epoch = name.rpartition("#")
    if mark and epoch.isdigit():
        yield rest, int(epoch)


def cancel(path: Path, sample: str | None) -> None:
    """Stop a run that is under way, or one of its samples. Raises RunDirectoryError when there is nothing to stop."""
    with open_run(path) as store:
        request: Any = "run"
        if sample is not None:
            row = named(store, sample)
            if row.state in ("done", "scoring"):
                raise RunDirectoryError(f"{path}: sample {sample!r} has ended; there is nothing to cancel")
            request = list(row.key)
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


def count_started(path: Path) -> int:
    """Count the samples that were started and are not done. Raises RunDirectoryError."""
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
    layout.remove_rest(path)


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
        published = snapshot_file.read(path, time.monotonic())
        display.start(published[0] if published is not None else str(path))
        seen = store.done()
        try:
            while layout.holder(path) == pid:
                published = snapshot_file.read(path, time.monotonic())
                if published is not None:
                    for name in Progress.__slots__:
                        setattr(progress, name, getattr(published[1], name))
                display.refresh()
                for n in sorted(store.done() - seen):
                    seen.add(n)
                    row = store.sample_at(n, scored=False)
                    assert row.record is not None
                    if row.record.status != "completed":
                        display.say(f"{row.shown_name}: {row.record.status}")
                time.sleep(POLL_S)
        finally:
            display.stop()
        return str(store.info()["state"])


def write_line(row: SampleRow) -> None:
    """A sample as a line of results.jsonl on stdout."""
    line = json.dumps(exported(row), ensure_ascii=True)
    sys.stdout.write((workflow_commands.json_line(line) if workflow_commands.is_on(os.environ) else line) + "\n")
    sys.stdout.flush()
