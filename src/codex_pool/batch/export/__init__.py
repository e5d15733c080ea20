"""A run as files that other programs read: JSON lines, CSV, Parquet, and a log of Inspect AI.

table         one row a sample: jsonl, csv, parquet
inspect_log   an .eval file for `inspect view` and inspect_ai.log
transcript    notifications of an attempt -> messages        pure
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..store import RunStore
from .errors import ExportError
from .inspect_log import write_inspect
from .table import write_csv, write_jsonl, write_parquet

__all__ = ["FORMATS", "ExportError", "export", "export_to"]

FORMATS: dict[str, Callable[[RunStore, IO[bytes]], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "inspect": write_inspect,
}
ENDINGS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet", ".eval": "inspect"}


def export(store: RunStore, path: Path, format: str | None = None) -> str:
    """Write the finished samples of a run to a file, in the format that is named or that its name ends with; which.

    The file is there whole or as it was. Nothing holds the whole run in memory. Raises ExportError.
    """
    chosen = format or ENDINGS.get(path.suffix.lower())
    if chosen is None:
        raise ExportError(
            f"{path}: no known ending; name a format of {', '.join(FORMATS)}, or end it with one of "
            f"{', '.join(ENDINGS)}"
        )
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            export_to(store, file, chosen)
        os.replace(temporary, path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}; name another file") from None
    finally:
        temporary.unlink(missing_ok=True)
    return chosen


def export_to(store: RunStore, file: IO[bytes], format: str) -> None:
    """Write the finished samples of a run to an open file. Raises ExportError."""
    writer: Any = FORMATS.get(format)
    if writer is None:
        raise ExportError(f"no format {format!r}; expected one of {', '.join(FORMATS)}")
    writer(store, file)
