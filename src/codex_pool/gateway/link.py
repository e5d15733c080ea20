"""Link: the socket between the gateway and the broker, which carries the messages of all sessions.

It is connected again whenever it ends. The broker's beats are returned, so that either side notices a link on which
nothing comes any more.

The socket is read and written here, not by a transport of asyncio: a delta wakes the process for itself, and what the
transport does around it costs as much as all the rest.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable

from codex_app_server._runtime import reads

from ..protocol import ingress_frames, pool_report
from ..protocol.pool_report import PoolReport
from .core import GatewayCore
from .direct_loop import DirectLoop

RETRY_S = 0.05
# Small, so that what waits in the link does not delay the session that is next.
BUFFER_BYTES = 32 * 1024
READ_BYTES = 256 * 1024

_BEAT = ingress_frames.encode(ingress_frames.Beat())

_log = logging.getLogger(__name__)


class Link:
    """See the module's docstring. `changed` is called after each event that the core was given."""

    def __init__(
        self,
        core: GatewayCore,
        path: str,
        secret: str,
        instance: str,
        *,
        joined: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self._core = core
        self._path = path
        self._join = ingress_frames.encode(ingress_frames.Join(secret, ingress_frames.GATEWAY, instance))
        self._on_joined = joined
        self._on_changed = changed
        self._loop = asyncio.get_running_loop()
        # That of the loop, without a call around it.
        self._now = time.monotonic
        self._socket: socket.socket | None = None
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._decoder = ingress_frames.Decoder(ingress_frames.FromBroker)
        self._is_joined = False
        self._read_bytes = reads.LITTLE_BYTES
        # What the socket has not taken.
        self._unsent = bytearray()
        # Messages that the broker has not taken.
        self._on_the_way = 0
        self._heard_at = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        # Reports that were asked for, by number.
        self._asked: dict[int, asyncio.Future[PoolReport | None]] = {}
        self._last_number = 0

    async def run(self) -> None:
        """Keep it connected, until this is cancelled."""
        while True:
            connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connecting.setblocking(False)
                connecting.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
                await self._loop.sock_connect(connecting, self._path)
            except OSError:
                connecting.close()
            except BaseException:
                connecting.close()
                raise
            else:
                self._begin(connecting)
                await self._over
            await asyncio.sleep(RETRY_S)

    def close(self) -> None:
        """Send what waits, as far as the socket takes it at once, and close."""
        if self._socket is not None:
            self.pump()
            self._end()

    async def report(self, limit_s: float) -> PoolReport | None:
        """Ask the broker for the state of the pool; None if it does not answer within so many seconds."""
        if not self._is_joined:
            return None
        self._last_number += 1
        number, answer = self._last_number, self._loop.create_future()
        self._asked[number] = answer
        self._write(ingress_frames.encode(ingress_frames.Ask(number)))
        try:
            await asyncio.wait([answer], timeout=limit_s)
            return answer.result() if answer.done() else None
        finally:
            self._asked.pop(number, None)

    def pump(self) -> None:
        """Pass on what waits for the broker, as long as the link takes it."""
        if self._socket is None or not self._is_joined:
            return
        # All that is small goes in one write.
        frames: list[bytes] = []
        size = 0
        while len(self._unsent) <= BUFFER_BYTES and self._on_the_way < ingress_frames.WINDOW:
            frame = self._core.next_for_broker()
            if frame is None:
                break
            self._on_the_way += isinstance(frame, ingress_frames.Message)
            frames.append(ingress_frames.encode(frame))
            size += len(frames[-1])
            if size > BUFFER_BYTES:
                self._write(b"".join(frames))
                frames, size = [], 0
        if frames:
            self._write(b"".join(frames))

    # The socket.

    def _begin(self, connected: socket.socket) -> None:
        self._socket = connected
        self._over = self._loop.create_future()
        self._decoder = ingress_frames.Decoder(ingress_frames.FromBroker)
        self._unsent.clear()
        self._on_the_way = 0
        self._heard_at = self._now()
        self._watch()
        self._loop.add_reader(connected, self._read)
        if isinstance(self._loop, DirectLoop):
            self._loop.read_directly(connected.fileno(), self._read)
        self._write(self._join)

    def _end(self) -> None:
        if self._socket is None:
            return
        self._loop.remove_reader(self._socket)
        if isinstance(self._loop, DirectLoop):
            self._loop.read_no_more()
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._socket = None
        if self._watchdog is not None:
            self._watchdog.cancel()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)
        if self._is_joined:
            self._is_joined = False
            self._core.lost(self._now())
            self._on_changed()
        if not self._over.done():
            self._over.set_result(None)

    def _write(self, data: bytes) -> None:
        if self._socket is None:
            return
        if not self._unsent:
            data = data[self._send(data) :]
            if not data:
                return
            self._loop.add_writer(self._socket, self._write_more)
        self._unsent += data

    def _write_more(self) -> None:
        assert self._socket is not None
        with memoryview(self._unsent) as view:
            sent = self._send(view)
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._socket)
        self._on_changed()

    def _send(self, data: bytes | memoryview) -> int:
        """Send what the socket takes at once; the number of bytes."""
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The end of what is read tells the rest.
            return len(data)

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(self._read_bytes)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self._read_bytes = reads.next_bytes(len(data), READ_BYTES)
        now = self._heard_at = self._now()
        try:
            frame = self._decoder.only(data)
            if type(frame) is ingress_frames.Send:
                follows = self._core.received_deltas(frame.connection, frame.frames, now)
                if follows is not None:
                    if follows:
                        self._on_changed()
                    return
            if frame is None:
                self._decoder.feed(data)
                frame = self._decoder.next()
            self._take(frame, now)
        except ingress_frames.FrameError as error:
            _log.error(f"the link to the broker is cut: {error}")
            self._end()

    def _take(self, frame: ingress_frames.FromBroker | None, now: float) -> None:
        """Take the frames of a read, of which the first is given."""
        messages: dict[int, list[list[bytes]]] = {}
        while frame is not None:
            match frame:
                case ingress_frames.Send():
                    messages.setdefault(frame.connection, []).append(frame.frames)
                case ingress_frames.Taken():
                    self._on_the_way -= frame.messages
                case ingress_frames.Beat():
                    self._write(_BEAT)
                case ingress_frames.Report():
                    answer = self._asked.get(frame.number)
                    if answer is not None and not answer.done():
                        answer.set_result(pool_report.decode(frame.body))
                case ingress_frames.End():
                    # Behind what was sent to it.
                    self._core.received({frame.connection: messages.pop(frame.connection, [])}, now)
                    self._core.ended(frame.connection, now)
                case ingress_frames.Joined():
                    self._is_joined = True
                    self._core.joined(now)
                    self._on_joined()
            frame = self._decoder.next()
        if messages:
            self._core.received(messages, now)
        self._on_changed()

    def _watch(self) -> None:
        """Cut the link once it has been silent for too long."""
        at = self._heard_at + ingress_frames.SILENT_S
        if self._now() < at:
            self._watchdog = self._loop.call_at(at, self._watch)
        else:
            _log.warning(f"the broker was silent for {ingress_frames.SILENT_S:.0f} s: the link is cut")
            self._end()
