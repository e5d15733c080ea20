"""Files of a workspace that are too large to be kept: found by their size, told by size and SHA-256.

git reads a file of gigabytes into memory to compare it, and keeps a copy of every file that it is given.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FILE_BYTES = 32 * 2**20
# Of all that has changed together; of more only the statistics are kept.
TOTAL_BYTES = 256 * 2**20
TOTAL_FILES = 100_000
# What is read for digests, of one workspace: some seconds of a core.
HASHED_BYTES = 4 * 2**30
SHOWN = 100
_CHUNK_BYTES = 2**20

Signature = tuple[int, int, int, int]
"""Size, time of the last change of contents and of anything, number of the file: unequal if it was written to."""


@dataclass(slots=True)
class Measured:
    """Sum of a list of files: `large` are those that are not to be kept, with their sizes."""

    files: int = 0
    size_bytes: int = 0
    large: dict[str, int] = field(default_factory=dict)
    largest: list[tuple[int, str]] = field(default_factory=list)
    is_cut: bool = False
    """True if there were more files than the list had room for."""

    @property
    def is_too_much(self) -> bool:
        return self.is_cut or self.files > TOTAL_FILES or self.size_bytes > TOTAL_BYTES


def files_below(directory: Path, skipped: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of all files and links below, relative to the directory, however deep; `skipped` names directories."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            entries = list(os.scandir(os.path.join(directory, inside)))
        except OSError:
            # Gone meanwhile, not to be read, or deeper than a path may be long.
            continue
        for entry in entries:
            path = os.path.join(inside, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in skipped:
                    waiting.append(path)
            else:
                yield path


def signatures(directory: Path, paths: Iterable[str]) -> dict[str, Signature]:
    """Select the paths that are large files, as they are now."""
    return {path: signature for path in paths if (signature := _signature(directory, path))[0] > FILE_BYTES}


def measure(directory: Path, paths: Iterable[str], before: dict[str, Signature]) -> Measured:
    """Measure files that may have changed. Large ones that are as they were `before` do not count."""
    measured = Measured()
    for path in dict.fromkeys((*paths, *before)):
        signature = _signature(directory, path)
        if path in before and signature == before[path]:
            continue
        size = signature[0]
        if size > FILE_BYTES:
            measured.large[path] = size
        elif size >= 0:
            measured.files += 1
            measured.size_bytes += size
        measured.largest.append((size, path))
        if len(measured.largest) > 2 * SHOWN:
            measured.largest = sorted(measured.largest, reverse=True)[:SHOWN]
    measured.largest = sorted(measured.largest, reverse=True)[:SHOWN]
    return measured


def described(directory: Path, measured: Measured, before: dict[str, Signature]) -> bytes:
    """A line for each large file that has changed; reads them. Empty if there is none."""
    lines: list[str] = []
    left = HASHED_BYTES
    gone = [path for path in before if _signature(directory, path)[0] < 0]
    for path, size in sorted(measured.large.items()):
        if len(lines) == SHOWN:
            break
        digest = None if size > left else _digest(os.path.join(directory, path), size)
        left -= size if digest is not None else 0
        lines.append(f"{size:,} bytes, {'not read' if digest is None else f'sha256 {digest}'}: {_shown(path)}")
    lines += [f"deleted, {before[path][0]:,} bytes before: {_shown(path)}" for path in gone[:SHOWN]]
    more = len(measured.large) + len(gone) - len(lines)
    lines += [f"and {more:,} more files"] if more > 0 else []
    return "".join(f"{NOT_KEPT}{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def counted(measured: Measured) -> bytes:
    """The statistics of what is too much to be compared."""
    lines = [
        f"{MORE_THAN}{TOTAL_BYTES} bytes or {TOTAL_FILES} files changed, only counted: "
        f"{'more than ' if measured.is_cut else ''}{measured.files + len(measured.large):,} files, "
        f"{measured.size_bytes + sum(measured.large.values()):,} bytes; the largest:"
    ]
    lines += [f"{size:15,}  {_shown(path)}" for size, path in measured.largest if size >= 0]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


NOT_KEPT, MORE_THAN = "# not kept: ", "# more than "


def is_whole(diff: bytes) -> bool:
    """Return True if all that has changed is in a diff, so that it can be applied."""
    return not diff.startswith((NOT_KEPT.encode(), MORE_THAN.encode()))


def save(path: Path, found: dict[str, Signature]) -> None:
    """Raises OSError."""
    path.write_text(json.dumps(found))


def load(path: Path) -> dict[str, Signature]:
    """Read what was saved; empty if nothing was. Raises OSError."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return {name: (size, written, changed, number) for name, (size, written, changed, number) in found.items()}


def _signature(directory: Path, path: str) -> Signature:
    try:
        found = os.lstat(os.path.join(directory, path))
    except (OSError, ValueError):
        return (-1, 0, 0, 0)
    if not stat.S_ISREG(found.st_mode):
        return (0, 0, 0, 0)
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _digest(path: str, size: int) -> str | None:
    """None if it cannot be read, or has become another file."""
    digest = hashlib.sha256()
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            while size > 0 and (part := file.read(min(size, _CHUNK_BYTES))):
                digest.update(part)
                size -= len(part)
    except OSError:
        return None
    return digest.hexdigest() if size == 0 else None


def _shown(path: str) -> str:
    return path if path.isprintable() else json.dumps(path)
