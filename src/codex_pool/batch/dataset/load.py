"""From a file, a directory or standard input to samples, or all that is wrong with them.

`load` holds samples in a temporary file, not in memory: a hundred thousand cost a few bytes each.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import msgspec

from codex_app_server._files import open_file, resolved

from . import fields, folders, rows
from .rows import Row
from .sample import DatasetError, Sample
from .selection import Selection, is_id
from .template import Template
from .trees import tree_digest

STDIN = "-"
ALL = Selection()
FORMATS = ("jsonl", "csv", "tsv", "parquet", "folders")
MAX_PROBLEMS = 100

CheckSample = Callable[[Sample, str], Iterable[str]]
"""Called with a sample and where its scorers stand; answers what else is wrong with it, each with its place."""
CheckRepository = Callable[[str, str], str]
"""Called with a repository and a revision; answers the commit's full name, or raises ValueError with the problem."""

_FORMAT_OF = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"}
_EMPTY = {
    "jsonl": "expected JSON objects, one a line, with at least a prompt",
    "csv": "expected a header and rows with at least a prompt",
    "tsv": "expected a header and rows with at least a prompt",
    "parquet": "expected rows with at least a prompt",
    "folders": "expected folders with a prompt.md or a task.toml",
}


class Dataset:
    """The selected samples of a dataset, in order; may be iterated any number of times. Close it in the end."""

    def __init__(
        self,
        name: str,
        path: Path | None,
        spool: IO[bytes],
        offsets: array[int],
        order: array[int],
        epochs: int,
        found: int,
        left_out: IO[bytes] | None = None,
    ) -> None:
        self.name = name
        self.path = path
        """Its file or directory; None for standard input."""
        self.epochs = epochs
        self.found = found
        """How many samples there were before the selection."""
        self._spool = spool
        self._offsets = offsets
        self._order = order
        self._left_out = left_out

    def __len__(self) -> int:
        return len(self._order) * self.epochs

    def __iter__(self) -> Iterator[Sample]:
        for epoch in range(1, self.epochs + 1):
            for position in self._order:
                sample = _read_at(self._spool, self._offsets[position])
                yield sample if epoch == 1 else msgspec.structs.replace(sample, epoch=epoch)

    @property
    def fingerprint(self) -> str:
        """Of ids and digests of the selected samples, in order."""
        digest = hashlib.sha256()
        for position in self._order:
            sample = _read_at(self._spool, self._offsets[position])
            digest.update(f"{sample.id}\0{sample.digest}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def digests(self) -> Iterator[tuple[str, str]]:
        """Id and digest of every sample of the dataset, those that the selection leaves out included."""
        for offset in self._offsets:
            sample = _read_at(self._spool, offset)
            yield sample.id, sample.digest
        if self._left_out is not None:
            self._left_out.seek(0)
            for line in self._left_out:
                yield tuple(json.loads(line))

    def close(self) -> None:
        self._spool.close()
        if self._left_out is not None:
            self._left_out.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    source: Path | str,
    *,
    selection: Selection = ALL,
    template: Template | None = None,
    format: str | None = None,
    stdin: IO[bytes] | None = None,
    check_sample: CheckSample | None = None,
    check_repository: CheckRepository | None = None,
) -> Dataset:
    """The samples of a file, a directory of task folders, or (`-`) of `stdin`.

    `format` is one of FORMATS, by default what the name says, else JSON lines. Raises DatasetError.
    """
    with ExitStack() as closing:
        spool = closing.enter_context(tempfile.TemporaryFile())
        left_out = closing.enter_context(tempfile.TemporaryFile())
        with ExitStack() as stack:
            name, kind, found, directory = _open(source, format, stdin, stack)
            reading = _Reading(directory, Path.is_dir, template, check_sample, check_repository or _refuse_repository)
            offsets, end = array("Q"), 0
            for sample in reading.samples(found):
                if selection.takes(sample):
                    offsets.append(end)
                    end += spool.write(line_of(sample))
                else:
                    left_out.write(json.dumps((sample.id, sample.digest)).encode() + b"\n")
        reading.finish(f"{name}: the dataset is empty; {_EMPTY[kind]}")
        _check_selection(selection, name, reading.names, len(offsets))
        order = selection.order(len(offsets))
        path = None if str(source) == STDIN else resolved(source)
        # From here on the dataset closes them.
        closing.pop_all()
        return Dataset(name, path, spool, offsets, order, selection.epochs, len(reading.names), left_out)


def parse(data: bytes, name: str, directory: Path, *, is_directory: fields.IsDirectory = Path.is_dir) -> list[Sample]:
    """The samples of JSON lines; `name` is what messages call them, `directory` where relative paths begin.

    Raises DatasetError with all problems at once.
    """
    reading = _Reading(directory, is_directory)
    samples = list(reading.samples(rows.json_lines(io.BytesIO(data), name)))
    reading.finish(f"{name}: the dataset is empty; {_EMPTY['jsonl']}")
    return samples


def read(path: Path) -> list[Sample]:
    """All samples of a dataset. Raises DatasetError."""
    with load(path) as dataset:
        return list(dataset)


