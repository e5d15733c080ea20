"""Sessions of the gateway's clients on the pool, over one link to the broker. Pure: `now` comes with each event.

    event              from           what follows
    open               a listener     nothing: a client has no session before its `initialize`
    receive            a client       its session takes the line; before `initialize` an error answers it
    congested          a listener     acknowledgements are held back, so that its turns wait in the workers
    close              a listener     bye: the session is over, its turns and approvals are kept
    joined, lost       the link       sessions connect, all at once; lose their connections
    received           the link       lines for clients, those of one read together
    ended              the link       the broker has ended a connection
    tick               the clock      acknowledgements, tries to connect again

A client's session is a `client.session.Session`, as that of every client of the pool; its connection is a number on the
link. What the sessions send waits in a queue for each, and keys take turns (`rotation`). Only sessions
that wait for something are looked at by the clock: an idle one costs nothing.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

import msgspec

from codex_app_server import errors
from codex_app_server._protocol import envelope
from codex_app_server._protocol.envelope import Envelope, RequestId

from ..auth.principal import Identity
from ..client.effects import Connect, Deliver, Disconnect, Effect, Failed, Send
from ..client.session import Session
from ..ingress.screening import SCREENED_BYTES, InvalidRequest, is_long, screen
from ..protocol import ingress_frames, jsonrpc, plain_client, wire
from . import foreign
from .rotation import FrameToBroker, Rotation
from .sessions import Client

# What a client may send that has not gone to the broker; then no more is read of it.
MAX_UNSENT_BYTES = 1024 * 1024
MAX_UNSENT_MESSAGES = 256
# An acknowledgement costs gateway, broker and worker as much as a delta.
ACK_DELAY_S = 0.5
# Deadlines of sessions are rounded up to multiples of this, so that those of many are one wake-up, and one write.
GRID_S = 0.5
NO_LINK = "the gateway has no connection to the broker"

_BYE = wire.encode(wire.Bye())


class PooledClient:
    """A client and its session, None before `initialize`."""

    def __init__(
        self, number: int, client: Client, identity: Identity | None, public_key: str, rotation: Rotation
    ) -> None:
        self.number = number
        self._rotation = rotation
        self.share_key = identity.principal if identity is not None else f"/{number}"
        self.client = client
        self.identity = identity
        self.public_key = public_key
        self.listener = ""
        self.session: Session | None = None
        # Its connection on the link, 0 without one.
        self.connection = 0
        # What waits for the link, and what its session keeps until it is connected.
        self.unsent: deque[FrameToBroker] = deque()
        self.unsent_bytes = 0
        self.held_bytes = 0
        self.held_messages = 0
        # The id of an `initialize` without answer.
        self.initialize_id: RequestId | None = None
        # When the clock looks at it next.
        self.due_at = math.inf
        self.is_over = False

    @property
    def principal(self) -> str:
        """The principal of the client; "" is the pool's owner."""
        return self.identity.principal if self.identity is not None else ""

    @property
    def accepts(self) -> bool:
        """True while more may be received of the client."""
        return (
            self.unsent_bytes + self.held_bytes <= MAX_UNSENT_BYTES
            and len(self.unsent) + self.held_messages <= MAX_UNSENT_MESSAGES
            and self._rotation.accepts(self.share_key)
        )


