"""Functions beside the classes of the asyncio API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from .._core.signatures import described
from ..inputs import RunInput
from .thread import AsyncThread
from .turn import AsyncTurnHandle, AsyncTurnText

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..presets import TurnKeywords


class _LaterTurnText(AsyncTurnText):
    """The text of a turn that `start` begins at the first read; one that was not begun is never interrupted."""

    def __init__(self, start: Callable[[], Awaitable[AsyncTurnHandle]]) -> None:
        self._start: Callable[[], Awaitable[AsyncTurnHandle]] | None = start
        self._has_begun = False

    async def __anext__(self) -> str:
        if self._start is not None:
            # Once only, also when it fails.
            start, self._start = self._start, None
            super().__init__(await start())
            self._has_begun = True
        if not self._has_begun:
            raise StopAsyncIteration
        return await super().__anext__()

    async def aclose(self) -> None:
        """Interrupt the turn if it has begun and not ended; one that has not begun never will."""
        self._start = None
        if self._has_begun:
            await super().aclose()


@described("TurnStartOptions")
def astream_text(thread: AsyncThread, input: RunInput, **options: Unpack[TurnKeywords]) -> AsyncTurnText:
    """Start one turn, when it is first read, and iterate over its text. Raises TurnFailedError at its end."""
    return _LaterTurnText(lambda: thread.turn(input, **options))
