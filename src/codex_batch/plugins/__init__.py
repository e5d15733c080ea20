"""The contract of plug-ins: what a distribution may bring to codex-pool by entry points, and what its objects are.

    [project.entry-points."codex_pool.scorers"]     a Scorer
    [project.entry-points."codex_pool.datasets"]    a DatasetFormat
    [project.entry-points."codex_pool.exporters"]   an Exporter
    [project.entry-points."codex_pool.on_record"]   an OnRecord

This is version 1 of the contract, CONTRACT. Within it keys are added to dictionaries and methods to Run, and none are
removed. A contract that breaks it would have groups of its own, so a distribution can serve both, and one whose group
is not known is reported. A plug-in needs nothing of codex_batch but for its type checker.

discovery  what is installed, and how it is loaded
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

CONTRACT = 1


class Scorer(Protocol):
    """Scores an answer; called in a process of its own, as the function of the `python` scorer is.

    `sample` is the sample with its outcome; `options` are the further members of the scorer's object in a dataset, or
    in --scorer. Returns a bool, a number, or a dictionary with `value`, `passed`, `answer`, `explanation` and
    `metadata`. What it raises is the error of that score.
    """

    def __call__(self, sample: dict[str, Any], /, **options: Any) -> bool | float | Mapping[str, Any]: ...


class DatasetFormat(Protocol):
    """Reads a dataset: a file or directory as rows, each the columns of one sample, plain JSON values.

    Rows go through --field, --prompt-template and --filter, and are checked, as those of any other format. What it
    raises refuses the dataset.
    """

    def __call__(self, path: Path, /) -> Iterable[Mapping[str, Any]]: ...


class Run(Protocol):
    """A run as an exporter reads it, or one variant of it."""

    @property
    def path(self) -> Path:
        """The run directory."""
        ...

    @property
    def variant(self) -> str | None:
        """The variant that is exported; None: all of the run."""
        ...

    @property
    def info(self) -> Mapping[str, Any]:
        """The facts of `codex-pool runs show RUN --json`: config, state and launches among them."""
        ...

    def records(self) -> Iterator[dict[str, Any]]:
        """Iterate over the finished samples, each as a line of results.jsonl, in the order of the dataset."""
        ...

    def events(self, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Iterate over the notifications of a record's last attempt, `method` and `params`; none if not kept."""
        ...

    def artifact(self, record: Mapping[str, Any], name: str) -> bytes:
        """Return an artifact by its name in the record's `artifacts`. Raises KeyError if it is not there."""
        ...


class Exporter(Protocol):
    """Writes a run to a file, open for bytes and not seekable if it is standard output.

    What it raises is reported, and the file stays as it was.
    """

    def __call__(self, run: Run, file: IO[bytes], /) -> None: ...


class OnRecord(Protocol):
    """Makes the hook of one launch of a run; called in a process of its own.

    `run` has `path`, `launch` (its number), `started_at` (Unix time in seconds) and `command`. The hook is called with
    each record that the launch makes, as a line of results.jsonl; its `close`, if it has one, is called at the end.
    What they raise is counted and shown. A hook is behind the run, never in its way: docs/guides/plugins.md has the
    bounds.
    """

    def __call__(self, run: dict[str, Any], /) -> Callable[[dict[str, Any]], object]: ...
