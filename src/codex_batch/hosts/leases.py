"""Leases: which host has which attempt, until when, and which result counts. Pure: the clock is passed in.

    lease      begins with                     ends with
    live       `lease`                         `delivered`; `gone` or `expired`: it is lost
    lost       `gone`, `expired`               `delivered`, which is late: it counts if its sample has no result yet

A host that answers renews all leases that it names. One that has answered nothing for `LEASE_S` loses them. What it
did for them is not lost with them: when it comes back, its result is late, and wins if it is complete and the first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

LEASE_S = 10.0


class Verdict(Enum):
    """The meaning of a result for its sample."""

    WON = auto()
    """The result of the sample."""
    SUPERSEDED = auto()
    """Another attempt has the result, or will have it."""
    UNKNOWN = auto()
    """A result of an attempt that these leases do not know: of an earlier launch."""


@dataclass(slots=True)
class _Host:
    places: int
    heard_at: float
    held: set[str] = field(default_factory=set)
    """Keys of the leases that it has, live or lost."""


@dataclass(slots=True)
class _Open:
    n: int
    host: str
    is_live: bool = True


class Leases:
    """See the module's docstring. Keys are those of attempts, `n` numbers of samples; times are monotonic seconds."""

    def __init__(self, lease_s: float = LEASE_S) -> None:
        self._lease_s = lease_s
        self._hosts: dict[str, _Host] = {}
        self._open: dict[str, _Open] = {}
        self._won: set[int] = set()

    @property
    def places(self) -> int:
        """Leases that all hosts together may have at once."""
        return sum(host.places for host in self._hosts.values())

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that there are."""
        return tuple(self._hosts)

    def joined(self, host: str, places: int, now: float) -> None:
        """Note a host that takes so many leases at once; one that was gone may come back."""
        held = {key for key, lease in self._open.items() if lease.host == host}
        self._hosts[host] = _Host(places, now, held)

    def heard(self, host: str, now: float, named: Mapping[str, int] | None = None) -> list[str]:
        """Renew the leases of a host that has answered; return those that were lost since it does not have them.

        `named` are all that it has, with their samples: those of an earlier launch, and those of a host whose spool it
        has taken over, become its own. None if the answer names none.
        """
        known = self._hosts.get(host)
        if known is None:
            return []
        known.heard_at = now
        if named is None:
            return []
        for key, n in named.items():
            lease = self._open.setdefault(key, _Open(n, host, is_live=False))
            if lease.host in self._hosts:
                self._hosts[lease.host].held.discard(key)
            lease.host = host
            known.held.add(key)
        missing = [key for key in known.held if key not in named]
        lost = [key for key in missing if self._lose(key)]
        for key in missing:
            self._close(key)
        return lost

    def revive(self, key: str) -> bool:
        """Let a lease that a host has, of an earlier launch, be live; return False if no host has it."""
        lease = self._open.get(key)
        if lease is None or lease.host not in self._hosts:
            return False
        lease.is_live = True
        return True

    def gone(self, host: str) -> list[str]:
        """Note that a host has gone; return the leases that are lost with it."""
        if self._hosts.pop(host, None) is None:
            return []
        return [key for key, lease in list(self._open.items()) if lease.host == host and self._lose(key)]

    def silent(self, now: float) -> list[str]:
        """Return the hosts whose leases have expired."""
        return [name for name, host in self._hosts.items() if now - host.heard_at >= self._lease_s]

    def place(self, n: int, but: Collection[str] = ()) -> str | None:
        """Return the host that a sample is to be leased to: the one with most room; None while there is none.

        A host has one attempt at a sample at most, since they would share a directory. Those of `but` get nothing new.
        """
        free = [
            (host.places - len(host.held), name)
            for name, host in self._hosts.items()
            if name not in but
            and host.places > len(host.held)
            and all(self._open[key].n != n for key in host.held if key in self._open)
        ]
        return max(free)[1] if free else None

    def lease(self, key: str, n: int, host: str) -> None:
        """Note that a host has an attempt at a sample; call it before the host knows."""
        self._open[key] = _Open(n, host)
        self._hosts[host].held.add(key)
        self._won.discard(n)

    def given_back(self, key: str) -> None:
        """Note that a lease never got to its host."""
        self._close(key)

    def delivered(self, key: str, *, is_complete: bool) -> tuple[Verdict, list[str]]:
        """Decide about a result; return the verdict, and the keys of the attempts that are to be halted for it."""
        lease = self._close(key)
        if lease is None:
            return Verdict.UNKNOWN, []
        if lease.n in self._won or not (lease.is_live or is_complete):
            return Verdict.SUPERSEDED, []
        self._won.add(lease.n)
        return Verdict.WON, [other for other, one in self._open.items() if one.n == lease.n and one.is_live]

    def finished(self, n: int) -> None:
        """Note that a sample has its record: no result that comes later counts."""
        self._won.add(n)

    def host_of(self, key: str) -> str | None:
        """Return the host of a lease, live or lost."""
        lease = self._open.get(key)
        return None if lease is None else lease.host

    def is_live(self, key: str) -> bool:
        """Return True for a lease that is neither lost nor delivered."""
        lease = self._open.get(key)
        return lease is not None and lease.is_live

    def held(self, host: str) -> int:
        """Return how many leases a host has."""
        known = self._hosts.get(host)
        return 0 if known is None else len(known.held)

    def _lose(self, key: str) -> bool:
        lease = self._open[key]
        was_live, lease.is_live = lease.is_live, False
        return was_live

    def _close(self, key: str) -> _Open | None:
        lease = self._open.pop(key, None)
        if lease is not None and lease.host in self._hosts:
            self._hosts[lease.host].held.discard(key)
        return lease
