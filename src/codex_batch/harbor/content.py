"""Digest of the contents of a task as Harbor's locks have it: two tasks with one digest are the same to Harbor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

_PART_BYTES = 1 << 20
_SINGLE = ("task.toml", "instruction.md", "README.md", "trajectory.json")
_DIRECTORIES = ("environment", "tests", "solution", "steps")
_LEFT_OUT = ("__pycache__", "*.pyc", ".DS_Store", "*.swp", "*.swo", "*~")


def content_digest(folder: Path) -> str:
    """Return `sha256:` and the digest of the names and contents of a task's files.

    What editors and Python leave is no part of it; a .gitignore is not looked at. Raises OSError.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_files(folder)):
        digest.update(f"{name}\0{_digest_of(path)}\n".encode("utf-8", "surrogateescape"))
    return f"sha256:{digest.hexdigest()}"


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    found = [folder / name for name in _SINGLE]
    found += [path for name in _DIRECTORIES for path in (folder / name).rglob("*")]
    for path in found:
        relative = path.relative_to(folder)
        if path.is_file() and not any(fnmatch(part, mark) for part in relative.parts for mark in _LEFT_OUT):
            yield relative.as_posix(), path
