"""The commands of a sharded run, as every recipe has them. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardedRun:
    """A dataset that is run in `shards` parts below the directory `output`; `words` are further ones of `batch`."""

    dataset: str
    words: Sequence[str]
    shards: int
    output: str

    def batch(self, index: str) -> str:
        """Return the command of one shard; `index` is shell text that expands to its number, from 1."""
        first = shlex.join(["codex-pool", "batch", self.dataset, *self.words])
        return f'{first} --shard "{index}/{self.shards}" -o {self.directory(index)}'

    def directory(self, index: str) -> str:
        """Return the run directory of a shard, as shell text."""
        return f'{shlex.quote(self.output)}/shard-"{index}"'

    def merge(self) -> str:
        """Return the command that merges all shards."""
        shards = " ".join(shlex.quote(f"{self.output}/shard-{index}") for index in range(1, self.shards + 1))
        if self.shards > 20:
            shards = f"{shlex.quote(self.output)}/shard-*"
        return f"codex-pool runs merge {shards} -o {shlex.quote(f'{self.output}/merged')}"


def commented(text: str) -> str:
    """Return lines as comments, whatever is in them."""
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())
