"""Formats of an export: one table of those that are built in, and the exporters of plug-ins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..plugins import discovery
from ..store import RunStore
from .atif import write_atif, write_atif_1_8
from .chat import write_chat
from .errors import ExportError
from .harbor import write_harbor
from .inspect_log import write_inspect
from .plugin import writer_of
from .swebench import write_swebench
from .table import write_csv, write_jsonl, write_parquet


@dataclass(frozen=True, slots=True)
class Format:
    """A format by the name of `--format`. It has one of `write` and `write_directory`."""

    name: str
    write: Callable[[RunStore, IO[bytes], str | None], None] | None = None
    """Writes a run, or one variant of it, to an open file. Raises ExportError."""
    write_directory: Callable[[RunStore, Path, str | None], None] | None = None
    """Writes it into a directory, which is there and empty. Raises ExportError."""
    ending: str | None = None
    """The ending of a file's name that stands for the format."""
    for_stdout: bool = False
    each_variant: bool = False
    """True if one file or directory holds one configuration only, so that each variant gets its own."""


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("jsonl", write_jsonl, ending=".jsonl", for_stdout=True),
        Format("csv", write_csv, ending=".csv", for_stdout=True),
        Format("parquet", write_parquet, ending=".parquet"),
        Format("inspect", write_inspect, ending=".eval", each_variant=True),
        Format("atif", write_atif, for_stdout=True),
        Format("atif-1.8", write_atif_1_8, for_stdout=True),
        Format("chat", write_chat, for_stdout=True),
        Format("swebench", write_swebench, for_stdout=True, each_variant=True),
        Format("harbor", write_directory=write_harbor, each_variant=True),
    )
}


def format_of(name: str | None, path: Path | None) -> Format:
    """Return the format that is named, or that the name of a file ends with; JSON lines without a file.

    Raises ExportError.
    """
    if name is None:
        if path is None:
            return FORMATS["jsonl"]
        endings = {each.ending: each for each in FORMATS.values() if each.ending is not None}
        found = endings.get(path.suffix.lower())
        if found is None:
            raise ExportError(
                f"{path}: no known ending; name a format of {', '.join(FORMATS)} with --format, or end it with one of "
                f"{', '.join(endings)}"
            )
        return found
    if name in FORMATS:
        return FORMATS[name]
    plugins = discovery.find(discovery.EXPORTERS, FORMATS)
    if name not in plugins:
        raise ExportError(f"no format {name!r}; expected one of {', '.join((*FORMATS, *plugins))}; {discovery.LIST}")
    try:
        return Format(name, writer_of(plugins[name]), for_stdout=True)
    except discovery.PluginError as error:
        raise ExportError(str(error)) from None
