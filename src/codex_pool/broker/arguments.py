"""The start arguments of the broker."""

from __future__ import annotations

from typing import Any

import msgspec


class BrokerLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of a broker that runs, as of BrokerArguments."""

    turns_per_worker: int
    waiting_turns_per_worker: int
    recycle_descendants: int


class BrokerArguments(msgspec.Struct, forbid_unknown_fields=True):
    """Start arguments of a broker."""

    clients_endpoint: str
    workers_endpoint: str
    slots: int
    turns_per_worker: int
    # How many turns of a worker may wait for an approval beside those that run.
    waiting_turns_per_worker: int = 32
    # Above how many processes of its threads a worker is replaced, and loads no further thread; 0 is no limit.
    recycle_descendants: int = 0
    # Where threads work that name no directory; None is the broker's own.
    cwd: str | None = None
    # ipc:///PATH of the socket for processes that let clients in, and the secret of each kind of them; where the keys
    # are, None if no client with a key is let in.
    link: str | None = None
    secrets: dict[str, str] = {}
    keys: str | None = None
    # The CODEX_HOME of the app-servers, where the ownership of threads is kept; None keeps it in memory only.
    codex_home: str | None = None
    # Workers that were registered with the broker before this one, which died: to be waited for.
    expect: list[str] = []
    # When the account was changed last, by CLOCK_MONOTONIC: what started before and took no part in it is renewed.
    changed_at: float = 0.0
    # What added to CLOCK_MONOTONIC gives Unix time, in seconds. The same for every broker of a supervisor: a step of
    # the clock between two of them changes no wait.
    unix_offset: float = 0.0
    # Whether the supervisor holds the endpoint, so that sockets may be bound at its paths; whether it is an error, as
    # at the start of a pool, if that cannot be done at once.
    holds: bool = True
    must_bind: bool = True
    # Threads whose records an earlier broker could not write down, by their ids; None for one that is no more.
    unsaved: dict[str, Any] = {}
    # What earlier brokers have counted (`SaveCounts.kept`), None if that is not complete.
    counted: dict[str, Any] | None = {}
    # Whether what turns have used is written down in the home; the table of prices, as `--prices` names it.
    keeps_usage: bool = False
    prices: str | None = None
    # The audit log, and its rotation.
    audit_log: str | None = None
    audit_log_bytes: int = 64 * 1024**2
    audit_log_files: int = 8
