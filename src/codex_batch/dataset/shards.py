"""Shards: parts of a dataset for machines that know nothing of each other. Pure.

A sample's shard depends on its id and the number of shards alone, so all of its epochs and variants are in one shard,
and it stays there when samples are added to the dataset.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

MAX_SHARDS = 100_000
_FORM = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard `index` of `count`, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Make the shard that `I/N` names. Raises ValueError saying what was expected."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no shard; expected I/N, such as 1/3, with numbers from 1 to N")
        index, count = int(found[1]), int(found[2])
        if not 1 <= count <= MAX_SHARDS:
            raise ValueError(f"{text!r} divides into {count:,} shards; expected 1 to {MAX_SHARDS:,}")
        if index == 0:
            raise ValueError(
                f"{text!r}: shards are counted from 1; with an index from 0 add 1 to it: --shard $((INDEX + 1))/{count}"
            )
        if index > count:
            raise ValueError(f"{text!r}: there is no shard {index} of {count}; expected 1/{count} to {count}/{count}")
        return cls(index, count)

    def takes(self, sample_id: str) -> bool:
        """Return True if the sample belongs to this shard."""
        return shard_of(sample_id, self.count) == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def shard_of(sample_id: str, count: int) -> int:
    """Return the number, from 1, of the shard that a sample belongs to."""
    # As the store keeps ids: what UTF-8 cannot encode is an escape.
    digest = hashlib.sha256(sample_id.encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") % count + 1
