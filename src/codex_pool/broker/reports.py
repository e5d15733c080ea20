"""Reports of the broker to the supervisor: JSON lines on stdout, as of `supervisor.broker_child`."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from .effects import (
    AccountChanged,
    Command,
    Drained,
    DrainProgress,
    Registered,
    Renew,
    SaveCounts,
    Suspect,
)

Reported = Registered | Suspect | Drained | Renew | AccountChanged | Command | DrainProgress | SaveCounts


def report(record: dict[str, Any]) -> None:
    """Write one JSON line for the supervisor."""
    os.write(1, msgspec.json.encode(record) + b"\n")


def record_of(effect: Reported) -> dict[str, Any]:
    """Return the record by which the supervisor learns of an effect."""
    match effect:
        case Registered():
            return {"event": "registered", "worker": effect.worker}
        case Suspect():
            return {"event": "suspect", "worker": effect.worker, "reason": effect.reason}
        case Drained():
            return {"event": "drained", "worker": effect.worker}
        case Renew():
            return {"event": "renew", "worker": effect.worker, "reason": effect.reason}
        case AccountChanged():
            return {"event": "account", "changed_at": effect.changed_at, "under_way": effect.under_way}
        case Command():
            return {"event": "command", "id": effect.number, "command": effect.command, "params": effect.params}
        case DrainProgress():
            return {
                "event": "draining",
                "stopping": effect.stopping,
                "turns": effect.turns,
                "clients": effect.clients,
                "waiting": effect.waiting,
            }
        case SaveCounts():
            return {"event": "counts", "kept": effect.kept, "lost": effect.lost}
