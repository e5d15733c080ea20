"""Interruption: the requests to stop a run, or samples of it, and the loss of its terminal."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Any

from ..exit_codes import INTERRUPTED
from ..store import RunDirectory, SampleKey
from .output import RunOutput
from .scheduler import Scheduler

_log = logging.getLogger(__name__)


class Interruption:
    """See the module's docstring.

    The first signal sets `stop`, the second cancels the task of the run, the third ends the process. `was_asked` is
    True once the run was asked to stop; `cancelled` are the samples that are not to run.
    """

    def __init__(self, directory: RunDirectory, output: RunOutput) -> None:
        self._directory = directory
        self._output = output
        self._requests = 0
        self.stop = asyncio.Event()
        self.cancelled: set[SampleKey] = set()
        self.scheduler: Scheduler | None = None

    @property
    def was_asked(self) -> bool:
        return self._requests > 0

    def on_signals(self, task: asyncio.Task[Any]) -> None:
        """Handle SIGINT and SIGTERM from now on; `task` is that of the run."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, task)

    def _on_signal(self, task: asyncio.Task[Any]) -> None:
        self._requests += 1
        if self._requests == 1:
            self.stop.set()
            self._directory.hurry()
            if self.scheduler is None:
                # Whatever the start waits for: for example a daemon that does not answer.
                task.cancel()
            self._output.say("interrupted: what runs is being stopped; once more ends at once")
        elif self._requests == 2:
            task.cancel()
        else:
            # Whatever hangs: the pool's processes see their death pipe close.
            os._exit(INTERRUPTED)

    def on_hang_up(self) -> None:
        """Handle the loss of the terminal."""
        where = self._directory.path
        _log.warning(
            "SIGHUP: the terminal is gone; the run goes on without its display, and says here what it has to say; "
            f"codex-pool attach {where} shows it, and codex-pool runs cancel {where} stops it"
        )
        self._output.display.leave()

    def cancel(self, what: Any) -> None:
        """Handle a request of `runs cancel`: "run", or a sample as [id, epoch] or [id, epoch, variant]."""
        if what == "run":
            self._requests += 1
            self.stop.set()
            self._output.say("cancelled: what runs is being stopped")
        elif isinstance(what, list):
            sample_id, epoch, *variant = what
            key = (sample_id, epoch, *(variant or ("",)))
            self.cancelled.add(key)
            if self.scheduler is not None:
                self.scheduler.cancel(key)
