"""Bundle: files that samples need on another machine - templates, repositories, scorers - sent by their content, once.

A path becomes `TREE/DIGEST/NAME`, which names the content and no place. A tree is a manifest of files, links and empty
directories; its files are sent by their digest. A host lays trees out below a directory of its own, and resolves what
stands in a sample or a scorer to paths there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server._runtime.files import write_atomic

from ..dataset import Sample
from ..scoring import Scorer, Scorers

# What begins so names something in a bundle. No path that a dataset may hold has a NUL.
MARK = "\0tree/"
BLOBS, TREES = "blobs", "trees"
_COMPILED = "__pycache__"


class Entry(msgspec.Struct, frozen=True):
    """One entry of a tree, at `path` below it: a file with a digest, a link with its target, or else a directory."""

    path: str
    digest: str | None = None
    executable: bool = False
    link: str | None = None


class Bundle:
    """The files that a run sends to its hosts. What has been read once is not read again."""

    def __init__(self) -> None:
        self._manifests: dict[str, bytes] = {}
        self._sources: dict[str, Path] = {}
        self._known: dict[tuple[tuple[str, Path], ...], str] = {}

    def sample(self, sample: Sample, scorers: Scorers) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return a sample as JSON that names no place on this machine but its `cwd`, and the trees that it needs.

        Raises OSError.
        """
        trees: set[str] = set()
        found = sample.to_json()
        if sample.workspace is not None:
            places = {name: Path(sample.workspace[name]) for name in ("template", "git") if name in sample.workspace}
            here = {name: self._of(path, trees) for name, path in places.items() if path.is_absolute()}
            found["workspace"] = {**sample.workspace, **here}
        found.pop("directory", None)
        if sample.scorers is not None:
            found["scorers"] = [self.scorer(scorer, trees) for scorer in scorers.of(sample)]
        return found, tuple(sorted(trees))

    def scorers(self, scorers: Iterable[Scorer]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Return specs of scorers that name no place on this machine, and the trees that they need. Raises OSError."""
        trees: set[str] = set()
        return [self.scorer(scorer, trees) for scorer in scorers], tuple(sorted(trees))

    def scorer(self, scorer: Scorer, trees: set[str]) -> dict[str, Any]:
        """Return the spec of one scorer, and add the trees that it needs to `trees`. Raises OSError."""
        spec = dict(scorer.spec)
        if "files" in spec:
            spec["files"] = {to: self._of(Path(source), trees) for to, source in spec["files"].items()}
        if scorer.type == "python":
            # Only the module, or its package: the directory that it stands in may be anything.
            own = [path for path in scorer.private if path.name != _COMPILED and path.parent.name != _COMPILED]
            tree = self._tree([(path.name, path) for path in own])
            trees.add(tree)
            spec["path"] = f"{MARK}{tree}"
        return spec

    def manifest(self, tree: str) -> bytes:
        """Return the manifest of a tree."""
        return self._manifests[tree]

    def blob(self, digest: str) -> bytes:
        """Return the content of a file. Raises OSError, also where the file was changed since."""
        path = self._sources[digest]
        data = path.read_bytes()
        if _digest(data) != digest:
            raise OSError(f"{path} was changed while the run goes on; run the same command again")
        return data

    def _of(self, path: Path, trees: set[str]) -> str:
        tree = self._tree([(path.name, path)])
        trees.add(tree)
        return f"{MARK}{tree}/{path.name}"

    def _tree(self, roots: list[tuple[str, Path]]) -> str:
        known = tuple(sorted(roots))
        if known not in self._known:
            entries = [entry for name, path in known for entry in self._entries(name, path)]
            manifest = msgspec.json.encode(entries)
            digest = _digest(manifest)
            self._manifests[digest] = manifest
            self._known[known] = digest
        return self._known[known]

    def _entries(self, name: str, path: Path) -> Iterator[Entry]:
        state = path.lstat()
        if stat.S_ISLNK(state.st_mode):
            yield Entry(name, link=os.readlink(path))
        elif stat.S_ISREG(state.st_mode):
            digest = _digest(path.read_bytes())
            self._sources[digest] = path
            yield Entry(name, digest, executable=bool(state.st_mode & stat.S_IXUSR))
        elif stat.S_ISDIR(state.st_mode):
            yield Entry(name)
            for each in sorted(os.scandir(path), key=lambda one: one.name):
                if each.name != _COMPILED:
                    yield from self._entries(f"{name}/{each.name}", Path(each.path))


class Laid:
    """The trees that a host has, below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._blobs, self._trees = directory / BLOBS, directory / TREES
        for path in (self._blobs, self._trees):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def trees(self) -> tuple[str, ...]:
        """Digests of the trees that are laid out."""
        return tuple(entry.name for entry in os.scandir(self._trees) if not entry.name.endswith(".partial"))

    def missing(self, manifest: bytes) -> list[str]:
        """Return digests of the files of a tree that are not here."""
        wanted = {entry.digest for entry in _decoded(manifest) if entry.digest is not None}
        return sorted(digest for digest in wanted if not (self._blobs / digest).exists())

    def put(self, blobs: Mapping[str, bytes]) -> None:
        """Keep files. Raises OSError for one that is not what its digest says."""
        for digest, data in blobs.items():
            if _digest(data) != digest:
                raise OSError(
                    f"{digest}: {len(data):,} bytes of another content came; expected the file of this digest"
                )
            write_atomic(self._blobs / digest, data)

    def lay(self, manifest: bytes) -> None:
        """Lay a tree out, all of whose files are here. Raises OSError."""
        target = self._trees / _digest(manifest)
        if target.exists():
            return
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for entry in _decoded(manifest):
            path = partial / entry.path
            if entry.link is not None:
                path.symlink_to(entry.link)
            elif entry.digest is not None:
                shutil.copyfile(self._blobs / entry.digest, path)
                path.chmod(0o755 if entry.executable else 0o644)
            else:
                path.mkdir(exist_ok=True)
        partial.rename(target)

    def resolved(self, value: Any) -> Any:
        """Return JSON in which what names something in the bundle is a path here."""
        if isinstance(value, str):
            return f"{self._trees}/{value[len(MARK) :]}" if value.startswith(MARK) else value
        if isinstance(value, Mapping):
            return {key: self.resolved(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.resolved(one) for one in value]
        return value


def _decoded(manifest: bytes) -> list[Entry]:
    entries = msgspec.json.decode(manifest, type=list[Entry])
    for entry in entries:
        if entry.path.startswith("/") or ".." in entry.path.split("/"):
            raise OSError(f"{entry.path!r} is no path within a tree")
    return entries


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
