"""The asyncio API: AsyncCodex, AsyncThread, AsyncTurnHandle and what belongs to them."""

from .._core.busy import OnBusy
from .codex import AsyncCodex
from .functions import astream_text
from .thread import AsyncThread
from .turn import AsyncTurnHandle, AsyncTurnStream, AsyncTurnText

__all__ = [
    "AsyncCodex",
    "AsyncThread",
    "AsyncTurnHandle",
    "AsyncTurnStream",
    "AsyncTurnText",
    "OnBusy",
    "astream_text",
]
