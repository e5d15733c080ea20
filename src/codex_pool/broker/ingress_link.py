"""The broker's end of the links to the processes that let clients in, such as the ingress (see `codex_pool.link`).

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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from codex_pool import link

MESSAGES_PER_PHASE = 16
READ_BYTES = 64 * 1024
LONG_READ_BYTES = 1024 * 1024
WRITE_BYTES = 256 * 1024
MAX_UNSENT_BYTES = 192 * 1024 * 1024
MAX_LINKS = 8
JOIN_LIMIT_S = 5.0


class Message(NamedTuple):
    """A message of a client: the name of its connection, its principal, its public key, its frames."""

    peer: bytes
    who: str
    key: str
    frames: list[bytes]
    screened: bool = False


class Over(NamedTuple):
    """The end of a connection. With `revoked` its key is not allowed any more."""

    peer: bytes
    revoked: bool = False


class Events(NamedTuple):
    """Input of one phase: messages and ends of connections in order, counts of refusals, change of the allow-list."""

    messages: list[Message | Over]
    refused: dict[str, int]
    keys_changed: bool


@dataclass(eq=False)
class _Link:
    socket: socket.socket
    since: float
    decoder: link.Decoder
    prefix: bytes = b""
    connections: set[int] = field(default_factory=set)
    unsent: bytearray = field(default_factory=bytearray)
    has_more: bool = False
    writes: bool = False
    taken: int = 0


class IngressLinks:
    """See the module's docstring. It listens at `path` from `bind` on."""

    def __init__(self, path: Path, secret: str, poller: zmq.Poller, log: Callable[[str], None]) -> None:
        self._path = path
        self._secret = secret.encode()
        self._poller = poller
        self._log = log
        self._links: dict[int, _Link] = {}
        self._by_prefix: dict[bytes, _Link] = {}
        self._joined = 0
        self._lost: list[Over] = []
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
            if flags & (zmq.POLLIN | zmq.POLLERR) and not each.has_more:
                ended = not self._read(each)
            try:
                each.has_more = False
                while (frame := each.decoder.next()) is not None:
                    match frame:
                        case link.Join():
                            self._on_join(each, frame)
                        case _ if not each.prefix:
                            raise link.LinkError("the first frame is not join")
                        case link.Message():
                            each.connections.add(frame.connection)
                            peer = each.prefix + str(frame.connection).encode()
                            message = Message(peer, frame.principal, frame.key, frame.frames, frame.screened)
                            events.messages.append(message)
                            left -= 1
                            self._take(each)
                        case link.Ended():
                            each.connections.discard(frame.connection)
                            events.messages.append(Over(each.prefix + str(frame.connection).encode(), frame.revoked))
                        case link.Refused():
                            for reason, count in frame.counts.items():
                                events.refused[reason] = events.refused.get(reason, 0) + count
                        case link.Keys():
                            changed = True
                    if left <= 0:
                        each.has_more = True
                        break
            except link.LinkError as error:
                self._log(f"a link was cut: {error}")
                ended = True
            if ended:
                self._cut(each)
        lost, self._lost = self._lost, []
        return Events([*events.messages, *lost], events.refused, changed)

    def send(self, peer: bytes, frames: list[bytes]) -> bool:
        """Send a message to a client; False if its link is gone."""
        return self._queue(peer, lambda connection: link.Send(connection, frames))

    def end(self, peer: bytes) -> bool:
        """End the connection of a client once it has got what was sent to it; False if its link is gone."""
        return self._queue(peer, link.End)

    def _queue(self, peer: bytes, frame: Callable[[int], link.FromBroker]) -> bool:
        prefix, _, number = peer.rpartition(b".")
        each = self._by_prefix.get(prefix + b".")
        if each is None or int(number) not in each.connections:
            return False
        self._say(each, frame(int(number)))
        if len(each.unsent) > MAX_UNSENT_BYTES:
            self._log(f"a link was cut: it has not taken {len(each.unsent)} bytes")
            self._cut(each)
        return True

    def _say(self, each: _Link, frame: link.FromBroker) -> None:
        each.unsent += link.encode(frame)
        self._write(each)

    def _accept(self, listener: socket.socket, now: float) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            if len(self._links) >= MAX_LINKS:
                accepted.close()
                return
            accepted.setblocking(False)
            self._links[accepted.fileno()] = _Link(accepted, now, link.Decoder(link.ToBroker, link.MAX_JOIN_BYTES))
            self._poller.register(accepted.fileno(), zmq.POLLIN)

    def _on_join(self, each: _Link, join: link.Join) -> None:
        if each.prefix or not hmac.compare_digest(join.secret.encode(), self._secret):
            raise link.LinkError("join with another secret than the supervisor's")
        self._joined += 1
        each.prefix = b"%s\0%d." % (join.kind.encode(), self._joined)
        each.decoder.limit = link.MAX_FRAME_BYTES
        self._by_prefix[each.prefix] = each
        self._say(each, link.Joined())

    def _take(self, each: _Link) -> None:
        each.taken += 1
        if each.taken >= link.TOOK_EVERY:
            self._say(each, link.Took(each.taken))
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
        self._lost += [Over(each.prefix + str(number).encode()) for number in each.connections]
        each.connections.clear()
