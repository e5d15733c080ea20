"""The listeners of a gateway: they accept connections, decide who it is, and open a session for each client."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from ...auth.allow_list import AllowedKeys
from ...auth.keys import KeyStore
from ...auth.principal import Identity
from ...ingress.refusals import Refusals
from ...protocol.endpoints import EndpointError
from ...runtime import endpoint_name
from ..sessions import ListenerConfig, Sessions
from . import addresses, admission, limits
from .admission import Answer, Rules
from .allowance import Allowance
from .client import WebSocketClient
from .configuration import group_id, tls_context
from .connection import SERVER, Connection
from .door import Door
from .pages import Pages, TokenFile
from .socket_files import ControlSocket, SocketFile
from .unsent import Budget

_log = logging.getLogger(__name__)

# Of what the system may keep of a peer that has vanished: seconds until the first probe, between two, and their number.
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
# What the real server says over a Unix socket (0.163): clients send longer messages in pieces.
_UNIX_HEADERS = {"x-codex-websocket-max-unfragmented-message-bytes": "16777216"}


async def open_listeners(config: ListenerConfig, sessions: Sessions) -> Listeners:
    """Listen everywhere, for the gateway's process. Raises EndpointError, and then listens nowhere."""
    listeners = Listeners(config, sessions, _log.warning)
    await listeners.open()
    return listeners


class Who(NamedTuple):
    """The principal of a connection. `identity` is None for the pool's owner."""

    identity: Identity | None = None
    public_key: str = ""


OWNER = Who()


