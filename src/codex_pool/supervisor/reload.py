"""Reload: the configuration of a daemon, read again. Pure but for the reading itself.

    an option whose value differs from the running one
      is live (`Field.is_live`) --> taken over at once, by supervisor, broker and workers
      is not                    --> named as one that needs a restart, until the file says what runs

A file with any problem changes nothing. What counts as running for `workers` is the number of the last configuration:
`codex-pool scale` stays in force until the configured number changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from ..broker.arguments import BrokerLimits
from ..option_sources import ConfigSource, Value, merged, read_layer
from ..options import Field, PoolOptions, fields
from ..worker.arguments import TurnLimits


class ReloadError(Exception):
    """The configuration cannot be used; the message names all that is wrong with it."""


class Changes(NamedTuple):
    """Changes of a reload: values by option, before and after; and the options that need a restart."""

    live: dict[str, tuple[Any, Any]]
    restart: tuple[str, ...]


class Configuration:
    """The configuration of a daemon that runs. `source` is None for a pool that belongs to a program."""

    def __init__(self, source: ConfigSource | None, now: float) -> None:
        self.source = source
        self._loaded_at = now
        self._problem = ""
        self._restart: tuple[str, ...] = ()

    def kept(self) -> tuple[float, str, list[str]]:
        """Return the state that is kept beside `source`, as `restore` takes it."""
        return self._loaded_at, self._problem, list(self._restart)

    def restore(self, loaded_at: float, problem: str, restart: list[str]) -> None:
        """Go on with the configuration of a supervisor before."""
        self._loaded_at, self._problem, self._restart = loaded_at, problem, tuple(restart)

    def read(self) -> Changes:
        """Read the file again and return what differs; `apply` or `failed` comes next. Raises ReloadError."""
        source = self.source
        if source is None:
            raise ReloadError(
                "this pool belongs to a program, which gives its options; only a daemon has a file to read"
            )
        layer = read_layer(source.file, fields(), is_required=source.is_required)
        if layer.problems:
            raise ReloadError("; ".join(map(str, layer.problems)))
        over = {name: Value(value, "command line") for name, value in source.over.items()}
        wanted = {name: value.value for name, value in merged(fields(), [layer.values, over]).items()}
        if layer.values and not source.is_required:
            self.source = msgspec.structs.replace(source, is_required=True)
        return difference(source.running, wanted, fields())

    def apply(self, changes: Changes, now: float) -> None:
        """Note that these changes are in force."""
        assert self.source is not None
        running = self.source.running | {name: after for name, (_, after) in changes.live.items()}
        self.source = msgspec.structs.replace(self.source, running=running)
        self._restart, self._problem, self._loaded_at = changes.restart, "", now

    def failed(self, problem: str) -> None:
        """Note that a reload has changed nothing, and why."""
        self._problem = problem

    @property
    def row(self) -> dict[str, Any]:
        """The configuration as status shows it; {} for a pool that belongs to a program."""
        if self.source is None:
            return {}
        return {
            # Its place; it need not be there.
            "file": self.source.file,
            # When it was read last without an error (CLOCK_MONOTONIC, seconds).
            "loadedAt": self._loaded_at,
            # Why a later reload has changed nothing, "" if none has failed.
            "problem": self._problem,
            "restartNeeded": list(self._restart),
        }


def difference(running: Mapping[str, Any], wanted: Mapping[str, Any], known: Sequence[Field]) -> Changes:
    """Return what changes when a pool with the first options is to have the second ones."""
    differing = [field for field in known if running[field.name] != wanted[field.name]]
    return Changes(
        {field.name: (running[field.name], wanted[field.name]) for field in differing if field.is_live},
        tuple(field.name for field in differing if not field.is_live),
    )


def result_of(changes: Changes) -> dict[str, Any]:
    """The answer to the client that asked for a reload."""
    parts = [f"{name} {_shown(before)} -> {_shown(after)}" for name, (before, after) in changes.live.items()]
    message = ", ".join(parts) or "nothing changed"
    if changes.restart:
        message += f"; restart needed for {', '.join(changes.restart)}"
    return {
        "changed": bool(changes.live),
        "message": message,
        "applied": {name: {"before": before, "after": after} for name, (before, after) in changes.live.items()},
        "restartNeeded": list(changes.restart),
    }


def broker_limits(options: PoolOptions) -> BrokerLimits:
    """The part of the options that a running broker has."""
    return BrokerLimits(options.turns_per_worker, options.waiting_turns_per_worker, options.recycle_descendants or 0)


def turn_limits(options: PoolOptions) -> TurnLimits:
    """The part of the options that a running worker has."""
    return TurnLimits(options.turn_idle_limit_s, options.turn_wall_limit_s, options.approval_timeout_s)


def with_changes(options: PoolOptions, changes: Changes) -> PoolOptions:
    """The options with the changes in force."""
    return msgspec.structs.replace(options, **{name: after for name, (_, after) in changes.live.items()})


def _shown(value: Any) -> str:
    return "no limit" if value is None else str(value)
