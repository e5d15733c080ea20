"""Loading samples from a file, a directory or standard input, with all that is wrong with them.

`load` holds samples in a temporary file, not in memory: a hundred thousand cost a few bytes each.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import msgspec

from . import fields, readers
from .columns import Columns
from .harbor_tasks import HarborOptions
from .held import Dataset, line_of
from .row import DatasetRow
from .sample import DatasetError, Sample
from .selection import Selection, is_id
from .shards import Shard
from .sources import opened, path_of
from .template import Template
from .trees import tree_digest
from .unpacked import unpacked

ALL = Selection()
MAX_PROBLEMS = 100

CheckSample = Callable[[Sample, str], Iterable[str]]
"""Called with a sample and where its scorers stand; answers what else is wrong with it, each with its place."""
AdaptSample = Callable[[Sample], Sample]
"""Called with a sample; answers the one that is to be run, or raises ValueError with the problem of its container."""
CheckRepository = Callable[[str, str], str]
"""Called with a repository and a revision; answers the commit's full name, or raises ValueError with the problem."""

_EMPTY = {
    "jsonl": "expected JSON objects, one a line, with at least a prompt",
    "json": "expected an array of JSON objects, with at least a prompt",
    "csv": "expected a header and rows with at least a prompt",
    "tsv": "expected a header and rows with at least a prompt",
    "parquet": "expected rows with at least a prompt",
    "hub": "expected rows with at least a prompt",
    "harbor": "expected folders with a task.toml and an instruction.md",
    "folders": "expected folders with a prompt.md or a task.toml",
    "plug-in": "expected rows with at least a prompt",
}


def load(
    source: Path | str,
    *,
    selection: Selection = ALL,
    shard: Shard | None = None,
    columns: Columns | None = None,
    template: Template | None = None,
    format: str | None = None,
    stdin: IO[bytes] | None = None,
    check_sample: CheckSample | None = None,
    check_repository: CheckRepository | None = None,
    harbor: HarborOptions | None = None,
    adapt: AdaptSample | None = None,
) -> Dataset:
    """The samples of a file, a directory of task folders, a dataset of the hub (`hf://`), or (`-`) of `stdin`.

    Of the selected samples those of `shard` are left; that may be none.

    `format` is one of FORMATS, by default that of the file's suffix, else JSON lines; a file may be compressed with
    gzip. `harbor` is for tasks in Harbor's format. Raises DatasetError.
    """
    with ExitStack() as closing:
        spool = closing.enter_context(tempfile.TemporaryFile())
        left_out = closing.enter_context(tempfile.TemporaryFile())
        with ExitStack() as stack:
            found = opened(source, format, stdin, stack, harbor or HarborOptions())
            name = found.name
            reading = _Reading(
                found.directory,
                Path.is_dir,
                columns,
                template,
                check_sample,
                check_repository or _refuse_repository,
                adapt,
            )
            offsets, end, in_shard = array("Q"), 0, bytearray()
            for sample in reading.samples(found.rows):
                if selection.takes(sample):
                    offsets.append(end)
                    in_shard.append(shard is None or shard.takes(sample.id))
                    end += spool.write(line_of(sample))
                else:
                    left_out.write(json.dumps((sample.id, sample.digest)).encode() + b"\n")
        reading.finish(f"{name}: the dataset is empty; {_EMPTY[found.kind]}")
        _check_selection(selection, name, reading.names, len(offsets))
        order = selection.order(len(offsets))
        places = None if shard is None else array("L", (n for n, position in enumerate(order) if in_shard[position]))
        path = path_of(source)
        # From here on the dataset closes them.
        closing.pop_all()
        count, commit = len(reading.names), found.commit
        return Dataset(name, path, spool, offsets, order, selection.epochs, count, left_out, commit, places)


def parse(data: bytes, name: str, directory: Path, *, is_directory: fields.IsDirectory = Path.is_dir) -> list[Sample]:
    """The samples of JSON lines; `name` is what messages call them, `directory` where relative paths begin.

    Raises DatasetError with all problems at once.
    """
    reading = _Reading(directory, is_directory)
    samples = list(reading.samples(readers.json_rows(unpacked(io.BytesIO(data)), name)))
    reading.finish(f"{name}: the dataset is empty; {_EMPTY['jsonl']}")
    return samples


def read(path: Path) -> list[Sample]:
    """Return all samples of a dataset. Raises DatasetError."""
    with load(path) as dataset:
        return list(dataset)


