"""The connection of one client: HTTP until its handshake, then WebSocket, whose client is a WebSocketClient.

aiohttp reads: requests, and frames of WebSocket, whose length it compares with the bound before it keeps anything of
them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Protocol

from aiohttp import web

from . import limits
from .client import ClientOwner, WebSocketClient

SERVER = {"Server": "codex-pool"}
# What aiohttp says of requests that are none; they are counted here.
QUIET = logging.Logger("codex_pool.gateway", logging.CRITICAL + 1)
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Owner(ClientOwner, Protocol):
    """The listeners, as their connections see them."""

    def lost(self, connection: Connection) -> None:
        """Note that a connection has ended."""

    def failed(self, error: BaseException | None) -> None:
        """Report an error in the handling of a request."""

    def hold(self, principal: str, seconds: float) -> None:
        """Read nothing of the connections of a key for so long."""


class Connection(web.RequestHandler):
    """The protocol of a connection, given to asyncio. `client` is there once its handshake was accepted.

    `uid` is the user at the other end of a Unix socket, None over TCP. `plain` is the socket of a connection without
    TLS, on which frames may be written past the transport while nothing waits there.
    """

    def __init__(
        self,
        server: web.Server,
        owner: Owner,
        *,
        uid: int | None,
        plain: socket.socket | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(server, loop=loop, access_log=QUIET, tcp_keepalive=False, max_headers=64, logger=QUIET)
        self.uid = uid
        self.plain = plain
        self.client: WebSocketClient | None = None
        self._owner = owner
        self._header_bytes = 0
        # While it is set nothing is read: its key has sent as much as it may.
        self._hold: asyncio.TimerHandle | None = None
        self._unparsed = bytearray()
        self._deadline = loop.call_later(limits.HANDSHAKE_LIMIT_S, self._too_slow)
        # Ends the TLS handshake.
        self.opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.WriteTransport)
        transport.set_write_buffer_limits(high=limits.CONGESTED_BYTES)

    def data_received(self, data: bytes) -> None:
        client = self.client
        if client is not None:
            client.arrived(len(data))
            if client.principal:
                self._unparsed += data
                self._parse(client)
            else:
                super().data_received(data)
            return
        if data:
            self._header_bytes += len(data)
            if self._header_bytes > limits.HEADER_BYTES and self.transport is not None:
                self._owner.refused("headers that are too long")
                self.transport.write(_TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP request, without words."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        if status >= 500:
            self._owner.failed(exc)
        else:
            self._owner.refused("what is no HTTP request")
        response = web.Response(status=status, headers=SERVER)
        response.force_close()
        return response

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.client is not None:
            self.client.congested()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.client is not None:
            self.client.send_more()

    def _parse(self, client: WebSocketClient) -> None:
        """Parse what a client with a key has sent, until that has cost as much as it may."""
        while self._unparsed and self._hold is None:
            chunk = self._unparsed[: limits.PARSE_BYTES]
            del self._unparsed[: limits.PARSE_BYTES]
            began = time.thread_time()
            super().data_received(bytes(chunk))
            wait_s = client.spent(size=len(chunk), cpu_s=time.thread_time() - began)
            if wait_s:
                self._owner.hold(client.principal, wait_s)

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._hold is None:
            super().resume_reading(resume_parser)
        else:
            self._reading_paused = False

    @property
    def is_on_hold(self) -> bool:
        """True while nothing is read because its key has sent as much as it may."""
        return self._hold is not None

    def hold(self, seconds: float) -> None:
        """Read nothing for so long; longer if its key has sent too much by then."""
        if self._hold is None and self.transport is not None:
            self.transport.pause_reading()
            self._hold = self._loop.call_later(seconds, self._release)

    def _release(self) -> None:
        self._hold = None
        wait_s = self.client.spent() if self.client is not None else 0.0
        if wait_s:
            self.hold(wait_s)
            return
        if self.client is not None:
            self._parse(self.client)
        if self._hold is None and self.transport is not None and not self._reading_paused:
            self.transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._hold is not None:
            self._hold.cancel()
        self.forget()
        if self.client is not None:
            self.client.gone()
        super().connection_lost(exc)

    def accepted(self, client: WebSocketClient) -> None:
        """Note that this is a client's: its handshake is over."""
        self.client = client
        self._deadline.cancel()

    def forget(self) -> None:
        """Give up what is kept of it."""
        self._deadline.cancel()
        self._owner.lost(self)

    def abort(self) -> None:
        """End the connection at once."""
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def _too_slow(self) -> None:
        if self.transport is None or not self.transport.is_closing():
            self._owner.refused("a handshake that is too slow")
        self.abort()
