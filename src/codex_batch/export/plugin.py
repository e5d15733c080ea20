"""A run as the exporter of a plug-in reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..plugins import Exporter
from ..plugins.discovery import Plugin
from ..store import RunStore
from ..store.export import exported
from .errors import ExportError
from .table import finished


class StoredRun:
    """A `plugins.Run` over a store."""

    def __init__(self, store: RunStore, variant: str | None) -> None:
        self._store = store
        self.variant = variant

    @property
    def path(self) -> Path:
        return self._store.path

    @property
    def info(self) -> Mapping[str, Any]:
        return self._store.info()

    def records(self) -> Iterator[dict[str, Any]]:
        return map(exported, finished(self._store, self.variant))

    def events(self, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        return self._store.events(self._number(record), record["attempts"])

    def artifact(self, record: Mapping[str, Any], name: str) -> bytes:
        return self._store.artifact(self._number(record), name)

    def _number(self, record: Mapping[str, Any]) -> int:
        return self._store.sample(record["id"], record["epoch"], record.get("variant", "")).n


def writer_of(plugin: Plugin) -> Callable[[RunStore, IO[bytes], str | None], None]:
    """Return the exporter of a plug-in as a writer of a format, whose errors are ExportError. Raises PluginError."""
    exporter: Exporter = plugin.load()

    def write(store: RunStore, file: IO[bytes], variant: str | None) -> None:
        try:
            exporter(StoredRun(store, variant), file)
        except (BrokenPipeError, ExportError):
            raise
        except (Exception, SystemExit) as error:
            raise ExportError(f"{plugin} failed: {type(error).__name__}: {error}; ask its authors") from error

    return write
