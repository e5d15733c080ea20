"""SIGHUP during a run: the terminal is gone, and with it the display; the run goes on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable


class HangUp:
    """Notes a SIGHUP from its making on; the callback of `on_hang_up` is called once for it, on the event loop.

    Make it in the main thread. Under nohup SIGHUP stays ignored. What the run starts gets the default action.
    """

    def __init__(self) -> None:
        self._has_arrived = False
        self._report: Callable[[], None] = lambda: None
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    def on_hang_up(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the running loop once SIGHUP comes, or soon if it has, as long as the loop runs."""
        loop = asyncio.get_running_loop()
        self._report = lambda: _soon(loop, callback)
        if self._has_arrived:
            self._report()

    def _on_signal(self, number: int, frame: object) -> None:
        if not self._has_arrived:
            self._has_arrived = True
            self._report()


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    # On a loop that is closed nothing waits for it.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)
