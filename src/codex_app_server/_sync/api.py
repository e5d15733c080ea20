"""The API: Codex, Thread, TurnHandle and what belongs to them."""

from .._core.busy import OnBusy
from .codex import Codex
from .functions import stream_text, wait_for_turn_completed
from .thread import Thread
from .turn import TurnHandle, TurnStream, TurnText

__all__ = [
    "Codex",
    "OnBusy",
    "Thread",
    "TurnHandle",
    "TurnStream",
    "TurnText",
    "stream_text",
    "wait_for_turn_completed",
]
