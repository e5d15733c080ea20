"""The shard that a run directory holds: a directory has results of one shard, or of the whole dataset."""

from __future__ import annotations

from ..configuration.settings import Settings
from ..store import RunDirectory, RunDirectoryError
from ..store.reader import SHARD


def claim_shard(settings: Settings, directory: RunDirectory) -> None:
    """Store which shard the directory is of, if it is new.

    Raises RunDirectoryError when it is of another shard, or of the whole dataset.
    """
    info, asked = directory.store.info(), settings.shard
    held = info.get(SHARD)
    if held == asked:
        return
    if held is None and not info["launches"]:
        directory.note(SHARD, asked).result()
        return
    named = "names no shard" if asked is None else f"names shard {asked}"
    holds = "a run without shards" if held is None else f"shard {held}"
    same = "leave out --shard" if held is None else f"give --shard {held}"
    raise RunDirectoryError(
        f"{directory.path} holds {holds}, and this command {named}: {same}, or use a directory for each shard "
        "(codex-pool runs merge joins them), or --fresh to remove what is there"
    )
