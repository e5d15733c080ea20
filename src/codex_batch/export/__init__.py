"""A run as files that other programs read: tables, a log of Inspect AI, trajectories, chats, and predictions.

table         one row a sample: jsonl, csv, parquet
inspect_log   an .eval file for `inspect view` and inspect_ai.log
messages      notifications of an attempt -> messages          pure
conversation  session files of codex -> steps                  pure
recorded      the session files that a run has kept of a sample
atif          trajectories in ATIF
chat          chats for fine-tuning
swebench      predictions of SWE-bench
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from codex_app_server._runtime.files import replacing

from ..store import RunStore
from .atif import write_atif, write_atif_1_8
from .chat import write_chat
from .errors import ExportError
from .inspect_log import write_inspect
from .swebench import write_swebench
from .table import write_csv, write_jsonl, write_parquet

__all__ = ["FORMATS", "ExportError", "check_variant", "export", "export_to"]

FORMATS: dict[str, Callable[[RunStore, IO[bytes], str | None], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "inspect": write_inspect,
    "atif": write_atif,
    "atif-1.8": write_atif_1_8,
    "chat": write_chat,
    "swebench": write_swebench,
}
ENDINGS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet", ".eval": "inspect"}
# Of a run with variants each has a file of its own.
OF_ONE_VARIANT = ("inspect", "swebench")


def export(store: RunStore, path: Path, format: str | None = None, variant: str | None = None) -> list[Path]:
    """Write the finished samples of a run, or of one variant, to a file; return the files that were written.

    The format is the one that is named or that the name of the file ends with. An Inspect log is of one configuration,
    and so are predictions: of a run with variants each has a file of its own, whose name has that of the variant before
    its ending.

    A file is there whole or as it was. Nothing holds the whole run in memory. Raises ExportError.
    """
    chosen = format or ENDINGS.get(path.suffix.lower())
    if chosen is None:
        raise ExportError(
            f"{path}: no known ending; name a format of {', '.join(FORMATS)}, or end it with one of "
            f"{', '.join(ENDINGS)}"
        )
    names = check_variant(store, variant)
    files = {path: variant}
    if chosen in OF_ONE_VARIANT and names and variant is None:
        files = {path.with_name(f"{path.stem}-{name}{path.suffix}"): name for name in names}
    for name, of_variant in files.items():
        try:
            with replacing(name) as file:
                export_to(store, file, chosen, of_variant)
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


def export_to(store: RunStore, file: IO[bytes], format: str, variant: str | None = None) -> None:
    """Write the finished samples of a run, or of one variant, to an open file. Raises ExportError."""
    writer: Any = FORMATS.get(format)
    if writer is None:
        raise ExportError(f"no format {format!r}; expected one of {', '.join(FORMATS)}")
    writer(store, file, variant)
