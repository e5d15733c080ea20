"""Engine: the way from a run to its hosts. What it carries are the methods of `host.Host`, and who comes and goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol


class HostGoneError(Exception):
    """A host that does not answer: it, its machine, or the way to it has gone, perhaps for a while."""


class HostError(Exception):
    """A host that cannot be used; the message gives the reason."""


class EngineError(Exception):
    """An engine that cannot be used; the message gives the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Change:
    """A host has come, or it has gone for good. `problem`: a machine that can be none, and the reason."""

    host: str
    is_there: bool
    problem: str | None = None


class Engine(Protocol):
    """Implemented for a Ray cluster by `ray_engine`."""

    def changes(self) -> AsyncIterator[Change]:
        """Yield who comes and goes, without end: first those that are there. Raises EngineError."""

    async def call(self, host: str, method: str, *arguments: Any) -> Any:
        """Call a method of a host. Raises HostGoneError, and HostError if the host does."""

    async def close(self, *, is_over: bool) -> None:
        """Let the hosts go; those of a run that `is_over` end."""
