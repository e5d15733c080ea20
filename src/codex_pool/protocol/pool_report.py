"""PoolReport: the state of a pool for probes and metrics, which the broker sends to the gateway when it asks. Pure."""

from __future__ import annotations

import msgspec

from .tally import Tally

# States of workers, in metrics.
WORKER_STATES = ("starting", "ready", "draining", "stopping", "stale", "silent", "wedged", "waiting", "drained")


class PoolReport(msgspec.Struct, array_like=True):
    """State and counts of a pool.

    `not_ready` is the reason why no worker can take a turn, "" if one can. `tally` is None while the broker does not
    know all workers that the last one knew. `workers` are counted by state, `memory_bytes` and `threads` by slot,
    `restarts` and `recycles` of workers and `refused` requests by reason. `codex`: the versions of the app-servers.
    `upgrade`: the state of the last upgrade of codex, "" if there was none.
    """

    not_ready: str = ""
    tally: Tally | None = None
    turns_running: int = 0
    turns_waiting: int = 0
    workers: dict[str, int] = {}
    memory_bytes: dict[int, int] = {}
    threads: dict[int, int] = {}
    restarts: dict[str, int] = {}
    recycles: dict[str, int] = {}
    sessions: int = 0
    rate_limit_paused: bool = False
    refused: dict[str, int] = {}
    codex: list[str] = []
    upgrade: str = ""


def encode(report: PoolReport) -> bytes:
    """Encode a report, for the frame `Report`."""
    return msgspec.msgpack.encode(report)


def decode(body: bytes) -> PoolReport:
    """Decode what `encode` has encoded. Raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(body, type=PoolReport)