class _Reading:
    """Makes samples of rows; what is wrong is kept until `finish`."""

    def __init__(
        self,
        directory: Path,
        is_directory: fields.IsDirectory,
        columns: Columns | None = None,
        template: Template | None = None,
        check_sample: CheckSample | None = None,
        check_repository: CheckRepository | None = None,
        adapt: AdaptSample | None = None,
    ) -> None:
        self.names: dict[str, str] = {}
        """Every id with where it stands."""
        self._directory = directory
        self._is_directory = is_directory
        self._columns = columns
        self._template = template
        self._check_sample = check_sample
        self._check_repository = check_repository
        self._adapt = adapt
        self._problems: list[str] = []
        self._more = 0
        self._trees: dict[str, str] = {}
        self._commits: dict[tuple[str, str], str | ValueError] = {}

    def samples(self, found: Iterable[DatasetRow]) -> Iterator[Sample]:
        """Yield the samples of the valid rows; report what is wrong with the others."""
        for row in found:
            if row.problem is not None:
                self._report(row.locate(row.problem))
                continue
            sample, wrong = self._sample(row)
            for problem in wrong:
                self._report(problem)
            if sample is not None and not wrong:
                yield sample

    def finish(self, empty: str) -> None:
        """Raises DatasetError if anything was wrong, or nothing was there."""
        if not self.names and not self._problems:
            self._problems.append(empty)
        if self._columns is not None and self.names:
            # The reason of most of the others.
            self._problems[:0] = self._columns.problems()
        if self._more:
            self._problems.append(f"and {self._more} more")
        if self._problems:
            raise DatasetError(self._problems)

    def _report(self, problem: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)
        else:
            self._more += 1

    def _sample(self, row: DatasetRow) -> tuple[Sample | None, list[str]]:
        wrong: list[str] = []
        ignored = frozenset[str]()
        try:
            value = row.convert(row.value) if self._columns is None else self._columns.fields_of(row)
        except ValueError as error:
            return None, [row.locate(str(error))]
        identity = fields.identity_of(value.get("id"))
        if identity is None:
            identity = row.name
        if self._template is not None:
            # Columns of a dataset as it was published; the template determines which of them count.
            ignored = frozenset(value) - fields.FIELDS
            if "prompts" in value:
                wrong.append(row.locate("cannot go with a template, which makes one prompt", "prompts"))
            else:
                try:
                    seen = {"id": identity, **value} if self._columns is None else {**row.value, "id": identity}
                    value = {**value, "prompt": self._template.render(seen)}
                except ValueError as error:
                    wrong.append(row.locate(str(error)))
                    value = {**value, "prompt": "-"}
        directory = row.directory or self._directory
        wrong += [
            row.locate(problem, name)
            for name, problem in fields.check(value, directory, self._is_directory, ignored=ignored)
        ]
        if identity in self.names:
            first = self.names[identity]
            wrong.append(
                row.locate(f"{fields.quote(identity)} is already the id of {first}; expected one of its own", "id")
            )
        else:
            tail = row.where.rpartition(":")[2]
            self.names[identity] = f"line {tail}" if tail.isdigit() else tail
        if wrong:
            return None, wrong
        sample = fields.make(value, identity, directory)
        if row.harbor is not None:
            sample = msgspec.structs.replace(sample, harbor=row.harbor)
        if sample.workspace is not None and self._check_repository is not None:
            try:
                sample = msgspec.structs.replace(
                    sample, workspace=self._pinned(sample.workspace, self._check_repository)
                )
            except ValueError as error:
                wrong.append(row.locate(str(error), "workspace"))
        if sample.container is not None and sample.container.build is not None:
            tree = self._tree(sample.container.build)
            sample = msgspec.structs.replace(sample, container=dataclasses.replace(sample.container, tree=tree))
        if self._adapt is not None:
            try:
                sample = self._adapt(sample)
            except ValueError as error:
                wrong.append(row.locate(str(error), "container"))
        if self._check_sample is not None:
            wrong += self._check_sample(sample, row.wheres.get("scorers", row.where))
        return sample, wrong

    def _pinned(self, workspace: dict[str, Any], check_repository: CheckRepository) -> dict[str, Any]:
        """Return the workspace with its contents identified: by the commit's full name, or a digest of the template."""
        if "template" in workspace:
            return {**workspace, "tree": self._tree(workspace["template"])}
        if "git" not in workspace:
            return workspace
        source = (workspace["git"], workspace["commit"])
        if source not in self._commits:
            try:
                self._commits[source] = check_repository(*source)
            except ValueError as error:
                self._commits[source] = error
        commit = self._commits[source]
        if isinstance(commit, ValueError):
            raise commit
        return {**workspace, "commit": commit}

    def _tree(self, directory: str) -> str:
        if directory not in self._trees:
            self._trees[directory] = tree_digest(Path(directory))
        return self._trees[directory]


def _check_selection(selection: Selection, name: str, names: dict[str, str], taken: int) -> None:
    """Raises DatasetError when it names samples that are not there, or leaves none."""
    problems = [
        f"--sample-id {wanted}: no sample of {name} has this id; it has {_some(names)}"
        for wanted in selection.sample_ids
        if wanted not in names and not any(is_id(wanted, identity) for identity in names)
    ]
    if not problems and not taken:
        what = [f"--filter {condition.text!r}" for condition in selection.filters]
        what += [f"--sample-id {wanted}" for wanted in selection.sample_ids]
        problems.append(f"{name}: {' and '.join(what)} leave none of its {len(names)} samples")
    if problems:
        raise DatasetError(problems)


def _some(names: dict[str, str]) -> str:
    few = ", ".join(list(names)[:10])
    return few if len(names) <= 10 else f"{few} and {len(names) - 10} more"


def _refuse_repository(repository: str, revision: str) -> str:
    raise ValueError(f"git: {repository}: this program has no use for repositories; expected a template")
