"""The keys of a pool as they lie on disk, for checks. It takes no lock and writes nothing, unlike KeyStore."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from . import key_files
from .key_entries import AllowedClient, check_entry
from .keys import default_directory


class Audit(NamedTuple):
    """Entries that are allowed, and why others are not; `directory` need not exist."""

    directory: Path
    exists: bool
    entries: tuple[AllowedClient, ...] = ()
    problems: tuple[str, ...] = ()


def audit(directory: str | os.PathLike[str] | None = None) -> Audit:
    """Read the keys of a directory, by default of that of `default_directory`. Raises nothing."""
    path = default_directory() if directory is None else Path(directory)
    clients, server = path / "clients", path / "server.json"
    if not os.path.lexists(path):
        return Audit(path, exists=False)
    entries: list[AllowedClient] = []
    problems: list[str] = []
    try:
        for each in (path, clients, path / "revoked"):
            if os.path.lexists(each):
                key_files.check_owner(each, each.lstat(), key_files.DIRECTORY_MODE)
        if os.path.lexists(server):
            key_files.check_owner(server, server.lstat(), key_files.FILE_MODE)
        names = sorted(key_files.names_in(clients))
    except (key_files.KeysError, OSError) as error:
        return Audit(path, exists=True, problems=(str(error),))
    for name in names:
        file = clients / f"{name}.json"
        try:
            entry = key_files.read(file, AllowedClient)
            check_entry(entry, file)
        except (key_files.KeysError, OSError) as error:
            problems.append(str(error))
        else:
            entries.append(entry)
    return Audit(path, exists=True, entries=tuple(entries), problems=tuple(problems))
