"""BackgroundTasks: what is done beside the lanes of a run, such as scoring and archiving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class BackgroundTasks:
    """Holds tasks until they are done. `on_failure` is called when one fails; `failure` is its error then."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self._on_failure = on_failure
        self.tasks: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a task of this name; it is waited for by `wait`, and cancelled when the run ends."""
        task = asyncio.ensure_future(work)
        task.set_name(name)
        self.tasks.add(task)
        task.add_done_callback(self._on_done)

    async def wait(self, name: str) -> None:
        """Wait until all tasks of a name that there are now are done."""
        named = [task for task in self.tasks if task.get_name() == name]
        if named:
            await asyncio.wait(named)

    async def any_done(self) -> None:
        """Wait until any task is done; there must be one."""
        await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failure = task.exception()
            self._on_failure()
