"""PoolSessions: the pool as the gateway's listeners see it, on an event loop around `core` and `link`."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import cast

from ..auth.principal import Identity
from ..protocol.pool_report import PoolReport
from .core import GatewayCore, PooledClient
from .link import Link
from .sessions import Client, ClientSession


class _PooledSession:
    """The session of a client; a `ClientSession`."""

    def __init__(self, sessions: PoolSessions, pooled: PooledClient) -> None:
        self._sessions = sessions
        self.pooled = pooled

    def receive(self, line: bytes) -> None:
        self._sessions.core.receive(self.pooled, line, self._sessions.now())
        self._sessions.changed()

    @property
    def accepts(self) -> bool:
        return self.pooled.accepts

    def congested(self, is_congested: bool) -> None:
        self._sessions.core.congested(self.pooled, is_congested, self._sessions.now())
        self._sessions.changed()

    def close(self) -> None:
        self._sessions.core.close(self.pooled)
        self._sessions.changed()


class PoolSessions:
    """See the module's docstring; implements `Sessions`. Made on the event loop that it works on.

    `link`, `secret`, `endpoint`: as of GatewayArguments. `instance` is unique to this process. `joined` is called
    whenever the broker takes messages.
    """

    def __init__(
        self, *, link: str, secret: str, endpoint: str, instance: str, joined: Callable[[], None] = lambda: None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.core = GatewayCore(instance, endpoint=endpoint, jitter=random.random)
        self._link = Link(self.core, link, secret, instance, joined=joined, changed=self.settle)
        self._running = self._loop.create_task(self._link.run())
        self._settles = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        # Callbacks of listeners that wait until more may be received of a client.
        self._waiting: dict[_PooledSession, Callable[[], None]] = {}

    def open(self, client: Client, identity: Identity | None, public_key: str, listener: str = "") -> ClientSession:
        return _PooledSession(self, self.core.open(client, identity, public_key, listener))

    async def report(self, limit_s: float) -> PoolReport | None:
        return await self._link.report(limit_s)

    def resume_reading(self, session: ClientSession, callback: Callable[[], None]) -> None:
        self._waiting[cast(_PooledSession, session)] = callback
        self.changed()

    async def close(self) -> None:
        """End the link. Sessions whose clients were closed before have said bye."""
        self._running.cancel()
        self._link.close()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    def changed(self) -> None:
        """Do what follows from events, once for all of this pass of the loop."""
        if not self._settles:
            self._settles = True
            self._loop.call_soon(self.settle)

    def settle(self) -> None:
        """Do what follows from events."""
        self._settles = False
        if self.core.has_unsent:
            self._link.pump()
        at = self.core.next_deadline
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._tick)
        if self._waiting:
            for session in [each for each in self._waiting if each.accepts or each.pooled.is_over]:
                self._waiting.pop(session)()

    def _tick(self) -> None:
        self._timer, self._timer_at = None, math.inf
        # A timer may come a little early.
        self.core.tick(max(self.now(), self.core.next_deadline))
        self.changed()
