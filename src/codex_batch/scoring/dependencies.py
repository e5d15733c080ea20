"""Dependencies of a score, beside the answer: the scorer with its files, and the fields of the sample that it reads.

They are kept with each score: after a change of targets or scorers, a run knows by them which scores are outdated.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .scorer import Scorer

# What may change of a sample without its answer being another one. A judge is paid for, and only sees the target.
_FIELDS = ("target", "metadata", "tags")
_JUDGED = ("target",)
# Left out of the directories of scorers: what Python and git make of themselves.
_LEFT_OUT = ("__pycache__", ".git")
# Of a larger file size and time of change have to do.
_WHOLE_BYTES = 4 * 2**20


def dependencies_of(scorers: Iterable[Scorer]) -> dict[str, dict[str, Any]]:
    """Return by name of scorer: `scorer`, a digest of it and its files, and `of`, the fields of a sample it reads."""
    return {
        scorer.name: {"scorer": _digest(scorer), "of": _JUDGED if scorer.type == "judge" else _FIELDS}
        for scorer in scorers
    }


def _digest(scorer: Scorer) -> str:
    """Digest the options and the contents of files, not where those are: a run may be moved with its dataset."""
    spec = {**scorer.spec}
    files = spec.pop("files", {})
    for name in ("name", "path"):
        spec.pop(name, None)
    if scorer.version:
        spec["version"] = scorer.version
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    for to, source in sorted(files.items()):
        digest.update(json.dumps(to).encode())
        _add(digest, Path(source))
    for path in [] if files else scorer.private:
        _add(digest, path)
    return digest.hexdigest()[:16]


def _add(digest: Any, path: Path) -> None:
    for name, file in _files(path):
        try:
            state = file.stat()
            whole = state.st_size <= _WHOLE_BYTES
            content = file.read_bytes() if whole else repr((state.st_size, state.st_mtime_ns)).encode()
        except OSError as error:
            content = repr(error.errno).encode()
        digest.update(b"%s\0%d\0" % (os.fsencode(name), len(content)) + content)


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Files at or below a path, each with its name from there on."""
    if not path.is_dir():
        yield path.name, path
        return
    if path.name in _LEFT_OUT:
        return
    for root, names, files in os.walk(path):
        names[:] = sorted(name for name in names if name not in _LEFT_OUT)
        for name in sorted(files):
            file = Path(root, name)
            if not name.endswith(".pyc") and file.is_file():
                yield str(file.relative_to(path)), file
