"""LoopbackModel: the scripted model as an HTTP server of one thread.

One asyncio loop in one thread; every connection is a small state machine between two callbacks, "bytes came" and
"write the next frame". There are no tasks, so a hundred paced streams cost a hundred timers. An answer without pauses
is one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..._runtime.fork import ProcessBound, descriptor_of, keep, let_go, opening
from ..._runtime.threads import start
from ..._runtime.wakeup import Latch
from .directives import DirectiveError
from .http_messages import Head, chunked, head_bytes
from .records import Journal, RequestRecord
from .request import RequestError, read_request
from .script import Script
from .stream import Plan, plan, plan_error

HEAD_LIMIT_BYTES = 64 * 1024
RECORDS_KEPT = 20_000
_CLOSE_TIMEOUT_S = 10.0


class LoopbackModel(ProcessBound):
    """A Responses API server on loopback that answers by a script. Use it as a context manager, or start() and close().

        with LoopbackModel(Script((Rule(Text("4"), contains="2 + 2"),))) as model:
            write_loopback_home(home, model.base_url)
            ...
            model.wait_for(lambda request: request.outcome == "completed", timeout_s=10)

    `script` may be replaced while it serves. `port=0` takes a free one. `authorize` is called, in the server's thread,
    with the bearer token of each request ("" if it has none); where it is false the answer is HTTP 401, which
    `unauthorized` counts. Raises ValueError for a host that is not loopback, OSError from start() when the port is
    taken, StartError when no thread can be started. In a process forked from the one that made it, it does nothing.
    """

    _called = "model server"

    def __init__(
        self,
        script: Script | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        records_kept: int = RECORDS_KEPT,
        authorize: Callable[[str], bool] | None = None,
    ) -> None:
        self.script: Script = Script() if script is None else script
        self.unauthorized = 0
        self._authorize = authorize
        self._host, self._port = check_loopback(host), port
        self._journal = Journal(records_kept)
        self._running: tuple[Latch, asyncio.AbstractEventLoop, asyncio.Future[None], socket.socket] | None = None
        self._connections: set[_Connection] = set()
        # Another model's ids may stand in the history of a thread that is resumed with this one.
        self._nonce = os.urandom(4).hex()
        self._bind_to_process()

    def start(self) -> LoopbackModel:
        """Bind and serve; on return clients can connect. Calling it while it serves changes nothing."""
        self._check_process()
        if self._running is not None:
            return self
        with opening():
            listener = socket.create_server(
                (self._host, self._port),
                family=socket.AF_INET6 if ":" in self._host else socket.AF_INET,
                backlog=1024,
            )
            ended, loop = Latch(), asyncio.new_event_loop()
            stopped = loop.create_future()
            self._running = (ended, loop, stopped, listener)
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        arguments = (loop, listener, stopped, ended)
        thread = threading.Thread(target=self._run, args=arguments, name="loopback-model", daemon=True)
        try:
            start(thread, "for the model server")
        except BaseException:
            self._running = None
            listener.close()
            loop.close()
            raise
        return self

    def close(self) -> None:
        """Close every connection and the port, and end the thread. Safe to call twice."""
        running = self._running
        if running is None or self._is_inherited:
            return
        ended, loop, stopped, _ = running
        self._running = None
        # One whose thread has ended is closed.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stopped.set_result, None)
        ended.wait(_CLOSE_TIMEOUT_S)

    def _let_go(self) -> None:
        if self._running is None:
            return
        _, loop, _, listener = self._running
        let_go(descriptor_of(listener), *(descriptor_of(getattr(loop, end, None)) for end in ("_ssock", "_csock")))
        for connection in list(self._connections):
            let_go(descriptor_of(connection.socket))
        # Closing the loop would take its descriptors out of what the parent's thread waits for.
        keep(loop, listener)

    def __enter__(self) -> LoopbackModel:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self._port

    @property
    def base_url(self) -> str:
        """The `base_url` for the provider in codex's config.toml."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/v1"

    @property
    def requests(self) -> list[RequestRecord]:
        """The requests to the model so far, oldest first; the last 20,000 are kept."""
        self._check_process()
        return self._journal.records

    @property
    def active(self) -> list[RequestRecord]:
        """The requests that are being answered now, hanging ones included."""
        self._check_process()
        return self._journal.running

    def wait_for(
        self, predicate: Callable[[RequestRecord], object], timeout_s: float = 10.0, *, count: int = 1
    ) -> RequestRecord:
        """The `count`-th request of which `predicate` is true, waiting for it without polling.

        It is asked again at every change of any record: keep it cheap. Raises TimeoutError, listing the last requests.
        """
        self._check_process()
        return self._journal.wait_for(predicate, timeout_s, count)

    def _run(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, stopped: asyncio.Future[None], ended: Latch
    ) -> None:
        try:
            loop.run_until_complete(self._serve(loop, listener, stopped))
        finally:
            listener.close()
            loop.close()
            ended.open()

    async def _serve(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, stopped: asyncio.Future[None]
    ) -> None:
        server = await loop.create_server(lambda: _Connection(self, loop), sock=listener, backlog=1024)
        await stopped
        # asyncio makes the transport of a connection just accepted in a task of its own, which a closed server breaks.
        while accepting := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(*accepting, return_exceptions=True)
        server.close()
        for connection in list(self._connections):
            connection.abort()
        # One more round, in which the transports close their sockets.
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One keep-alive connection: reads a request, writes its answer, then looks for the next."""

    def __init__(self, model: LoopbackModel, loop: asyncio.AbstractEventLoop) -> None:
        self._model = model
        self._journal = model._journal
        self._loop = loop
        self._buffer = bytearray()
        self._head: Head | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._record: RequestRecord | None = None
        self._answering = False

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._model._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._answering:
            self._read()
        elif len(self._buffer) > HEAD_LIMIT_BYTES:
            self.abort("disconnected")

    def connection_lost(self, error: Exception | None) -> None:
        self._end("disconnected")
        self._model._connections.discard(self)

    @property
    def socket(self) -> Any:
        """The socket of the connection, as asyncio shows it."""
        return self._transport.get_extra_info("socket")

    # Reading.

    def abort(self, outcome: str = "closed") -> None:
        self._end(outcome)
        self._transport.abort()

    def _read(self) -> None:
        while not self._answering and not self._transport.is_closing():
            if self._head is None:
                end = self._buffer.find(b"\r\n\r\n")
                if end < 0:
                    if len(self._buffer) > HEAD_LIMIT_BYTES:
                        self._refuse(431, f"the request's head is over {HEAD_LIMIT_BYTES} bytes")
                    return
                head = self._head = Head(bytes(self._buffer[:end]))
                del self._buffer[: end + 4]
                if refusal := head.refusal():
                    return self._refuse(*refusal)
                if head.headers.get("expect", "").lower() == "100-continue":
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if len(self._buffer) < self._head.length:
                return
            body = bytes(self._buffer[: self._head.length])
            del self._buffer[: self._head.length]
            head, self._head = self._head, None
            self._answer(head, body)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be read on from, and close."""
        self._write_plain(plan_error(status, message), keep=False)

    # Answering.

    def _answer(self, head: Head, body: bytes) -> None:
        path, _, query = head.path.partition("?")
        path = path.rstrip("/")
        authorize = self._model._authorize
        if authorize is not None and not authorize(head.bearer_token()):
            self._model.unauthorized += 1
            self._write_plain(plan_error(401, "the bearer token is not valid"), keep=head.keep)
        elif head.method == "POST" and path in ("/v1/responses", "/responses"):
            self._answer_prompt(head, body)
        elif head.method == "GET" and path in ("/v1/models", "/models"):
            self._write(200, "application/json", b'{"models":[],"data":[]}', head.keep)
        elif head.method == "GET" and path == "/loopback/requests":
            # A record carries some 25 kB of instructions: not all of them without being asked.
            last = int(number) if (number := query.removeprefix("last=")).isdecimal() and int(number) else 100
            self._write(200, "application/json", self._journal.to_json(last), head.keep)
        else:
            message = (
                f"{head.method} {head.path} is not served here; expected POST /v1/responses, GET /v1/models "
                "or GET /loopback/requests?last=N"
            )
            self._write_plain(plan_error(404, message), keep=head.keep)

    def _answer_prompt(self, head: Head, body: bytes) -> None:
        try:
            request = read_request(body)
        except RequestError as error:
            return self._write_plain(plan_error(400, str(error)), keep=head.keep)
        record, repeat = self._journal.open(request, body_bytes=len(body), ids=head.ids())
        try:
            answer = self._model.script.answer(request, record.attempt, repeat)
            planned = plan(answer, request, f"{self._model._nonce}_{record.number}")
        except DirectiveError as error:
            planned = plan_error(400, str(error))
        except Exception as error:
            planned = plan_error(500, f"the script cannot answer {request.prompt[:200]!r}: {error!r}")
        self._journal.update(record, answer=planned.kind)
        if planned.end == "http_error":
            # The outcome first: who has the answer finds the record finished.
            self._journal.update(record, outcome="http_error")
            return self._write_plain(planned, keep=head.keep)
        self._record, self._answering = record, True
        if not any(frame.wait_ms for frame in planned.frames):
            return self._write_at_once(planned, head.keep)
        self._transport.write(head_bytes(200, "text/event-stream", None, head.keep))
        self._write_from(planned, 0, head.keep)

    def _write_at_once(self, planned: Plan, keep: bool) -> None:
        body = b"".join([frame.with_time(time.time()) for frame in planned.frames])
        deltas = sum(frame.deltas for frame in planned.frames)
        whole = planned.end in ("completed", "failed")
        if whole:
            self._end(planned.end, deltas)
            self._write(200, "text/event-stream", body, keep)
            return
        if not planned.silent:
            self._transport.write(head_bytes(200, "text/event-stream", None, keep) + chunked(body))
        self._cut(planned, deltas)

    def _write_from(self, planned: Plan, position: int, keep: bool) -> None:
        """Write the frame at `position`, whose wait is over, and those after it that have none."""
        self._timer = None
        frames = planned.frames
        data, deltas = [], 0
        while True:
            data.append(frames[position].with_time(time.time()))
            deltas += frames[position].deltas
            position += 1
            if position == len(frames) or frames[position].wait_ms:
                break
        done = position == len(frames)
        chunk = chunked(b"".join(data))
        if not done:
            self._transport.write(chunk)
            self._update(deltas)
            self._timer = self._loop.call_later(
                frames[position].wait_ms / 1000, self._write_from, planned, position, keep
            )
        elif planned.end in ("completed", "failed"):
            self._end(planned.end, deltas)
            self._transport.write(chunk + b"0\r\n\r\n")
            self._finish(keep)
        else:
            self._transport.write(chunk)
            self._cut(planned, deltas)

    def _cut(self, planned: Plan, deltas: int) -> None:
        """End of a stream that does not end: drop the connection, or keep silent until the client goes."""
        if planned.end == "hanging":
            self._update(deltas, outcome="hanging")
        else:
            self._end("dropped", deltas)
            self._transport.close()

    def _write(self, status: int, kind: str, body: bytes, keep: bool, extra: bytes = b"") -> None:
        self._transport.write(head_bytes(status, kind, len(body), keep, extra) + body)
        self._finish(keep)

    def _write_plain(self, planned: Plan, *, keep: bool) -> None:
        extra = b"" if planned.retry_after_s is None else b"Retry-After: %d\r\n" % planned.retry_after_s
        self._write(planned.status, "application/json", planned.frames[0].data, keep, extra)

    def _finish(self, keep: bool) -> None:
        self._record, self._answering = None, False
        if not keep:
            self._transport.close()
        elif self._buffer:
            # Not from here: answers to pipelined requests would nest.
            self._loop.call_soon(self._read)

    def _update(self, deltas: int, outcome: str | None = None) -> None:
        if self._record is not None:
            self._journal.update(self._record, deltas=deltas, outcome=outcome)

    def _end(self, outcome: str, deltas: int = 0) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._update(deltas, outcome)


def check_loopback(host: str) -> str:
    """The address of `host`. Raises ValueError unless it is a loopback one: this server has no authentication."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        raise ValueError(f"host is {host!r}, expected a loopback address such as 127.0.0.1, ::1 or localhost") from None
    if not address.is_loopback:
        raise ValueError(f"host is {host!r}, expected a loopback address: the loopback model has no authentication")
    return str(address)
