"""A run as files that other programs read: tables, a log of Inspect AI, trajectories, chats, and predictions.

formats       the formats by name: those below, and the exporters of plug-ins
table         one row a sample: jsonl, csv, parquet
inspect_log   an .eval file for `inspect view` and inspect_ai.log
messages      notifications of an attempt -> messages        pure
conversation  session files of codex -> steps                pure
recorded      the session files that a run has kept of a sample
atif          trajectories in ATIF
chat          chats for fine-tuning
swebench      predictions of SWE-bench
harbor        a job of Harbor: a directory
plugin        a run as the exporter of a plug-in reads it
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import IO

from codex_app_server._runtime.files import PARTIAL, replacing

from ..store import RunStore
from .errors import ExportError
from .formats import FORMATS, Format, format_of

__all__ = ["FORMATS", "ExportError", "Format", "check_variant", "export", "export_to", "format_of"]


def export(store: RunStore, path: Path, format: str | None = None, variant: str | None = None) -> list[Path]:
    """Write the finished samples of a run, or of one variant, to a file or directory; return what was written.

    The format is the one that is named or that the name of the file ends with. Some, as an Inspect log, are of one
    configuration: of a run with variants each has a file of its own, whose name has that of the variant before its
    ending. A file is there whole or as it was; a directory must be new or empty. Nothing holds the whole run in memory.
    Raises ExportError.
    """
    chosen = format_of(format, path)
    names = check_variant(store, variant)
    files = {path: variant}
    if chosen.each_variant and names and variant is None:
        files = {path.with_name(f"{path.stem}-{name}{path.suffix}"): name for name in names}
    for name, of_variant in files.items():
        try:
            if chosen.write_directory is not None:
                _write_directory(store, name, chosen, of_variant)
                continue
            with replacing(name) as file:
                _write(store, file, chosen, of_variant)
        except OSError as error:
            raise ExportError(f"{name}: cannot be written: {error.strerror or error}; name another file") from None
    return list(files)


def check_variant(store: RunStore, variant: str | None) -> list[str]:
    """Return the variants of the run. Raises ExportError where one is named that it has not."""
    names = store.variant_names()
    if variant is not None and variant not in names:
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise ExportError(f"{store.path} has no variant {variant!r}; {known}")
    return names


def export_to(store: RunStore, file: IO[bytes], format: str | None = None, variant: str | None = None) -> None:
    """Write the finished samples of a run, or of one variant, to an open file, as JSON lines unless a format is named.

    Raises ExportError.
    """
    _write(store, file, format_of(format, None), variant)


def _write(store: RunStore, file: IO[bytes], format: Format, variant: str | None) -> None:
    if format.write is None:
        raise ExportError(f"{format.name} is a directory; name one with -o")
    format.write(store, file, variant)


def _write_directory(store: RunStore, path: Path, format: Format, variant: str | None) -> None:
    """Write beside the path, then rename: the directory is there whole or not at all."""
    assert format.write_directory is not None
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExportError(f"{path}: is there, and is no empty directory; name another one for {format.name}")
    partial = path.with_name(path.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        format.write_directory(store, partial, variant)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        raise
