"""The client of a connection that speaks WebSocket: what it sends goes to its session, and the other way round.

What goes to the client is written here, all frames of one pass of the event loop together.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from aiohttp import WebSocketError, WSMsgType, web

from ...auth.principal import Identity
from ..sessions import ClientSession, Sessions
from . import limits
from .allowance import Allowance
from .unsent import Budget, Unsent

# Codes of a close (RFC 6455, 7.4.1 and the registry of IANA).
POLICY, INTERNAL_ERROR, SERVICE_RESTART = 1008, 1011, 1012
MAX_REASON_BYTES = 123


class ClientOwner(Protocol):
    """The listeners, as their clients see them."""

    budget: Budget

    def refused(self, reason: str) -> None:
        """Count a refusal."""

    def over_budget(self) -> None:
        """Disconnect the client with the most that is unsent."""


class Carrier(Protocol):
    """A connection, as its client sees it; `plain` is its socket, if frames may be written past the transport.

    `uid` is the user at the other end of a Unix socket, None over TCP.
    """

    plain: socket.socket | None
    uid: int | None

    @property
    def transport(self) -> asyncio.Transport | None: ...

    @property
    def is_on_hold(self) -> bool: ...

    def abort(self) -> None: ...


class WebSocketClient:
    """A client of the gateway; see `sessions.Client`.

    `principal` and `public_key` are empty for the pool's owner, who has no `allowance`. `ending` is the task that ends
    the connection, if this side does.
    """

    def __init__(
        self,
        connection: Carrier,
        websocket: web.WebSocketResponse[bool],
        owner: ClientOwner,
        *,
        principal: str,
        public_key: str,
        allowance: Allowance | None,
    ) -> None:
        self._allowance = allowance
        self.principal = principal
        self.public_key = public_key
        self.unsent = Unsent(owner.budget)
        # Bytes since the last message, and since when.
        self.incomplete_bytes = 0
        self.incomplete_since = 0.0
        self._connection = connection
        self._plain = connection.plain
        self._websocket = websocket
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._session: ClientSession | None = None
        self._is_congested = False
        self._session_knows = False
        self._is_gone = False
        self._rests = False
        self._end_by: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sent: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self.ending: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """True while its session does not accept more, or its key has sent as much as it may."""
        return self.is_throttled or (self._waiter is not None and not self._waiter.done())

    @property
    def is_throttled(self) -> bool:
        """True while nothing more is taken of it because its key has sent as much as it may."""
        return self._rests or self._connection.is_on_hold

    # From the session

    def deliver(self, lines: list[bytes]) -> None:
        """Send messages, together."""
        if self._is_gone or self.ending is not None:
            return
        plain, transport = self._plain, self._connection.transport
        if (
            len(lines) == 1
            and plain is not None
            and transport is not None
            and not self._is_congested
            and 126 <= len(lines[0]) <= limits.AT_ONCE_BYTES
            and not self.unsent
            and not transport.get_write_buffer_size()
        ):
            # Past the transport, whose `write` costs several times as much where the process has slept before each
            # message, as between the deltas of a turn.
            frame = b"\x81\x7e" + len(lines[0]).to_bytes(2, "big") + lines[0]
            try:
                sent = plain.send(frame)
            except OSError:
                # It takes nothing now, or has ended: the transport finds out.
                sent = 0
            if sent < len(frame):
                # May call `congested`, after which `_flush` notes what is in the buffer.
                transport.write(frame[sent:])
                self._flush()
            return
        self.unsent.add(lines)
        if self.unsent.is_too_much:
            self._owner.refused("a client that does not read")
            self.cut()
        elif self._owner.budget.is_exceeded:
            self._owner.over_budget()
        elif not self._is_congested:
            # At once: sessions deliver what one read has brought together, and each further pass of the loop costs CPU.
            self._flush()

    def end(self, reason: str, *, again: bool) -> None:
        """End the connection, with the code of a restart if the client may connect again at once."""
        self.end_with(SERVICE_RESTART if again else POLICY, reason)

    def end_with(self, code: int, reason: str) -> None:
        """End the connection once all is sent, or CLOSE_LIMIT_S are over."""
        if self.ending is None and not self._is_gone:
            self.ending = self._loop.create_task(self._close(code, reason))

    def cut(self) -> None:
        """End the connection at once, and forget what is unsent."""
        self.unsent.clear()
        self._connection.abort()

    # From the connection

    def arrived(self, size: int) -> None:
        """Note that bytes have come."""
        if not self.incomplete_bytes:
            self.incomplete_since = self._loop.time()
        self.incomplete_bytes += size

    def spent(self, *, size: int = 0, messages: int = 0, cpu_s: float = 0.0) -> float:
        """Count what reading has cost; the seconds until more may be read."""
        if self._allowance is None:
            return 0.0
        return self._allowance.take(self._loop.time(), size=size, messages=messages, cpu_s=cpu_s)

    def congested(self) -> None:
        """Note that the client does not take what is written."""
        self._is_congested = True
        self._tell_session()

    def send_more(self) -> None:
        """Note that the client has taken most of what was written."""
        self._is_congested = False
        self.unsent.buffered(0)
        self._flush()
        self._tell_session()

    def gone(self) -> None:
        """Note that the connection has ended."""
        self._is_gone = True
        if self._end_by is not None:
            self._end_by.cancel()
        self.unsent.clear()
        for future in (self._waiter, self._sent, self._lost):
            if future is not None and not future.done():
                future.set_result(None)

    # The client's task

    async def run(self, sessions: Sessions, identity: Identity | None, log: Callable[[str], None]) -> None:
        """Open a session, pass on what the client sends until its connection ends, then close the session."""
        session: ClientSession | None = None
        try:
            listener = "ws" if self._connection.uid is None else "unix"
            session = self._session = sessions.open(self, identity, self.public_key, listener)
            self._tell_session()
            await self._receive(sessions, session)
        except Exception as error:
            # Of this client alone.
            log(f"a session of {self.principal or 'the owner'} has failed: {error!r}")
            self.end_with(INTERNAL_ERROR, "internal error")
        finally:
            self._session = None
            if session is not None:
                session.close()
            if self.ending is not None:
                await asyncio.wait([self.ending])
            elif not self._is_gone:
                # It has said goodbye, and may not take what was written before: then it would stay.
                self._end_by = self._loop.call_later(limits.CLOSE_LIMIT_S, self.cut)

    async def _receive(self, sessions: Sessions, session: ClientSession) -> None:
        handled = 0
        while True:
            message = await self._websocket.receive()
            self.incomplete_bytes = 0
            handled += 1
            wait_s = self.spent(messages=1)
            if wait_s or handled % limits.MESSAGES_AT_ONCE == 0:
                # While messages are there, `receive` does not wait.
                self._rests = True
                await (asyncio.wait([self._lost], timeout=wait_s) if wait_s else asyncio.sleep(0))
                self._rests = False
                self.incomplete_since = self._loop.time()
                if wait_s and self._is_gone:
                    return
            if message.type is WSMsgType.TEXT:
                session.receive(message.data)
                while not session.accepts and not self._is_gone and self.ending is None:
                    self._waiter = self._loop.create_future()
                    sessions.resume_reading(session, self._accepts)
                    await self._waiter
                    self.incomplete_since = self._loop.time()
            elif message.type is WSMsgType.ERROR:
                code = message.data.code if isinstance(message.data, WebSocketError) else 0
                self._owner.refused(f"a frame that is not allowed (code {code})")
                return
            elif message.type is WSMsgType.PING:
                if not self._is_congested:
                    await self._websocket.pong(message.data)
            elif message.type not in (WSMsgType.BINARY, WSMsgType.PONG):
                return
            # Binary messages are passed over, as by the real server (0.163).

    def _tell_session(self) -> None:
        if self._session is None or self._session_knows is self._is_congested or self.ending is not None:
            return
        self._session_knows = self._is_congested
        self._session.congested(self._is_congested)

    def _accepts(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _flush(self) -> None:
        transport = self._connection.transport
        if transport is None:
            return
        while self.unsent and not self._is_congested:
            # May call `congested`.
            transport.write(self.unsent.take())
        if self._is_congested:
            self.unsent.buffered(transport.get_write_buffer_size())
            if self._owner.budget.is_exceeded:
                self._owner.over_budget()
        elif self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    async def _close(self, code: int, reason: str) -> None:
        self._flush()
        if self._is_congested:
            self._sent = self._loop.create_future()
            await asyncio.wait([self._sent], timeout=limits.CLOSE_LIMIT_S)
        self._accepts()
        if not self._is_congested:
            text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
            closing = self._loop.create_task(self._websocket.close(code=code, message=text))
            closing.add_done_callback(lambda done: done.cancelled() or done.exception())
            # It ends the connection, and may wait for the client before.
            await asyncio.wait([self._lost], timeout=limits.CLOSE_LIMIT_S)
            closing.cancel()
        self.cut()
