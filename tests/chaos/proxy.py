"""A proxy between clients and a pool, on a UNIX socket or TCP: it passes bytes on, and cuts, stalls or trickles.

What it does to its n-th connection is the n-th of its faults; when they are used up it only passes on, so that whatever
goes through it ends by itself. Faults count bytes, not time, so that they come at the same place each time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

BUFFER_BYTES = 256 * 1024


@dataclass(frozen=True)
class Fault:
    """Once `after` bytes have passed towards the client (`to="pool"`: towards the pool) this happens to a connection.

    `cut`: it is closed. `stall`: nothing passes any more, either way, for `seconds`, then it is cut. `trickle`: from
    then on `chunk` bytes pass every `pause_s`, in that direction.
    """

    kind: Literal["cut", "stall", "trickle"]
    after: int = 0
    to: Literal["client", "pool"] = "client"
    seconds: float = 10.0
    chunk: int = 500
    pause_s: float = 0.01


@dataclass
class _Way:
    """One direction of a connection."""

    source: socket.socket
    sink: socket.socket
    name: Literal["client", "pool"]
    buffer: bytearray = field(default_factory=bytearray)
    passed: int = 0
    not_before: float = 0.0
    ended: bool = False


@dataclass
class _Pair:
    ways: tuple[_Way, _Way]
    fault: Fault | None
    stalled_until: float | None = None


class Proxy:
    """Use it as a context manager; clients connect to `endpoint`. `target` is the pool's."""

    def __init__(self, target: str, faults: Sequence[Fault] = ()) -> None:
        self._target = target
        self._faults = list(faults)
        self.connections = 0
        self.cuts = 0
        self._pairs: list[_Pair] = []
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        if target.startswith("ipc://"):
            path = Path(target.removeprefix("ipc://")).with_name(f"proxy-{secrets.token_hex(4)}.sock")
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._path: Path | None = path
            self.endpoint = f"ipc://{path}"
        else:
            self._listener = socket.socket(socket.AF_INET)
            self._listener.bind(("127.0.0.1", 0))
            self._path = None
            self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._wake_r, self._wake_w = os.pipe()
        self._wanted: list[str] = []
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        os.write(self._wake_w, b"\0")
        self._thread.join()
        os.close(self._wake_r)
        os.close(self._wake_w)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def cut(self) -> None:
        """Close every connection now."""
        self._wanted.append("cut")
        os.write(self._wake_w, b"\0")

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        try:
            while not self._stopping:
                ready = {key.fileobj for key, _ in self._selector.select(self._timeout_s())}
                if self._wake_r in ready:
                    os.read(self._wake_r, 4096)
                    while self._wanted:
                        self._wanted.pop()
                        for pair in list(self._pairs):
                            self._end(pair, cut=True)
                if self._listener in ready:
                    self._accept()
                for pair in list(self._pairs):
                    self._serve(pair, ready)
        finally:
            for pair in list(self._pairs):
                self._end(pair)
            self._listener.close()
            self._selector.close()

    def _timeout_s(self) -> float | None:
        """Until something is due by itself."""
        now = time.monotonic()
        due = [pair.stalled_until for pair in self._pairs if pair.stalled_until is not None]
        due += [way.not_before for pair in self._pairs for way in pair.ways if way.buffer and way.not_before > now]
        return max(0.0, min(due) - now) if due else None

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        pool = socket.socket(socket.AF_UNIX if self._path is not None else socket.AF_INET)
        pool.settimeout(5)
        try:
            if self._path is not None:
                pool.connect(self._target.removeprefix("ipc://"))
            else:
                host, _, port = self._target.removeprefix("tcp://").rpartition(":")
                pool.connect((host, int(port)))
        except OSError:
            client.close()
            pool.close()
            return
        for end in (client, pool):
            end.setblocking(False)
        fault = self._faults[self.connections] if self.connections < len(self._faults) else None
        self.connections += 1
        pair = _Pair((_Way(pool, client, "client"), _Way(client, pool, "pool")), fault)
        self._pairs.append(pair)
        self._watch(pair)

    def _serve(self, pair: _Pair, ready: set[object]) -> None:
        now = time.monotonic()
        if pair.stalled_until is not None:
            if now >= pair.stalled_until:
                self._end(pair, cut=True)
            return
        try:
            for way in pair.ways:
                if way.source in ready and len(way.buffer) < BUFFER_BYTES:
                    with contextlib.suppress(BlockingIOError):
                        chunk = way.source.recv(65536)
                        way.ended = not chunk
                        way.buffer += chunk
                if way.buffer and now >= way.not_before:
                    self._pass_on(pair, way, now)
                    if pair not in self._pairs or pair.stalled_until is not None:
                        return
        except OSError:
            self._end(pair)
            return
        if any(way.ended and not way.buffer for way in pair.ways):
            self._end(pair)
        else:
            self._watch(pair)

    def _pass_on(self, pair: _Pair, way: _Way, now: float) -> None:
        fault, size = pair.fault, len(way.buffer)
        mine = fault is not None and fault.to == way.name
        if fault is not None and mine:
            if way.passed < fault.after:
                size = min(size, fault.after - way.passed)
            elif fault.kind == "trickle":
                size = min(size, fault.chunk)
                way.not_before = now + fault.pause_s
        with contextlib.suppress(BlockingIOError):
            sent = way.sink.send(way.buffer[:size])
            del way.buffer[:sent]
            way.passed += sent
        if fault is not None and mine and way.passed >= fault.after:
            if fault.kind == "cut":
                self._end(pair, cut=True)
            elif fault.kind == "stall":
                pair.stalled_until = now + fault.seconds
                self._watch(pair)

    def _watch(self, pair: _Pair) -> None:
        """Wait for what this connection can do next."""
        now = time.monotonic()
        events = {way.source: 0 for way in pair.ways}
        if pair.stalled_until is None:
            for way in pair.ways:
                if len(way.buffer) < BUFFER_BYTES and not way.ended:
                    events[way.source] |= selectors.EVENT_READ
                if way.buffer and way.not_before <= now:
                    events[way.sink] |= selectors.EVENT_WRITE
        for end, wanted in events.items():
            known = end in self._selector.get_map()
            if wanted and known:
                self._selector.modify(end, wanted)
            elif wanted:
                self._selector.register(end, wanted)
            elif known:
                self._selector.unregister(end)

    def _end(self, pair: _Pair, *, cut: bool = False) -> None:
        self._pairs.remove(pair)
        self.cuts += cut
        for way in pair.ways:
            if way.source in self._selector.get_map():
                self._selector.unregister(way.source)
            way.source.close()
