"""The gates of a run: decided by what its store holds, and reported in the files that CI systems read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import replacing
from codex_app_server._runtime.text import plural
from codex_pool.runtime import workflow_commands
from codex_pool.runtime.os_errors import describe

from ..exit_codes import GATE_FAILED, NOT_STARTED, OK, SOME_FAILED
from ..store import RunStore
from ..store.reader import SHARD
from . import github, junit
from .cases import Case, Overview, case_of
from .columns import columns_of
from .options import GateOptions
from .prepare import scorers_of_store
from .verdicts import Prepared, Verdict, decide

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
GATE = "gate"
"""Name of a gate's row in a summary."""


def exit_code(code: int, verdicts: Iterable[Verdict], problem: str | None) -> int:
    """The exit code of a run that had `code` without its gates.

    A run that did not start or was interrupted keeps its code. A failed gate comes before samples that failed. If all
    gates have passed, samples without a result are as few as --min-scored allows, and are no failure of the command;
    a `problem` of the run itself still is.
    """
    found = list(verdicts)
    if not found or code not in (OK, SOME_FAILED):
        return code
    if not all(verdict.passed for verdict in found):
        return GATE_FAILED
    return code if problem is not None else OK


@dataclass(frozen=True, slots=True)
class Published:
    """Files and messages for CI: JUnit file, annotations still to be printed as they are, and what went wrong."""

    junit: Path | None = None
    annotations: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The exit code of a run with its gates, their verdicts, and the files of it."""

    code: int
    verdicts: list[Verdict] = field(default_factory=list)
    published: Published = field(default_factory=Published)

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Gates as rows of a summary, and the file that has them."""
        rows = [
            (GATE, f"{'passed' if verdict.passed else 'FAILED'}: {verdict.gate}: {verdict.reason}")
            for verdict in self.verdicts
        ]
        if self.published.junit is not None:
            rows.append(("test report", str(self.published.junit)))
        return [*rows, *(("not written", problem) for problem in self.published.problems)]

    def annotate(self) -> None:
        """Print the annotations, as they are, to the stderr that a runner reads."""
        stream = getattr(sys.stderr, "raw_text", sys.stderr)
        with contextlib.suppress(OSError):
            sys.stderr.flush()
            for line in self.published.annotations:
                print(line, file=stream, flush=True)


@dataclass(frozen=True, slots=True)
class Gates:
    """Gates of one command, checked."""

    options: GateOptions = field(default_factory=GateOptions)
    prepared: Prepared = field(default_factory=Prepared)

    def decide(self, store: RunStore) -> list[Verdict]:
        """Decide the gates for the samples of the last command, by what is known of them now."""
        if not self.options.any_gate:
            return []
        columns = columns_of(store.samples(selected=True), scorers_of_store(store).names)
        return decide(self.options, columns, self.prepared)

    def judge(self, store: RunStore, code: int, problem: str | None, redact: Callable[[str], str] = str) -> Judgement:
        """Decide the gates of a run that ended with `code` and write its files; nothing if it did not start."""
        if code in NOT_STARTED:
            return Judgement(code)
        verdicts = self.decide(store)
        code = exit_code(code, verdicts, problem)
        published = publish(self.options, store, verdicts, redact=redact)
        if code == OK and published.junit != self.options.junit:
            # It was asked for. A summary that cannot be written is a message only.
            code = SOME_FAILED
        return Judgement(code, verdicts, published)


def publish(
    options: GateOptions,
    store: RunStore,
    verdicts: list[Verdict],
    environ: Mapping[str, str] = os.environ,
    redact: Callable[[str], str] = str,
) -> Published:
    """Write the JUnit file that was asked for, and on GitHub Actions the step summary."""
    on_github = workflow_commands.is_on(environ)
    if options.junit is None and not on_github:
        return Published()
    names = scorers_of_store(store).names
    info, overview = store.info(), Overview()
    for row in store.samples(selected=True):
        overview.add(row, case_of(row, names(row), redact))
    name, problems = redact(_name_of(info)), list[str]()
    title = name if info.get(SHARD) is None else f"{name}, shard {info[SHARD]}"

    def cases(variant: str) -> Iterator[Case]:
        for row in store.samples(selected=True, variant=variant):
            yield case_of(row, names(row), redact)

    written = None
    if options.junit is not None:
        try:
            with replacing(options.junit) as file:
                for text in _junit(name, title, info["created_at"], cases, overview, verdicts):
                    file.write(text.encode())
            written = options.junit
        except OSError as error:
            problems.append(f"--junit: {describe(error)}")
    if not on_github:
        return Published(written, [], problems)
    target = environ.get(SUMMARY_VARIABLE)
    if target:
        try:
            _append(Path(target), github.summary(title, overview, verdicts, redact))
        except OSError as error:
            problems.append(f"{SUMMARY_VARIABLE}: {describe(error)}")
    annotations = github.workflow_commands(overview, verdicts, redact)
    return Published(written, annotations, problems)


def _junit(
    name: str,
    title: str,
    began_at: float | None,
    cases: Callable[[str], Iterable[Case]],
    overview: Overview,
    verdicts: list[Verdict],
) -> Iterator[str]:
    """The file's parts: cases are of the dataset `name`, whatever part of it `title` names."""
    columns = overview.columns
    time_s = sum(column.time_s for column in columns.values())
    yield from junit.head(title, [column.kinds for column in columns.values()], verdicts, time_s)
    for variant, column in columns.items():
        suite = f"{title}@{variant}" if variant else title
        # A dot divides packages from classes.
        classname = ".".join(part.replace(".", "_") for part in (Path(name).stem, variant) if part)
        yield from junit.suite(suite, column.kinds, column.time_s, began_at, cases(variant), classname)
    yield from junit.tail(verdicts)


def _name_of(info: Mapping[str, Any]) -> str:
    """The name of the dataset without its directory: the same in every run, which test reports compare."""
    dataset = (info["config"].get("dataset") or {}).get("name")
    return Path(str(dataset)).name if dataset else Path(str(info["path"])).name


def _append(path: Path, text: str) -> None:
    """Append a step summary, as far as GitHub takes it. Raises OSError."""
    with path.open("ab") as file:
        room = github.SUMMARY_BYTES - 1 - file.tell()
        data = text.encode()
        if len(data) > room:
            note = f"\n{plural(len(data), 'byte')} of a summary are left out: GitHub takes 1 MiB of a step\n".encode()
            data = note if len(note) <= room else b""
        file.write(data)
