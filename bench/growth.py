"""Check whether a broker's cost of a notification grows with what it knows: threads, clients, workers.

    python bench/growth.py [--rounds 5] [--notifications 50000] [--stack 1]

A broker process, and around it a load process that speaks the wire from raw sockets, as 2 workers and 1 client with 10
threads, or as 32 workers and 200 clients with 10,000 threads. In both, messages of 16 notifications come in bursts of
60, each turn has 6 of them, each is acknowledged, and the next burst is sent when all have arrived. So what differs is
only what the broker knows and how many sockets it has. Measured is the CPU of the broker process, the threads of ZeroMQ
included; the large one may cost at most 1.5 x the small one. With `--stack N` the messages of a burst come from few
workers, as of workers with many turns, N of them as one (see `codex_pool.protocol.packs`).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import common
import zmq
from measured import cpu_ns

PER_MESSAGE = 16
BURST = 60
MESSAGES_PER_TURN = 6
LIMIT_MS = 30_000


class Size(NamedTuple):
    threads: int
    clients: int
    workers: int


SIZES = {"small": Size(10, 1, 2), "large": Size(10_000, 200, 32)}
DELTA = (
    b'{"method":"item/agentMessage/delta","params":{"threadId":"%s","turnId":"%s","itemId":"msg_null","delta":"null "},'
    b'"emittedAtMs":1700000000000}'
)


class Load:
    """The workers and clients of one broker."""

    def __init__(self, size: Size, directory: Path, context: Any, stack: int = 1) -> None:
        from codex_pool.protocol import packs, sockets, wire

        self._packed = packs.packed
        self._stack = stack
        # Messages of notifications of each worker, and what follows them.
        self._stacks: dict[int, list[list[bytes]]] = {}
        self._ends: list[tuple[int, Any]] = []

        self._wire = wire
        self._size = size
        self._turns = (f"u{number:035}" for number in itertools.count())
        self._next_thread = itertools.cycle(range(0, size.threads, min(size.threads, BURST)))
        self._open: list[tuple[int, str, int]] = []
        self._beat_at = 0.0
        self._poller = zmq.Poller()
        self.workers = [sockets.dealer(context, f"ipc://{directory}/w", f"w{n}") for n in range(size.workers)]
        self.clients = [sockets.dealer(context, f"ipc://{directory}/c", f"c{n}") for n in range(size.clients)]
        for number, worker in enumerate(self.workers):
            mine = range(number, size.threads, size.workers)
            records = [wire.ThreadRecord(self._thread(each), ephemeral=True, turns=1) for each in mine]
            followers = {self._thread(each): [self._session(each)] for each in mine}
            holdings = wire.encode_worker_state(wire.WorkerState(records, followers))
            worker.send_multipart([wire.encode(wire.Register(number, f"w{number}", 10, 11)), b"{}", holdings])

    def connect(self) -> None:
        """Once all workers are known."""
        wire = self._wire
        for number, client in enumerate(self.clients):
            client.send_multipart([wire.encode(wire.Hello(f"s{number}", f"client {number}"))])
        for client in self.clients:
            assert client.poll(LIMIT_MS), "a client was not answered"
            assert isinstance(wire.decode_to_client(client.recv_multipart()[0]), wire.Welcome)
            self._poller.register(client, zmq.POLLIN)

    def beat(self) -> None:
        wire, now = self._wire, time.monotonic()
        if now < self._beat_at:
            return
        self._beat_at = now + wire.BEAT_S
        for client in self.clients:
            client.send(wire.encode(wire.Beat()))
        for number, worker in enumerate(self.workers):
            worker.send(wire.encode(wire.Progress(f"w{number}", int(now * 1000), 1, 0)))

    def burst(self) -> None:
        """Send 60 messages to their clients, who acknowledge each, and wait until all are there."""
        wire, size = self._wire, self._size
        self.beat()
        sent = 0
        while sent < BURST:
            if not self._open:
                first = next(self._next_thread)
                for number in range(min(size.threads, BURST)):
                    # Those of a stack are of one worker.
                    worker, among = divmod(number, self._stack)
                    thread, turn = (first + worker + among * size.workers) % size.threads, next(self._turns)
                    self._to_broker(thread, wire.TurnStarted(self._thread(thread), turn, [self._session(thread)]))
                    self._open.append((thread, turn, 0))
            thread, turn, number = self._open.pop(0)
            ended = number + 1 == MESSAGES_PER_TURN
            after = number * PER_MESSAGE
            head = wire.Events(
                self._thread(thread),
                turn,
                after,
                after + PER_MESSAGE,
                [wire.Run(PER_MESSAGE, "droppable")],
                ended,
                f"w{thread % size.workers}",
            )
            line = DELTA % (self._thread(thread).encode(), turn.encode())
            body = b"\n".join([line] * PER_MESSAGE)
            message = [wire.encode(wire.ToSessions([self._session(thread)])), wire.encode(head), body]
            self._stacks.setdefault(thread % size.workers, []).append(message)
            if ended:
                self._ends.append((thread, wire.TurnEnded(self._thread(thread), turn, "completed")))
            else:
                self._open.append((thread, turn, number + 1))
            sent += 1
        for worker, messages in self._stacks.items():
            for message in self._packed(messages) if self._stack > 1 else messages:
                self.workers[worker].send_multipart(message)
        for thread, ended_turn in self._ends:
            self._to_broker(thread, ended_turn)
        self._stacks.clear()
        self._ends.clear()
        self._take(sent)

    def _take(self, count: int) -> None:
        wire = self._wire
        while count:
            ready = self._poller.poll(LIMIT_MS)
            assert ready, f"{count} messages did not come"
            for client, _ in ready:
                head = wire.decode_to_client(client.recv_multipart()[0])
                if isinstance(head, wire.Events):
                    count -= 1
                    client.send(wire.encode(wire.Ack(head.worker, [wire.Position(head.turn_id, head.last)])))
        for worker in self.workers:
            # What it is told of acknowledgements.
            while worker.poll(0):
                worker.recv_multipart()

    def _to_broker(self, thread: int, *frames: Any) -> None:
        encoded = [each if isinstance(each, bytes) else self._wire.encode(each) for each in frames]
        self.workers[thread % self._size.workers].send_multipart(encoded)

    def _thread(self, number: int) -> str:
        return f"t{number:035}"

    def _session(self, thread: int) -> Any:
        return self._wire.SessionId("", f"s{thread % self._size.clients}")

    def close(self) -> None:
        for each in (*self.workers, *self.clients):
            each.close(linger=0)


@contextmanager
def broker(size: Size, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    arguments = {
        "clients_endpoint": f"ipc://{directory}/c",
        "workers_endpoint": f"ipc://{directory}/w",
        "slots": size.workers,
        "turns_per_worker": 64,
    }
    argv = [sys.executable, "-m", "codex_pool.broker"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(arguments).encode() + b"\n")
        process.stdin.flush()
        wait_for("ready", process)
        yield process
        process.stdin.close()


def wait_for(event: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the broker reports this event."""
    assert process.stdout is not None
    while (line := process.stdout.readline()) and json.loads(line)["event"] != event:
        pass
    assert line, f"the broker has ended without {event}"


