"""A digest of what lies in a directory."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

# A template is copied without these, at any depth: what they hold is no part of a workspace.
LEFT_OUT = (".git",)
_PART_BYTES = 1 << 20


def tree_digest(directory: Path) -> str:
    """Return a digest of names, kinds, contents and executable bits of all files below; not of times or owners.

    Skips LEFT_OUT: a commit, `git status` or `git gc` in a checkout changes nothing of what is copied of it.

    Raises ValueError for a file that can neither be read nor copied.
    """
    digest = hashlib.sha256()
    for root, names, files in os.walk(directory):
        names[:] = sorted(name for name in names if name not in LEFT_OUT)
        files = [name for name in files if name not in LEFT_OUT]
        links = [name for name in names if os.path.islink(os.path.join(root, name))]
        for name in sorted(files + links):
            path = Path(root, name)
            relative = path.relative_to(directory).as_posix()
            try:
                _add(digest, path, os.fsencode(relative))
            except OSError as error:
                raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        if not names and not files:
            digest.update(b"empty\0%s\0" % os.fsencode(Path(root).relative_to(directory).as_posix()))
    return digest.hexdigest()[:32]


def _add(digest: hashlib._Hash, path: Path, name: bytes) -> None:
    """Add a file or a link to a digest, a part at a time."""
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        target = os.fsencode(os.readlink(path))
        digest.update(b"link\0%s\0%d\0%s" % (name, len(target), target))
        return
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{path} is neither a file nor a directory nor a link; a workspace cannot hold it")
    kind = b"program" if state.st_mode & stat.S_IXUSR else b"file"
    with path.open("rb") as file:
        digest.update(b"%s\0%s\0%d\0" % (kind, name, os.fstat(file.fileno()).st_size))
        while part := file.read(_PART_BYTES):
            digest.update(part)
