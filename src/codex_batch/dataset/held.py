"""Dataset: the selected samples of a dataset, held in a temporary file."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from .sample import Sample


class Dataset:
    """The selected samples of a dataset, in order; may be iterated any number of times. Close it in the end.

    Of one that is sharded, these are those of one shard. `places` has their places in `order`; None stands for all.
    """

    def __init__(
        self,
        name: str,
        path: Path | None,
        spool: IO[bytes],
        offsets: array[int],
        order: array[int],
        epochs: int,
        found: int,
        left_out: IO[bytes] | None = None,
        commit: str | None = None,
        places: array[int] | None = None,
    ) -> None:
        self.name = name
        self.path = path
        """Its file or directory; None for standard input and the hub."""
        self.commit = commit
        """Full commit of a dataset of the hub that was read; None for others, and where it is not known."""
        self.epochs = epochs
        self.found = found
        """Number of samples before the selection."""
        self._spool = spool
        self._offsets = offsets
        self._order = order
        self._left_out = left_out
        self._places = range(len(order)) if places is None else places

    def __len__(self) -> int:
        return len(self._places) * self.epochs

    def __iter__(self) -> Iterator[Sample]:
        for _, sample in self.placed():
            yield sample

    def placed(self) -> Iterator[tuple[int, Sample]]:
        """Yield each sample with its place among the selected samples of all shards, epochs included."""
        for epoch in range(1, self.epochs + 1):
            for place in self._places:
                sample = _read_at(self._spool, self._offsets[self._order[place]])
                sample = sample if epoch == 1 else msgspec.structs.replace(sample, epoch=epoch)
                yield (epoch - 1) * len(self._order) + place, sample

    @property
    def fingerprint(self) -> str:
        """Return a digest of the ids and digests of the selected samples of all shards, in order."""
        digest = hashlib.sha256()
        for sample in self._selected():
            digest.update(f"{sample.id}\0{sample.digest}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def content(self) -> str:
        """Return a digest of all that the selected samples of all shards ask and are scored by, but for directories."""
        digest = hashlib.sha256()
        for sample in self._selected():
            spec = sample.to_json()
            for name in ("directory", "cwd", "workspace"):
                spec.pop(name, None)
            digest.update(f"{sample.digest}\0{json.dumps(spec, sort_keys=True)}\n".encode())
        return digest.hexdigest()[:16]

    def _selected(self) -> Iterator[Sample]:
        for position in self._order:
            yield _read_at(self._spool, self._offsets[position])

    @property
    def digests(self) -> Iterator[tuple[str, str]]:
        """Id and digest of every sample of the dataset, those that the selection leaves out included."""
        for offset in self._offsets:
            sample = _read_at(self._spool, offset)
            yield sample.id, sample.digest
        if self._left_out is not None:
            self._left_out.seek(0)
            for line in self._left_out:
                yield tuple(json.loads(line))

    def close(self) -> None:
        self._spool.close()
        if self._left_out is not None:
            self._left_out.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_at(spool: IO[bytes], offset: int) -> Sample:
    spool.seek(offset)
    line = spool.readline()
    try:
        return Sample.from_json(msgspec.json.decode(line))
    except msgspec.DecodeError:
        return Sample.from_json(json.loads(line))


def line_of(sample: Sample) -> bytes:
    """A sample as a line of a dataset's spool."""
    value = sample.to_json()
    try:
        return msgspec.json.encode(value) + b"\n"
    except UnicodeEncodeError:
        # The names of files may be no Unicode.
        return json.dumps(value).encode() + b"\n"