def measured(size: Size, notifications: int, stack: int = 1) -> float:
    """CPU milliseconds of the broker per 1,000 notifications."""
    bursts = notifications // (BURST * PER_MESSAGE)
    with tempfile.TemporaryDirectory(prefix="cp-bench-") as directory, broker(size, Path(directory)) as process:
        context = zmq.Context()
        load = Load(size, Path(directory), context, stack)
        try:
            for _ in range(size.workers):
                wait_for("registered", process)
            load.connect()
            for _ in range(bursts // 10 + 1):
                load.burst()
            before = cpu_ns(process.pid)
            for _ in range(bursts):
                load.burst()
            used = cpu_ns(process.pid) - before
        finally:
            load.close()
            context.term()
    return used / 1e6 / (bursts * BURST * PER_MESSAGE) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each size (default 5)")
    parser.add_argument("--notifications", type=int, default=50_000, help="per run (default 50,000)")
    parser.add_argument("--stack", type=int, default=1, help="messages of a worker sent as one (default 1)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/growth.json"), help="where the JSON goes")
    arguments = parser.parse_args()

    runs = {
        name: functools.partial(measured, size, arguments.notifications, arguments.stack)
        for name, size in SIZES.items()
    }
    figures = common.alternate(runs, arguments.rounds, "ms")
    large = SIZES["large"]
    rows = [
        common.row("CPU of the broker per 1,000 notifications, small", statistics.median(figures["small"]), "ms"),
        common.row(
            f"the same: {large.threads:,} threads, {large.clients} clients, {large.workers} workers",
            statistics.median(figures["large"]),
            "ms",
            peer="small",
            ratio=common.ratio(figures, "large", "small"),
            at_most=1.5,
        ),
    ]
    settings = {
        "rounds": arguments.rounds,
        "notifications": arguments.notifications,
        "per_message": PER_MESSAGE,
        "stack": arguments.stack,
        "sizes": {name: size._asdict() for name, size in SIZES.items()},
    }
    common.report(arguments.out, settings, rows, cpu_ms_per_1000=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