class Listeners:
    """All listeners of a gateway. Call everything on its event loop.

    `log` takes a line for the log. Clients that are refused are counted by reason.
    """

    def __init__(self, config: ListenerConfig, sessions: Sessions, log: Callable[[str], None]) -> None:
        self.budget = Budget()
        self._config = config
        self._sessions = sessions
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._allowed = AllowedKeys(KeyStore(config.keys), log) if config.keys else None
        self._refusals = Refusals("by the gateway")
        self._doors: list[Door] = []
        # By which connections have come.
        self._door_of: dict[Connection, Door] = {}
        self._clients: dict[Connection, WebSocketClient] = {}
        self._of_principal: Counter[str] = Counter()
        self._allowances: dict[str, Allowance] = {}
        # Of each listener, and in all.
        self._max_strangers, self._max_clients = limits.MAX_STRANGERS, limits.MAX_CLIENTS
        self._tasks: set[asyncio.Task[None]] = set()
        self._http = web.Server(self._handle)
        self._ticking: asyncio.TimerHandle | None = None
        self._is_closing = False
        self._metrics_token: TokenFile | None = None
        self._pages: Pages | None = None

    async def open(self) -> None:
        """Listen everywhere. Raises EndpointError, and then listens nowhere."""
        config = self._config
        self._max_strangers, self._max_clients = limits.room(
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            sum(map(bool, (config.unix, config.control_socket, config.ws, config.http))),
        )
        try:
            if self._allowed is not None:
                self._allowed.read()
            if config.unix:
                group = group_id(config.unix_group) if config.unix_group else None
                self._open_file(lambda limit_s: SocketFile(Path(config.unix), group, lock_limit_s=limit_s))
            if config.control_socket:
                self._open_file(lambda limit_s: ControlSocket(Path(config.control_socket), lock_limit_s=limit_s))
            if config.ws:
                self._open_tcp(config, "listen_ws", config.ws, needs_token=not config.insecure_no_auth)
            if config.http:
                self._metrics_token = TokenFile(config.metrics_token, self._log)
                self._pages = Pages(self._sessions.report, lambda: dict(self._refusals.counts))
                self._open_tcp(config, "listen_http", config.http, has_pages=True)
        except BaseException:
            self._close_sockets()
            raise
        self._ticking = self._loop.call_later(limits.TICK_S, self._tick)

    async def close(self, reason: str = "the gateway ends; connect again") -> None:
        """Stop listening, and end all connections: clients may connect again at once, to the next gateway.

        It takes some CLOSE_LIMIT_S at most.
        """
        self._is_closing = True
        if self._ticking is not None:
            self._ticking.cancel()
        self._close_sockets()
        for connection in self._all_strangers():
            connection.abort()
        for client in list(self._clients.values()):
            client.end(reason, again=True)
        ending = [client.ending for client in self._clients.values() if client.ending is not None]
        if ending:
            await asyncio.wait(ending)
        if self._pages is not None:
            await self._pages.close()
        await self._http.shutdown(limits.CLOSE_LIMIT_S)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limits.CLOSE_LIMIT_S)

    def counts(self) -> dict[str, object]:
        """Numbers for a status: clients, connections without a handshake so far, bytes unsent, refusals by reason."""
        return {
            "clients": len(self._clients),
            "strangers": len(self._all_strangers()),
            "unsentBytes": self.budget.bytes,
            "refused": dict(self._refusals.counts),
        }

    # As connections see it

    def lost(self, connection: Connection) -> None:
        """Note that a connection has ended."""
        door = self._door_of.pop(connection, None)
        if door is not None:
            door.strangers.pop(connection, None)
        client = self._clients.pop(connection, None)
        if client is not None:
            self._of_principal[client.principal] -= 1
            if not self._of_principal[client.principal]:
                del self._of_principal[client.principal]

    def refused(self, reason: str) -> None:
        """Count a refusal, and log it now and then."""
        self._refusals.add(reason)
        for line in self._refusals.news(self._loop.time()):
            self._log(line)

    def failed(self, error: BaseException | None) -> None:
        """Log an error in the handling of a request."""
        self._log(f"a request has failed: {error!r}")

    def over_budget(self) -> None:
        """Disconnect the client with the most that is unsent, of the key with the most; each owner's is for itself."""
        unsent: Counter[object] = Counter()
        for client in self._clients.values():
            unsent[client.principal or client] += client.unsent.bytes
        if unsent:
            ((key, _),) = unsent.most_common(1)
            of_key = [client for client in self._clients.values() if key in (client, client.principal)]
            self.refused("the client with the most that is unsent")
            max(of_key, key=lambda client: client.unsent.bytes).cut()

    def hold(self, principal: str, seconds: float) -> None:
        """Read nothing of the connections of a key for so long."""
        for connection, client in self._clients.items():
            if client.principal == principal:
                connection.hold(seconds)

    # Sockets

    def _open_tcp(
        self, config: ListenerConfig, option: str, listen: str, *, needs_token: bool = False, has_pages: bool = False
    ) -> None:
        address = addresses.parse(listen, option)
        family, where = addresses.resolve(address, option)
        tls = tls_context(config.tls_cert, config.tls_key) if config.tls_cert else None
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(limits.BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise EndpointError(f"cannot listen on {listen}: {error.strerror or error}") from None
        hosts = frozenset({address.host.lower(), *config.allow_hosts})
        self._doors.append(Door(self, Rules(hosts, needs_token, has_pages), listener, tls=tls))

    def _open_file(self, make: Callable[[float], SocketFile | ControlSocket]) -> None:
        self._doors.append(Door(self, admission.UNIX, make=make))

    def _close_sockets(self) -> None:
        for door in self._doors:
            door.close()
        self._doors.clear()

    def _all_strangers(self) -> list[Connection]:
        return [connection for connection in self._door_of if connection.client is None]

    def _check_file(self, door: Door) -> None:
        """Listen again where a file was removed; clients that are connected stay so."""
        if door.make is None or door.file is None or door.file.is_there or not door.file.is_free:
            return
        try:
            file = door.make(0.0)
        except EndpointError as error:
            self.refused(f"a socket that was removed cannot be made again: {error}")
            return
        self._log(f"{file.path} was removed, and is made again")
        door.replace(file)

    def welcome(self, accepted: socket.socket, door: Door) -> None:
        """Take over a connection that was accepted."""
        accepted.setblocking(False)
        uid = None
        if accepted.family == socket.AF_UNIX:
            uid = endpoint_name.peer_of(accepted)[1]
        else:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE:
                if hasattr(socket, name):
                    accepted.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        door.make_room(self._max_strangers)
        connection = Connection(
            self._http, self, uid=uid, plain=accepted if door.tls is None else None, loop=self._loop
        )
        door.strangers[connection] = None
        self._door_of[connection] = door
        task = self._loop.create_task(self._connect(connection, accepted, door.tls))
        connection.opening = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: Connection, accepted: socket.socket, tls: ssl.SSLContext | None) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=tls,
                ssl_handshake_timeout=limits.HANDSHAKE_LIMIT_S if tls is not None else None,
            )
        except (OSError, asyncio.CancelledError):
            # No TLS handshake, or one that took too long.
            self.refused("no TLS handshake")
            connection.forget()
            accepted.close()

    # Requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        door = self._door_of.get(connection)
        if door is None or self._is_closing:
            return _response(Answer(HTTPStatus.SERVICE_UNAVAILABLE))
        if door.rules.has_pages:
            return await self._page(request, door.rules)
        answer = admission.answer_to(request.method, request.path, request.headers, door.rules)
        if answer is not None:
            return self._refuse(answer)
        who = self._who(connection, request, door.rules)
        if isinstance(who, Answer):
            return self._refuse(who)
        limit = limits.OWNER_MESSAGE_BYTES if who.identity is None else who.identity.max_message_bytes
        # Without `autoping` PINGs come as messages, and are counted.
        ws = web.WebSocketResponse(
            timeout=limits.CLOSE_LIMIT_S, autoping=False, compress=False, max_msg_size=limit + 1, decode_text=False
        )
        ws.headers.update(SERVER)
        if connection.uid is not None:
            ws.headers.update(_UNIX_HEADERS)
        try:
            await ws.prepare(request)
        except web.HTTPException:
            reason = "no WebSocket handshake"
            return self._refuse(Answer(HTTPStatus.BAD_REQUEST, "`Sec-WebSocket-Key` is not of 16 bytes", reason))
        principal = "" if who.identity is None else who.identity.principal
        allowance = self._allowances.get(principal)
        client = WebSocketClient(
            connection, ws, self, principal=principal, public_key=who.public_key, allowance=allowance
        )
        if connection.transport is None:
            return ws
        connection.accepted(client)
        door.strangers.pop(connection, None)
        self._clients[connection] = client
        self._of_principal[principal] += 1
        await client.run(self._sessions, who.identity, self._log)
        return ws

    async def _page(self, request: web.BaseRequest, rules: Rules) -> web.StreamResponse:
        assert self._pages is not None
        refusal = admission.page_answer_to(request.method, request.path, request.headers, rules)
        if refusal is None and request.path == admission.METRICS:
            refusal = self._refusal_of(admission.token_of(request.headers.get("Authorization")) or "")
        if refusal is not None:
            return self._refuse(refusal)
        response = await self._pages.answer(request.path)
        response.force_close()
        return response

    def _refusal_of(self, token: str) -> Answer | None:
        """The answer to a token that does not open /metrics: another than that of the file, and of no admin key."""
        assert self._metrics_token is not None
        if self._metrics_token.is_right(token):
            return None
        who = self._holder(token)
        if who is None or who.identity is None:
            return Answer(HTTPStatus.UNAUTHORIZED, "invalid bearer token", "an unknown token")
        if who.identity.admin:
            return None
        text = f"the key of {who.identity.name} does not open /metrics; the token of metrics_token and admin keys do"
        return Answer(HTTPStatus.FORBIDDEN, text, "a token of no admin")

    def _who(self, connection: Connection, request: web.BaseRequest, rules: Rules) -> Who | Answer:
        """The principal of the connection, or the answer to one that may not connect."""
        who: Who | None = OWNER
        if connection.uid is not None:
            who = self._user(connection.uid)
            if who is None:
                text = (
                    f"user {connection.uid} may not connect; the pool's owner allows it with: "
                    f"codex-pool keys new NAME --unix-user {connection.uid}"
                )
                return Answer(HTTPStatus.FORBIDDEN, text, "a user without a key")
        elif rules.needs_token:
            who = self._holder(admission.token_of(request.headers.get("Authorization")) or "")
            if who is None:
                return Answer(HTTPStatus.UNAUTHORIZED, "invalid websocket bearer token", "an unknown token")
        assert who is not None
        if who.identity is not None and self._of_principal[who.identity.principal] >= who.identity.max_sessions:
            text = f"{who.identity.name} has {who.identity.max_sessions} connections already; close one of them"
            return Answer(HTTPStatus.TOO_MANY_REQUESTS, text, "too many connections of a key")
        owners = 0 if who.identity is None else min(limits.OWNER_CLIENTS, self._max_clients // 4)
        if len(self._clients) >= self._max_clients - owners:
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients are connected", "too many clients")
        if who.identity is not None:
            now = self._loop.time()
            allowance = self._allowances.setdefault(who.identity.principal, Allowance(now))
            if allowance.take(now, messages=limits.HANDSHAKE_MESSAGES):
                text = f"{who.identity.name} connects, or sends, faster than a key may; wait a second"
                return Answer(HTTPStatus.TOO_MANY_REQUESTS, text, "too many messages of a key")
        return who

    def _user(self, uid: int) -> Who | None:
        if uid == os.getuid():
            return OWNER
        return None if self._allowed is None else self._key(self._allowed, lambda allowed: allowed.key_of_user(uid))

    def _holder(self, token: str) -> Who | None:
        return None if self._allowed is None else self._key(self._allowed, lambda allowed: allowed.key_of_token(token))

    def _key(self, allowed: AllowedKeys, find: Callable[[AllowedKeys], str | None]) -> Who | None:
        # A key that was made or revoked this moment counts.
        self._read_keys(allowed)
        key = find(allowed)
        return None if key is None else Who(allowed.clients[key], key)

    def _refuse(self, answer: Answer) -> web.Response:
        if answer.reason:
            self.refused(answer.reason)
        return _response(answer)

    # Once a second

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(limits.TICK_S, self._tick)
        if self._allowed is not None:
            self._read_keys(self._allowed)
        self._end_incomplete()
        self._end_throttled(self._loop.time())
        for door in self._doors:
            self._check_file(door)
        for line in self._refusals.news(self._loop.time()):
            self._log(line)

    def _read_keys(self, allowed: AllowedKeys) -> None:
        if allowed.read():
            for client in list(self._clients.values()):
                if client.principal and not allowed.is_allowed(client.principal, client.public_key):
                    client.end("the key was revoked or renewed", again=False)

    def _end_throttled(self, now: float) -> None:
        """End the connections of keys that have sent as fast as they may for too long, and forget allowances."""
        for principal, allowance in list(self._allowances.items()):
            if allowance.is_full(now) and not self._of_principal[principal]:
                del self._allowances[principal]
            elif now - allowance.exhausted_since > limits.THROTTLED_LIMIT_S:
                for client in [each for each in self._clients.values() if each.principal == principal]:
                    if client.is_throttled:
                        self.refused("a client that sends too much for too long")
                        client.cut()

    def _end_incomplete(self) -> None:
        """End the connections of clients whose messages take too long, or of the largest where all take too much."""
        now, total = self._loop.time(), 0
        longest: WebSocketClient | None = None
        for client in list(self._clients.values()):
            size = client.incomplete_bytes
            if size <= limits.FREE_BYTES or client.is_held:
                continue
            if now - client.incomplete_since > limits.MESSAGE_LIMIT_S:
                self.refused("a message that is not complete in time")
                client.cut()
                continue
            total += size
            if longest is None or size > longest.incomplete_bytes:
                longest = client
        if total > limits.ALL_INCOMPLETE_BYTES and longest is not None:
            self.refused("too much that is not complete")
            longest.cut()


def _response(answer: Answer) -> web.Response:
    response = web.Response(status=answer.status, text=answer.text or None, headers=SERVER)
    response.force_close()
    return response
