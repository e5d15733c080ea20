"""Sources of datasets as rows: files by their ending and first bytes, directories, standard input, the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from codex_app_server._runtime.files import open_file, resolved

from . import arrow, folders, harbor_tasks, hub, plugin, readers
from .row import DatasetRow
from .sample import DatasetError
from .unpacked import ByteReader, unpacked

STDIN = "-"
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "folders", "harbor")
_OF_STREAMS = ("jsonl", "json", "csv", "tsv")
_OF_DIRECTORIES = ("folders", "harbor")
_FORMAT_OF = {".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"}


def path_of(source: Path | str) -> Path | None:
    """The file or directory of a source, as a real path; None for standard input and datasets of the hub.

    Raises DatasetError.
    """
    if str(source) == STDIN:
        return None
    if hub.is_hub(source):
        directory = hub.parse(str(source)).directory
        return None if directory is None else resolved(directory)
    return resolved(source)


@dataclass(frozen=True, slots=True)
class Opened:
    """A dataset whose rows can be read."""

    name: str
    """Its name in messages."""
    kind: str
    rows: Iterator[DatasetRow]
    directory: Path
    """Directory in which relative paths begin."""
    commit: str | None = None


def opened(
    source: Path | str,
    format: str | None,
    stdin: IO[bytes] | None,
    stack: ExitStack,
    harbor: harbor_tasks.HarborOptions,
) -> Opened:
    """Open a source; what is to be closed goes on `stack`. Raises DatasetError."""
    reader = None if format is None or format in FORMATS else plugin.reader_of(format, FORMATS)
    if str(source) == STDIN:
        if stdin is None:
            raise DatasetError(["<stdin>: there is no standard input; name a dataset"])
        kind = format or "jsonl"
        if kind not in _OF_STREAMS:
            raise DatasetError([f"<stdin>: {kind} cannot be read from standard input; expected jsonl, csv or tsv"])
        return Opened("<stdin>", kind, _rows(kind, unpacked(stdin), "<stdin>"), Path.cwd())
    if hub.is_hub(source):
        asked = hub.parse(str(source))
        if format is not None:
            raise DatasetError([f"{source}: --format {format} is for files; expected none with {hub.SCHEME}"])
        loaded = hub.load(asked, stack)
        return Opened(str(source), "hub", loaded.rows, asked.directory or Path.cwd(), loaded.commit)
    path = Path(source)
    if reader is not None:
        return Opened(str(path), "plug-in", reader(path), path.absolute() if path.is_dir() else path.parent.absolute())
    try:
        is_directory = path.is_dir()
    except OSError as error:
        raise DatasetError([f"{path}: cannot be read: {error.strerror}; expected a dataset"]) from None
    if is_directory or format in _OF_DIRECTORIES:
        if not is_directory:
            raise DatasetError([f"{path}: is not a directory; expected one of task folders"])
        if format == "harbor":
            return Opened(str(path), format, harbor_tasks.tasks(path, harbor), resolved(path))
        if format not in (None, "folders"):
            raise DatasetError([f"{path}: cannot be read: Is a directory; expected a file of {format}"])
        return Opened(str(path), "folders", folders.folders(path), resolved(path))
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    kind = format or _FORMAT_OF.get(inner.suffix.lower(), "jsonl")
    try:
        file = stack.enter_context(open_file(path))
    except FileNotFoundError:
        raise DatasetError([f"{path}: no such file; expected a dataset, or a directory of task folders"]) from None
    except OSError as error:
        raise DatasetError([f"{path}: cannot be read: {error.strerror}; expected a dataset"]) from None
    if kind == "parquet":
        if path != inner:
            raise DatasetError([f"{path}: Parquet is compressed by itself; expected it without gzip: use gunzip"])
        return Opened(str(path), kind, arrow.parquet(path), path.parent.absolute())
    return Opened(str(path), kind, _rows(kind, unpacked(file), str(path)), path.parent.absolute())


def _rows(kind: str, file: ByteReader, name: str) -> Iterator[DatasetRow]:
    if kind in ("jsonl", "json"):
        return readers.json_rows(file, name)
    return readers.table(file, name, "\t" if kind == "tsv" else ",")