class GatewayCore:
    """See the module's docstring. `instance` is unique to this process; `endpoint` names the pool in messages."""

    def __init__(self, instance: str, *, endpoint: str, jitter: Callable[[], float]) -> None:
        self._instance = instance
        self._endpoint = endpoint
        self._jitter = jitter
        self._is_joined = False
        self._opened = self._connections = 0
        self._clients: dict[int, PooledClient] = {}
        self._by_connection: dict[int, PooledClient] = {}
        self._rotation = Rotation()
        # Times at which the clock is to look at a client, by its number; of one that is due earlier there are several.
        self._deadlines: list[tuple[float, int]] = []

    @property
    def held(self) -> dict[str, int]:
        """Numbers of objects held, by kind; all return to zero without clients (leak checks)."""
        return {
            "clients": len(self._clients),
            "connections": len(self._by_connection),
            "waiting": len(self._rotation),
            "deadlines": len(self._deadlines),
        }

    # Clients.

    def open(self, client: Client, identity: Identity | None, public_key: str, listener: str = "") -> PooledClient:
        """Add a client that has authenticated; `listener` is the kind of listener that it came in by."""
        self._opened += 1
        pooled = self._clients[self._opened] = PooledClient(self._opened, client, identity, public_key, self._rotation)
        pooled.listener = listener
        return pooled

    def receive(self, pooled: PooledClient, line: bytes, now: float) -> None:
        """Take a message of a client. As on the app-server, what is no message of the protocol has no answer."""
        if pooled.is_over:
            return
        if pooled.identity is not None and len(line) > SCREENED_BYTES:
            checked = screen(line, pooled.identity)
            if isinstance(checked, InvalidRequest):
                if checked.id_json != b"null":
                    pooled.client.deliver([checked.frames[1]])
                return
            line = checked
        try:
            line = foreign.one_line(line)
            header = envelope.scan(line)
        except (ValueError, RecursionError, msgspec.MsgspecError):
            return
        is_request = header.method is not None and header.id is not None
        if header.method == "initialize" and is_request:
            self._initialize(pooled, line, header, now)
        elif pooled.session is None:
            if is_request:
                self._refuse(pooled, header, plain_client.NOT_INITIALIZED)
        elif is_request and header.id is not None and pooled.session.has_call(header.id):
            self._refuse(pooled, header, f"request id {header.id!r} is that of a request without an answer")
        else:
            self._line(pooled, pooled.session, line, now)

    def _initialize(self, pooled: PooledClient, line: bytes, header: Envelope, now: float) -> None:
        if pooled.session is not None:
            self._refuse(pooled, header, plain_client.ALREADY_INITIALIZED)
            return
        try:
            name = foreign.client_name(line)
        except ValueError as error:
            self._refuse(pooled, header, str(error))
            return
        pooled.initialize_id = header.id
        session = pooled.session = Session(
            f"{self._instance}/{pooled.number}",
            name,
            endpoint=self._endpoint,
            no_pool=lambda why: f"the pool at {self._endpoint} cannot be reached: {why}",
            jitter=self._jitter,
            when_gone="keep",
            all_turns=True,
            knows_queue=False,
            ack_delay_s=ACK_DELAY_S,
            beats=False,
            listener=pooled.listener,
        )
        self._line(pooled, session, line, now)
        self._apply(pooled, session.start(now), now)

    def _line(self, pooled: PooledClient, session: Session, line: bytes, now: float) -> None:
        if not session.open:
            pooled.held_bytes += len(line)
            pooled.held_messages += 1
        self._apply(pooled, session.line(line, "full", None), now)

    def _refuse(self, pooled: PooledClient, header: Envelope, message: str) -> None:
        pooled.client.deliver([jsonrpc.error_line(jsonrpc.encode(header.id), errors.INVALID_REQUEST, message)])

    def congested(self, pooled: PooledClient, is_congested: bool, now: float) -> None:
        """Hold acknowledgements back while a client does not take what it is sent."""
        if pooled.session is not None and not pooled.is_over:
            self._apply(pooled, pooled.session.hold_acks(is_congested), now)

    def close(self, pooled: PooledClient) -> None:
        """End the session of a client that is gone."""
        if pooled.is_over:
            return
        if pooled.connection and pooled.session is not None and pooled.session.open:
            self._queue(pooled, [_BYE])
        self._remove(pooled)

    # The link.

    def joined(self, now: float) -> None:
        """Connect all sessions: the broker takes messages."""
        self._is_joined = True
        for pooled in list(self._clients.values()):
            if pooled.session is not None:
                self._apply(pooled, pooled.session.reachable(now), now)

    def lost(self, now: float) -> None:
        """Note that the link has ended, and all connections with it."""
        self._is_joined = False
        self._by_connection.clear()
        self._rotation.clear()
        for pooled in list(self._clients.values()):
            pooled.connection = 0
            if pooled.session is not None:
                self._apply(pooled, pooled.session.lost("the broker is gone", now), now)

    def received(self, messages: dict[int, list[list[bytes]]], now: float) -> None:
        """Take the messages of one read, by connection."""
        for connection, of_one in messages.items():
            if len(of_one) == 1 and self.received_deltas(connection, of_one[0], now) is not None:
                continue
            pooled = self._by_connection.get(connection)
            if pooled is not None and pooled.session is not None:
                self._apply(pooled, pooled.session.messages(of_one, now), now)

    def received_deltas(self, connection: int, frames: list[bytes], now: float) -> bool | None:
        """Take a message if it has nothing but deltas that its client is to get; None for any other.

        True if there may be something for the broker, or another deadline, afterwards.

        A message of one delta is by far the most frequent. What it costs is above all what it touches, since the
        process has slept before.
        """
        pooled = self._by_connection.get(connection)
        if pooled is None or (session := pooled.session) is None or (body := session.deltas(frames)) is None:
            return None
        pooled.client.deliver([body] if b"\n" not in body else body.split(b"\n"))
        if not session.wants_ack:
            return False
        self._apply(pooled, session.after_deltas(now), now)
        return True

    def ended(self, connection: int, now: float) -> None:
        """Note that the broker has ended a connection."""
        pooled = self._by_connection.pop(connection, None)
        if pooled is not None and pooled.session is not None:
            pooled.connection = 0
            self._queue_end(pooled, connection)
            self._apply(pooled, pooled.session.lost("the broker has ended the connection", now), now)

    @property
    def has_unsent(self) -> bool:
        """True if something waits for the broker."""
        return bool(self._rotation)

    def next_for_broker(self) -> FrameToBroker | None:
        """Take the next frame for the broker; None if there is none."""
        return self._rotation.pop()

    # The clock.

    def tick(self, now: float) -> None:
        """Do what is due. Call it at `next_deadline`."""
        while self._deadlines and self._deadlines[0][0] <= now:
            at, number = heapq.heappop(self._deadlines)
            pooled = self._clients.get(number)
            if pooled is None or pooled.session is None or at != pooled.due_at:
                continue
            pooled.due_at = math.inf
            if pooled.session.next_deadline <= now:
                self._apply(pooled, pooled.session.tick(now), now)
            else:
                self._schedule(pooled, pooled.session)

    @property
    def next_deadline(self) -> float:
        """Time of the next `tick`, infinite without one."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def _schedule(self, pooled: PooledClient, session: Session) -> None:
        at = session.next_deadline
        if at < pooled.due_at:
            at = pooled.due_at = math.ceil(at / GRID_S) * GRID_S
            heapq.heappush(self._deadlines, (at, pooled.number))

    # Effects of a session.

    def _apply(self, pooled: PooledClient, effects: list[Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._queue(pooled, effect.frames)
                case Deliver():
                    self._deliver(pooled, effect)
                case Connect():
                    if self._is_joined:
                        self._connections += 1
                        pooled.connection = self._connections
                        self._by_connection[pooled.connection] = pooled
                        if pooled.public_key:
                            # The key may be new: the broker reads the allow-list first.
                            self._rotation.add(pooled, ingress_frames.Keys())
                case Disconnect():
                    self._disconnect(pooled)
                case Failed():
                    self._fail(pooled, effect)
        session = pooled.session
        if pooled.is_over or session is None:
            return
        if session.open:
            pooled.held_bytes = pooled.held_messages = 0
        elif not self._is_joined:
            # It tries again when the link has joined, or its time is over.
            for effect in session.lost(NO_LINK, now):
                assert isinstance(effect, Disconnect), "a session that loses its connection waits"
        self._schedule(pooled, session)

    def _deliver(self, pooled: PooledClient, effect: Deliver) -> None:
        if pooled.is_over:
            return
        if pooled.initialize_id is not None and not self._has_call(pooled, pooled.initialize_id):
            pooled.initialize_id = None
        lines, overflow = foreign.to_client(effect.batch)
        if lines:
            pooled.client.deliver(lines)
        if overflow:
            # The turn goes on: it can resume the thread, and see how.
            self.close(pooled)
            pooled.client.end(overflow, again=True)

    def _has_call(self, pooled: PooledClient, request_id: RequestId) -> bool:
        return pooled.session is not None and pooled.session.has_call(request_id)

    def _fail(self, pooled: PooledClient, failed: Failed) -> None:
        if pooled.is_over:
            return
        if pooled.initialize_id is not None:
            # Most clients show the error of a request, and not why a connection was closed.
            request_id = jsonrpc.encode(pooled.initialize_id)
            pooled.client.deliver([jsonrpc.error_line(request_id, foreign.INTERNAL_ERROR, failed.message)])
        self._remove(pooled)
        pooled.client.end(failed.message, again=failed.again)

    def _remove(self, pooled: PooledClient) -> None:
        pooled.is_over = True
        del self._clients[pooled.number]
        if pooled.connection:
            del self._by_connection[pooled.connection]
            self._queue_end(pooled, pooled.connection)
            pooled.connection = 0

    def _disconnect(self, pooled: PooledClient) -> None:
        if not pooled.connection:
            return
        del self._by_connection[pooled.connection]
        self._rotation.remove(pooled)
        self._queue_end(pooled, pooled.connection)
        pooled.connection = 0

    def _queue(self, pooled: PooledClient, frames: list[bytes]) -> None:
        if pooled.connection and not pooled.is_over:
            screened = pooled.identity is not None and is_long(frames)
            message = ingress_frames.Message(pooled.connection, pooled.principal, pooled.public_key, frames, screened)
            self._rotation.add(pooled, message)

    def _queue_end(self, pooled: PooledClient, connection: int) -> None:
        if self._is_joined:
            self._rotation.add(pooled, ingress_frames.Ended(connection))
