"""Targets of symbolic links in private directories: what they hold is as private as the directory itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from codex_app_server import InvalidInputError
from codex_app_server._runtime.files import resolved

# Programs that commands of agents need, which are no secret.
_SYSTEM = tuple(
    resolved(path)
    for path in (
        *("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/proc", "/sbin", "/snap"),
        *("/sys", "/usr", sys.prefix, sys.base_prefix),
    )
    if path != "/"
)
# Directories whose links lead to installed programs.
_SKIPPED = ".git"
_VIRTUAL_ENVIRONMENT = "pyvenv.cfg"
MAX_TARGETS = 256


class LinkTargets:
    """Targets of the links in private directories, each directory read once."""

    def __init__(self) -> None:
        self._found: dict[Path, frozenset[Path]] = {}

    def of(self, private: Iterable[Path]) -> list[Path]:
        """Targets elsewhere of all links below `private`, and of links below these targets, without system directories.

        Raises InvalidInputError for one that cannot be denied, and for very many.
        """
        outside = set().union(*map(self._of_one, private))
        outermost = sorted(path for path in outside if not any(parent in outside for parent in path.parents))
        if len(outermost) > MAX_TARGETS:
            raise InvalidInputError(
                f"links in private directories lead to {len(outermost):,} places, such as {outermost[0]}; expected at "
                f"most {MAX_TARGETS}: replace links by what they lead to, or --unguarded"
            )
        return outermost

    def _of_one(self, path: Path) -> frozenset[Path]:
        path = resolved(path)
        if path not in self._found:
            self._found[path] = frozenset(_targets(path))
        return self._found[path]


def links_in(directory: Path) -> list[Path]:
    """Targets of the links that stand directly in a directory, those that exist."""
    try:
        links = [Path(entry.path) for entry in os.scandir(directory) if entry.is_symlink()]
    except OSError:
        return []
    return [target for target in map(resolved, links) if target.exists() and not _is_system(target)]


def _targets(top: Path) -> set[Path]:
    found: set[Path] = set()
    waiting = [top]
    while waiting:
        for link in _links(waiting.pop()):
            target = resolved(link)
            if target in found or target.is_relative_to(top) or _is_system(target) or not target.exists():
                continue
            if any(place.is_relative_to(target) for place in _SYSTEM):
                raise InvalidInputError(
                    f"{link} is private and leads to {target}, which cannot be denied to agents: their commands need "
                    "what is in it; remove the link, or --unguarded"
                )
            found.add(target)
            waiting.append(target)
    return found


def _links(top: Path) -> Iterator[Path]:
    for root, names, files in os.walk(top):
        if _VIRTUAL_ENVIRONMENT in files:
            names.clear()
            continue
        names[:] = [name for name in names if name != _SKIPPED]
        yield from (path for name in (*names, *files) if (path := Path(root, name)).is_symlink())


def _is_system(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in _SYSTEM)
