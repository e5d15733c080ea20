"""A thread in the worker, and a thread that is being loaded. Pure.

state          the thread                                                  next states
loading        is taken out of the archive, resumed, named: its requests   loaded, gone
               wait (`Loading`)
loaded         takes requests                                              unsubscribed, leaving, gone
unsubscribed   has no follower, and can be resumed; the app-server         loading, leaving, gone
               unloads it after 30 minutes
leaving        is archived and taken out again, for another worker         loaded, gone
gone           is not here: unloaded, archived, deleted, or let go         loading
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ..protocol import wire
from .request import Request


class Waiter(Protocol):
    """Receives the requests that have waited for a thread."""

    def go_on(self, request: Request) -> None: ...

    def refuse(self, request: Request, code: int, message: str, data: dict[str, object] | None) -> None: ...


@dataclass(slots=True)
class Thread:
    """A thread that is held.

    `adopted`: another worker had it before; `interests`: those of its sessions in their last turns; `goal`: it may
    begin turns unasked; `unsubscribed`: see the module's docstring; `let_go`: its last session has unsubscribed from
    it; `kept`: a session that is over, or has unsubscribed from it, wanted its turns to go on.
    """

    record: wire.ThreadRecord
    restore_sandbox: bool = False
    adopted: bool = False
    goal: bool = False
    unsubscribed: bool = False
    let_go: bool = False
    kept: bool = False
    interests: dict[wire.SessionId, wire.Interest] = field(default_factory=dict)
    # Who has resumed or forked it last, and gets what the app-server repeats after that; None for the worker itself.
    resumer: wire.SessionId | None = None
    # The app-server repeats its goal because the worker has resumed it.
    repeats_goal: bool = False

    @property
    def is_stored(self) -> bool:
        """True if it can be resumed: a thread without a turn is not on disk."""
        return not self.record.ephemeral and self.record.turns > 0


@dataclass(slots=True)
class Loading:
    """A thread that is being loaded: the record to restore, and the receiver of the requests that wait for it.

    `resumed` is the thread, if it was unsubscribed here.
    """

    record: wire.ThreadRecord
    waiter: Waiter
    resumed: Thread | None = None