class _Reading:
    """Rows into samples; what is wrong is kept until `finish`."""

    def __init__(
        self,
        directory: Path,
        is_directory: fields.IsDirectory,
        template: Template | None = None,
        check_sample: CheckSample | None = None,
        check_repository: CheckRepository | None = None,
    ) -> None:
        self.names: dict[str, str] = {}
        """Every id with where it stands."""
        self._directory = directory
        self._is_directory = is_directory
        self._template = template
        self._check_sample = check_sample
        self._check_repository = check_repository
        self._problems: list[str] = []
        self._more = 0
        self._trees: dict[str, str] = {}
        self._commits: dict[tuple[str, str], str | ValueError] = {}

    def samples(self, found: Iterable[Row]) -> Iterator[Sample]:
        """Those that are right."""
        for row in found:
            if row.problem is not None:
                self._say(row.says(row.problem))
                continue
            sample, wrong = self._sample(row)
            for problem in wrong:
                self._say(problem)
            if sample is not None and not wrong:
                yield sample

    def finish(self, empty: str) -> None:
        """Raises DatasetError if anything was wrong, or nothing was there."""
        if not self.names and not self._problems:
            self._problems.append(empty)
        if self._more:
            self._problems.append(f"and {self._more} more")
        if self._problems:
            raise DatasetError(self._problems)

    def _say(self, problem: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)
        else:
            self._more += 1

    def _sample(self, row: Row) -> tuple[Sample | None, list[str]]:
        wrong: list[str] = []
        value, ignored = row.value, frozenset[str]()
        identity = fields.identity_of(value.get("id"))
        if identity is None:
            identity = row.name
        if self._template is not None:
            # Columns of a dataset as it was published; the template says which of them count.
            ignored = frozenset(value) - fields.FIELDS
            if "prompts" in value:
                wrong.append(row.says("cannot go with a template, which makes one prompt", "prompts"))
            else:
                try:
                    value = {**value, "prompt": self._template.render({"id": identity, **value})}
                except ValueError as error:
                    wrong.append(row.says(str(error)))
                    value = {**value, "prompt": "-"}
        directory = row.directory or self._directory
        wrong += [
            row.says(problem, name)
            for name, problem in fields.check(value, directory, self._is_directory, ignored=ignored)
        ]
        if identity in self.names:
            first = self.names[identity]
            wrong.append(
                row.says(f"{fields.quote(identity)} is already the id of {first}; expected one of its own", "id")
            )
        else:
            tail = row.where.rpartition(":")[2]
            self.names[identity] = f"line {tail}" if tail.isdigit() else tail
        if wrong:
            return None, wrong
        sample = fields.make(value, identity, directory)
        if sample.workspace is not None and self._check_repository is not None:
            try:
                sample = msgspec.structs.replace(
                    sample, workspace=self._pinned(sample.workspace, self._check_repository)
                )
            except ValueError as error:
                wrong.append(row.says(str(error), "workspace"))
        if self._check_sample is not None:
            wrong += self._check_sample(sample, row.wheres.get("scorers", row.where))
        return sample, wrong

    def _pinned(self, workspace: dict[str, Any], check_repository: CheckRepository) -> dict[str, Any]:
        """The workspace with what is in it said beyond doubt: the commit's full name, or a digest of the template."""
        if "template" in workspace:
            template = workspace["template"]
            if template not in self._trees:
                self._trees[template] = tree_digest(Path(template))
            return {**workspace, "tree": self._trees[template]}
        if "git" not in workspace:
            return workspace
        place = (workspace["git"], workspace["commit"])
        if place not in self._commits:
            try:
                self._commits[place] = check_repository(*place)
            except ValueError as error:
                self._commits[place] = error
        commit = self._commits[place]
        if isinstance(commit, ValueError):
            raise commit
        return {**workspace, "commit": commit}


def _open(
    source: Path | str, format: str | None, stdin: IO[bytes] | None, stack: ExitStack
) -> tuple[str, str, Iterator[Row], Path]:
    """(what messages call it, its format, its rows, where relative paths begin). Raises DatasetError."""
    if str(source) == STDIN:
        if stdin is None:
            raise DatasetError(["<stdin>: there is no standard input; name a dataset"])
        kind = format or "jsonl"
        if kind in ("parquet", "folders"):
            raise DatasetError([f"<stdin>: {kind} cannot be read from standard input; expected jsonl, csv or tsv"])
        return "<stdin>", kind, _rows(kind, stdin, "<stdin>"), Path.cwd()
    path = Path(source)
    try:
        is_directory = path.is_dir()
    except OSError as error:
        raise DatasetError([f"{path}: cannot be read: {error.strerror}; expected a dataset"]) from None
    if is_directory or format == "folders":
        if not is_directory:
            raise DatasetError([f"{path}: is not a directory; expected one of task folders"])
        if format not in (None, "folders"):
            raise DatasetError([f"{path}: cannot be read: Is a directory; expected a file of {format}"])
        return str(path), "folders", folders.folders(path), resolved(path)
    kind = format or _FORMAT_OF.get(path.suffix.lower(), "jsonl")
    try:
        file = stack.enter_context(open_file(path))
    except FileNotFoundError:
        raise DatasetError([f"{path}: no such file; expected a dataset, or a directory of task folders"]) from None
    except OSError as error:
        raise DatasetError([f"{path}: cannot be read: {error.strerror}; expected a dataset"]) from None
    found = rows.parquet(path) if kind == "parquet" else _rows(kind, file, str(path))
    return str(path), kind, found, path.parent.absolute()


def _rows(kind: str, lines: Iterable[bytes], name: str) -> Iterator[Row]:
    if kind == "jsonl":
        return rows.json_lines(lines, name)
    return rows.table(lines, name, "\t" if kind == "tsv" else ",")


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


def _read_at(spool: IO[bytes], offset: int) -> Sample:
    spool.seek(offset)
    line = spool.readline()
    try:
        return Sample.from_json(msgspec.json.decode(line))
    except msgspec.DecodeError:
        return Sample.from_json(json.loads(line))


def line_of(sample: Sample) -> bytes:
    """A sample as a line of a dataset's spool."""
    value = sample.to_json()
    try:
        return msgspec.json.encode(value) + b"\n"
    except UnicodeEncodeError:
        # The names of files may be no Unicode.
        return json.dumps(value).encode() + b"\n"
