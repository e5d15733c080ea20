"""A client that beats but does not read, while others stream: what it costs them.

    python tests/chaos/shows/slow_reader.py [--quick]

In alternating windows the others stream alone, or beside a client that started many turns and reads nothing of them.
The lag of a delta is the time from its writing by the null app-server to its arrival. Of each client's lags in a window
the p99 is taken; of these the median over clients; of these the median over windows. With the slow reader it must be
within 1.5 times what it is without.
"""

from __future__ import annotations

import json
import secrets
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import common
import zmq

from codex_app_server import Codex, TurnHandle
from codex_app_server.testing import null_app_server
from codex_pool import Pool
from codex_pool.protocol import wire

PACE_MS = 50
TEXT = "$NOW " + "x" * 1500 + " "
ALLOWED = 1.5


def main() -> int:
    options = common.arguments(
        __doc__,
        "slow-reader",
        windows=(6, 2, "windows of each kind"),
        seconds=(10, 4, "length of a window"),
        clients=(20, 8, "clients that stream"),
        turns=(40, 20, "turns of the one that does not read"),
    )
    problems: list[str] = []
    # Enough of them for all windows; they are interrupted at the end.
    deltas = 4 * options.windows * options.seconds * 1000 // PACE_MS
    config = null_app_server(deltas=deltas, pace_ms=PACE_MS, text=TEXT)
    with tempfile.TemporaryDirectory(prefix="chaos-slow-") as name:
        config.env = {"CODEX_HOME": name}
        with Pool(2, config, turns_per_worker=64, log_file=Path(name) / "log") as pool:
            streams = [Stream(pool, number) for number in range(options.clients)]
            try:
                for stream in streams:
                    stream.start()
                lags: dict[bool, list[float]] = {False: [], True: []}
                held: list[int] = []
                for number in range(2 * options.windows):
                    beside = number % 2 == 1
                    reader = SlowReader(pool.endpoint, options.turns) if beside else None
                    try:
                        for stream in streams:
                            stream.take()
                        threading.Event().wait(options.seconds)
                        window = [stream.take() for stream in streams]
                    finally:
                        if reader is not None:
                            assert pool.supervisor_pid is not None
                            held.append(
                                max(
                                    common.rss_bytes(process.pid)
                                    for process in common.below(pool.supervisor_pid, b"codex_pool.broker")
                                )
                            )
                            reader.close()
                    if not all(window):
                        problems.append(f"window {number + 1}: a client got nothing")
                        continue
                    p99 = [statistics.quantiles(values, n=100)[98] for values in window]
                    lags[beside].append(statistics.median(p99) * 1000)
                    print(f"window {number + 1}: {lags[beside][-1]:.1f} ms, slow reader {beside}", file=sys.stderr)
            finally:
                for stream in streams:
                    stream.end()
    alone, with_it = statistics.median(lags[False]), statistics.median(lags[True])
    ratio = with_it / alone
    # A short run on a busy machine says little about the 99th percentile.
    if ratio > (ALLOWED if not options.quick else 5 * ALLOWED):
        problems.append(f"{ratio:.2f} times the lag, {ALLOWED} is allowed")
    figures = {
        "clients that stream": options.clients,
        "turns nobody reads": options.turns,
        "median p99 lag alone, ms": alone,
        "median p99 lag beside it, ms": with_it,
        "ratio": ratio,
        "broker's memory beside it, MiB": max(held) / 1024**2,
    }
    return common.report("a client that beats but does not read", options.out, figures, problems)


class Stream:
    """A client with a turn whose deltas it reads all the time."""

    def __init__(self, pool: Pool, number: int) -> None:
        self._codex: Codex = pool.connect(name=f"stream {number}")
        self._lags: list[float] = []
        self._lock = threading.Lock()
        self._turn: TurnHandle | None = None
        self._thread = threading.Thread(target=self._read, name=f"stream {number}")

    def start(self) -> None:
        self._turn = self._codex.thread_start().turn("stream")
        self._thread.start()

    def take(self) -> list[float]:
        """The lags since the last call, in seconds."""
        with self._lock:
            taken, self._lags = self._lags, []
        return taken

    def end(self) -> None:
        if self._turn is not None:
            self._turn.interrupt()
            self._thread.join(common.LIMIT_S)
        self._codex.close()

    def _read(self) -> None:
        assert self._turn is not None
        for notification in self._turn.stream():
            if notification.method == "item/agentMessage/delta":
                lag = time.time() - float(notification.params["delta"].split()[0])
                with self._lock:
                    self._lags.append(lag)


class SlowReader:
    """A session that started turns, and from then on only beats."""

    def __init__(self, endpoint: str, turns: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        # Nothing is to pile up here instead.
        self._dealer.setsockopt(zmq.RCVHWM, 1)
        self._dealer.setsockopt(zmq.RCVBUF, 4096)
        self._dealer.setsockopt(zmq.IDENTITY, secrets.token_hex(8).encode())
        self._dealer.connect(endpoint)
        self._send(wire.Hello(f"slow-{secrets.token_hex(6)}", "slow reader"))
        self._answer(None)
        for number in range(turns):
            thread_id = self._request(2 * number, "thread/start", {})["thread"]["id"]
            prompt = {"threadId": thread_id, "input": [{"type": "text", "text": "flood"}]}
            self._request(2 * number + 1, "turn/start", prompt)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="slow reader")
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._send(wire.Bye())
        self._dealer.close(linger=1000)
        self._context.term()

    def _beat(self) -> None:
        while not self._closing.wait(wire.BEAT_S / 2):
            self._send(wire.Beat())

    def _send(self, head: wire.Head, *bodies: bytes) -> None:
        self._dealer.send_multipart([wire.encode(head), *bodies])

    def _request(self, request_id: int, method: str, params: dict[str, object]) -> dict[str, dict[str, str]]:
        line = json.dumps({"id": request_id, "method": method, "params": params}).encode()
        self._send(wire.Call(), line)
        return self._answer(request_id)

    def _answer(self, request_id: int | None) -> dict[str, dict[str, str]]:
        """Read until this answer comes, or the welcome."""
        deadline = time.monotonic() + common.LIMIT_S
        while time.monotonic() < deadline:
            if not self._dealer.poll(500):
                self._send(wire.Beat())
                continue
            frame, *bodies = self._dealer.recv_multipart()
            head = wire.decode_to_client(frame)
            if request_id is None and isinstance(head, wire.Welcome):
                return {}
            if isinstance(head, wire.Lines):
                for line in map(json.loads, bodies[0].split(b"\n")):
                    if line.get("id") == request_id and "result" in line:
                        found: dict[str, dict[str, str]] = line["result"]
                        return found
        raise AssertionError("the slow reader got no answer")


if __name__ == "__main__":
    sys.exit(main())
