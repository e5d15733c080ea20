"""Files that are kept of the container of an attempt, by the names that Harbor gives them in a trial's directory."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from .report import REPORT, Report
from .rewards import JSON, TEXT

MAX_FILE_BYTES, MAX_BYTES, MAX_FILES = 16 * 2**20, 64 * 2**20, 2_000
MAX_REWARD_BYTES = 2**16
MANIFEST = "artifacts/manifest.json"


class Collected:
    """Collects files, in bounds: what is beyond them is left out, and the manifest lists it as skipped."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._bytes = 0
        self._manifests: dict[str, list[dict[str, Any]]] = {}

    def add(self, source: str, path: Path, prefix: str, name: str) -> dict[str, bytes]:
        """Keep the file or the directory at `path`, which was `source` in the container, as `prefix` and `name`.

        Returns the files by their names below `path`. Links, and what is no file, are left out.
        """
        found: dict[str, bytes] = {}
        is_directory, skipped = path.is_dir() and not path.is_symlink(), False
        for relative, file in _files(path) if is_directory else [("", path)]:
            data = self._read(file, is_reward=name == "verifier" and relative in (TEXT, JSON))
            if data is None:
                skipped = True
                continue
            found[relative] = data
            self._files[f"{prefix}{name}/{relative}" if relative else f"{prefix}{name}"] = data
        status = "skipped" if skipped else "ok" if found else "empty"
        self._note(source, prefix, name, "directory" if is_directory else "file", status)
        return found

    def note(self, source: str, prefix: str, name: str, state: str) -> None:
        """Note a path that was `missing`, or an `empty` directory."""
        if state == "missing":
            self._note(source, prefix, name, "file", "failed")
        else:
            self._note(source, prefix, name, "directory", state)

    def with_report(self, report: Report) -> dict[str, bytes]:
        """All files, with the report and the manifests of artifacts."""
        manifests = {
            f"{prefix}{MANIFEST}": json.dumps(entries, indent=1).encode() for prefix, entries in self._manifests.items()
        }
        return {**self._files, **manifests, REPORT: report.to_json()}

    def _note(self, source: str, prefix: str, name: str, kind: str, status: str) -> None:
        if name.startswith("artifacts/"):
            entry = {"source": source, "destination": name, "type": kind, "status": status}
            self._manifests.setdefault(prefix, []).append(entry)

    def _read(self, path: Path, *, is_reward: bool) -> bytes | None:
        try:
            state = path.lstat()
            if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_FILE_BYTES:
                return None
            # What an agent leaves takes no room from a reward.
            is_full = self._bytes + state.st_size > MAX_BYTES or len(self._files) >= MAX_FILES
            if is_full and not (is_reward and state.st_size <= MAX_REWARD_BYTES):
                return None
            data = path.read_bytes()
        except OSError:
            return None
        self._bytes += len(data)
        return data


def _files(directory: Path) -> list[tuple[str, Path]]:
    """The files below a directory by their relative names, without those whose names are no UTF-8."""
    found = []
    for root, names, files in os.walk(directory):
        names.sort()
        for name in sorted(files):
            path = Path(root, name)
            relative = path.relative_to(directory).as_posix()
            if relative.isprintable() and relative.encode("utf-8", "replace").decode() == relative:
                found.append((relative, path))
    return found
