"""Functions beside the classes of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import operations
from .._core.signatures import described
from ..inputs import RunInput
from .thread import Thread
from .turn import TurnHandle, TurnText

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..generated import models as m
    from ..presets import TurnKeywords


def wait_for_turn_completed(turn: TurnHandle) -> m.TurnCompletedNotification:
    """Read a turn to its end; its last notification. A failed turn is returned, not raised."""
    last: Any = None
    for notification in turn.stream():
        if notification.method == "turn/completed":
            last = notification.payload
    return operations.ended(turn.id, last)


@described("TurnStartOptions")
def stream_text(thread: Thread, input: RunInput, **options: Unpack[TurnKeywords]) -> TurnText:
    """Start one turn and iterate over its text as it comes. Raises TurnFailedError at its end."""
    return thread.turn(input, **options).text()
