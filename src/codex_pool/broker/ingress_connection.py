"""Connections of the broker to processes that let clients in: ingress and gateway (see `protocol.ingress_frames`).

The core knows a connection behind a link as `KIND NUL LINK.NUMBER`, where LINK counts the links: no name comes twice,
and none is that of a client over ipc, which begins with NUL.

Little is taken of the links at a time: the rest waits there, where it is bounded for each key. What they do not take
is kept up to MAX_UNSENT_BYTES; a link beyond that is cut, and its clients connect again.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from ..protocol import ingress_frames
from ..protocol.wire import BEAT_S

MESSAGES_PER_PHASE = 16
READ_BYTES = 64 * 1024
LONG_READ_BYTES = 1024 * 1024
WRITE_BYTES = 256 * 1024
MAX_UNSENT_BYTES = 192 * 1024 * 1024
MAX_LINKS = 8
JOIN_LIMIT_S = 5.0


class Message(NamedTuple):
    """A message of a client: the name of its connection, its principal, its public key, its frames.

    `is_owner`: the client is the pool's owner, and has no key.
    """

    peer: bytes
    principal: str
    key: str
    frames: list[bytes]
    screened: bool = False
    is_owner: bool = False


class ConnectionEnded(NamedTuple):
    """The end of a connection. With `revoked` its key is not allowed any more."""

    peer: bytes
    revoked: bool = False


class GatewayJoined(NamedTuple):
    """A gateway has joined; `instance` is unique to its process."""

    instance: str


class ReportAsked(NamedTuple):
    """A gateway asks for the state of the pool; `prefix` is that of its link."""

    prefix: bytes
    number: int


class Events(NamedTuple):
    """Input of one phase: messages and ends of connections in order, counts of refusals, change of the allow-list."""

    messages: list[Message | ConnectionEnded | GatewayJoined | ReportAsked]
    refused: dict[str, int]
    keys_changed: bool


@dataclass(eq=False)
class _Link:
    socket: socket.socket
    since: float
    decoder: ingress_frames.Decoder
    prefix: bytes = b""
    kind: str = ""
    heard_at: float = 0.0
    connections: set[int] = field(default_factory=set)
    unsent: bytearray = field(default_factory=bytearray)
    has_more: bool = False
    writes: bool = False
    taken: int = 0


class IngressLinks:
    """See the module's docstring. It listens at `path` from `bind` on. `secrets`: by kind of process."""

    def __init__(self, path: Path, secrets: Mapping[str, str], poller: zmq.Poller, log: Callable[[str], None]) -> None:
        self._path = path
        self._secrets = {kind: secret.encode() for kind, secret in secrets.items()}
        self._next_beat = 0.0
        self._poller = poller
        self._log = log
        self._links: dict[int, _Link] = {}
        self._by_prefix: dict[bytes, _Link] = {}
        self._joined = 0
        # Links with something that no write has been tried of.
        self._dirty: dict[_Link, None] = {}
        self._lost: list[ConnectionEnded] = []
        self._listener: socket.socket | None = None

    def bind(self) -> None:
        """Listen, in place of a socket that is at the path; links that there are stay. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(os.fsencode(self._path))
            listener.listen(MAX_LINKS)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, error.strerror, os.fspath(self._path)) from None
        finally:
            os.umask(before)
        listener.setblocking(False)
        self._close_listener()
        self._listener = listener
        self._poller.register(listener.fileno(), zmq.POLLIN)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._poller.unregister(self._listener.fileno())
            self._listener.close()

    def close(self) -> None:
        """Send what can be sent at once, and close."""
        for each in list(self._links.values()):
            self._write(each)
            self._cut(each)
        self._close_listener()

    @property
    def has_more(self) -> bool:
        """True while something has been read that the last phase left."""
        return any(each.has_more for each in self._links.values())

    def receive(self, ready: dict[Any, int], now: float) -> Events:
        """Read the links that are ready, and what an earlier phase left."""
        events = Events([], {}, False)
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept(self._listener, now)
        left = MESSAGES_PER_PHASE
        changed = False
        for fd, each in list(self._links.items()):
            flags = ready.get(fd, 0)
            if flags & zmq.POLLOUT:
                self._write(each)
            if each.socket.fileno() < 0:
                continue
            if not flags and not each.has_more and each.prefix:
                continue
            if not each.prefix and now - each.since > JOIN_LIMIT_S:
                self._cut(each)
                continue
            ended = False
            if flags & (zmq.POLLIN | zmq.POLLERR):
                each.heard_at = now
                if not each.has_more:
                    ended = not self._read(each)
            try:
                each.has_more = False
                while (frame := each.decoder.next()) is not None:
                    match frame:
                        case ingress_frames.Join():
                            self._on_join(each, frame)
                            if each.kind == ingress_frames.GATEWAY:
                                events.messages.append(GatewayJoined(frame.instance))
                        case _ if not each.prefix:
                            raise ingress_frames.FrameError("the first frame is not join")
                        case ingress_frames.Message():
                            each.connections.add(frame.connection)
                            peer = each.prefix + str(frame.connection).encode()
                            is_owner = not (frame.principal or frame.key) and each.kind == ingress_frames.GATEWAY
                            events.messages.append(
                                Message(peer, frame.principal, frame.key, frame.frames, frame.screened, is_owner)
                            )
                            left -= 1
                            self._take(each)
                        case ingress_frames.Ended():
                            each.connections.discard(frame.connection)
                            events.messages.append(
                                ConnectionEnded(each.prefix + str(frame.connection).encode(), frame.revoked)
                            )
                        case ingress_frames.Refused():
                            for reason, count in frame.counts.items():
                                events.refused[reason] = events.refused.get(reason, 0) + count
                        case ingress_frames.Keys():
                            changed = True
                        case ingress_frames.Ask() if each.kind == ingress_frames.GATEWAY:
                            events.messages.append(ReportAsked(each.prefix, frame.number))
                    if left <= 0:
                        each.has_more = True
                        break
            except ingress_frames.FrameError as error:
                self._log(f"a link was cut: {error}")
                ended = True
            if ended:
                self._cut(each)
        lost, self._lost = self._lost, []
        return Events([*events.messages, *lost], events.refused, changed)

    def flush(self) -> None:
        """Write what was sent: what is sent in one turn of the loop leaves together."""
        dirty, self._dirty = self._dirty, {}
        for each in dirty:
            self._write(each)

    def tick(self, now: float) -> None:
        """Send beats on the links of gateways, and cut those that are silent. Call it after `receive`."""
        if now < self._next_beat:
            return
        self._next_beat = now + BEAT_S
        for each in [link for link in self._links.values() if link.kind == ingress_frames.GATEWAY]:
            if now - each.heard_at > ingress_frames.SILENT_S:
                self._log(f"a link was cut: nothing has come from the gateway for {ingress_frames.SILENT_S:.0f} s")
                self._cut(each)
            else:
                self._say(each, ingress_frames.Beat())

    def send(self, peer: bytes, frames: list[bytes]) -> bool:
        """Send a message to a client; False if its link is gone."""
        return self._queue(peer, lambda connection: ingress_frames.Send(connection, frames))

    def end(self, peer: bytes) -> bool:
        """End the connection of a client once it has got what was sent to it; False if its link is gone."""
        return self._queue(peer, ingress_frames.End)

    def report(self, asked: ReportAsked, body: bytes) -> None:
        """Answer a gateway, unless its link is gone."""
        each = self._by_prefix.get(asked.prefix)
        if each is not None:
            self._say(each, ingress_frames.Report(asked.number, body))

    def _queue(self, peer: bytes, frame: Callable[[int], ingress_frames.FromBroker]) -> bool:
        prefix, _, number = peer.rpartition(b".")
        each = self._by_prefix.get(prefix + b".")
        if each is None or int(number) not in each.connections:
            return False
        self._say(each, frame(int(number)))
        if len(each.unsent) > MAX_UNSENT_BYTES:
            self._log(f"a link was cut: it has not taken {len(each.unsent)} bytes")
            self._cut(each)
        return True

    def _say(self, each: _Link, frame: ingress_frames.FromBroker) -> None:
        each.unsent += ingress_frames.encode(frame)
        if len(each.unsent) >= WRITE_BYTES:
            self._write(each)
        else:
            self._dirty[each] = None

    def _accept(self, listener: socket.socket, now: float) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            if len(self._links) >= MAX_LINKS:
                accepted.close()
                return
            accepted.setblocking(False)
            self._links[accepted.fileno()] = _Link(
                accepted, now, ingress_frames.Decoder(ingress_frames.ToBroker, ingress_frames.MAX_JOIN_BYTES)
            )
            self._poller.register(accepted.fileno(), zmq.POLLIN)

    def _on_join(self, each: _Link, join: ingress_frames.Join) -> None:
        secret = self._secrets.get(join.kind)
        if each.prefix or secret is None or not hmac.compare_digest(join.secret.encode(), secret):
            raise ingress_frames.FrameError("join with another secret than the supervisor's")
        self._joined += 1
        each.kind = join.kind
        each.prefix = b"%s\0%d." % (join.kind.encode(), self._joined)
        each.decoder.limit = ingress_frames.MAX_FRAME_BYTES
        self._by_prefix[each.prefix] = each
        self._say(each, ingress_frames.Joined())

    def _take(self, each: _Link) -> None:
        each.taken += 1
        if each.taken >= ingress_frames.TAKEN_EVERY:
            self._say(each, ingress_frames.Taken(each.taken))
            each.taken = 0

    def _read(self, each: _Link) -> bool:
        try:
            data = each.socket.recv(LONG_READ_BYTES if each.decoder.expects > READ_BYTES else READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        each.decoder.feed(data)
        return bool(data)

    def _write(self, each: _Link) -> None:
        if each.socket.fileno() < 0:
            return
        try:
            while each.unsent:
                with memoryview(each.unsent) as view:
                    sent = each.socket.send(view[:WRITE_BYTES])
                del each.unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._cut(each)
            return
        if bool(each.unsent) != each.writes:
            each.writes = bool(each.unsent)
            self._poller.register(each.socket.fileno(), zmq.POLLIN | (zmq.POLLOUT if each.writes else 0))

    def _cut(self, each: _Link) -> None:
        fd = each.socket.fileno()
        if fd < 0:
            return
        self._poller.unregister(fd)
        del self._links[fd]
        each.socket.close()
        each.unsent.clear()
        self._by_prefix.pop(each.prefix, None)
        self._lost += [ConnectionEnded(each.prefix + str(number).encode()) for number in each.connections]
        each.connections.clear()
