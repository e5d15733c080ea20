"""State of the hosts of a fleet, its callbacks, and the versions that it takes."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import codex_pool

from ..store import AttemptRow, Start
from . import messages
from .messages import Delivery, Hello, Opened, Renewed


class LeaseLost(Exception):
    """An attempt whose host has gone; the message names it."""


@dataclass(slots=True)
class HostState:
    """A host as it is shown."""

    name: str
    state: str = "joining"
    spool: str = ""
    codex_version: str | None = None
    places: int = 0
    held: int = 0
    done: int = 0
    lost: int = 0
    joined_at: float = 0.0
    free_bytes: int = 0
    rate_limiter: dict[str, Any] = field(default_factory=dict)
    slots: list[dict[str, Any]] = field(default_factory=list)
    problem: str | None = None
    received_bytes: int = 0
    sent_bytes: int = 0

    @property
    def is_limited(self) -> bool:
        """True while its pool is paused by a rate limit."""
        return self.state == "ready" and (self.rate_limiter.get("pausedMs") or 0) > 0


@dataclass(frozen=True, slots=True)
class FleetCallbacks:
    """`attempt_of` finds an attempt by its key, and whether its sample is done. `superseded` keeps a result that does
    not count; `warn(kind, message)` shows a message; `places` gives the number of leases that all hosts may have.
    `renew` answers a refresh request of a host, and may take a while; None if no log-in is lent."""

    attempt_of: Callable[[str], tuple[AttemptRow, bool] | None]
    superseded: Callable[[Start, Delivery, str], Awaitable[None]]
    warn: Callable[[str, str], None]
    places: Callable[[int], None]
    renew: Callable[[str], Renewed] | None = None


def versions_problem(hello: Hello) -> str | None:
    """Return why a host of these versions is not used; None if it is."""
    python = ".".join(platform.python_version_tuple()[:2])
    for what, there, here in (
        ("codex-pool", hello.codex_pool, codex_pool.__version__),
        ("Python", hello.python, python),
        ("the protocol of hosts", hello.protocol, messages.PROTOCOL),
    ):
        if there != here:
            return f"it has {what} {there}, and the run {here}; install the same on both"
    return None


def codex_warning(name: str, opened: Opened, states: Iterable[HostState]) -> str | None:
    """Return a warning about a host whose codex is of another version than those of the others; None if it is not."""
    others = {each.codex_version for each in states if each.codex_version is not None}
    if not others or opened.codex_version in others:
        return None
    return f"host {name} has codex {opened.codex_version}; other hosts have {', '.join(sorted(others))}"
