"""Beyond one machine: where one broker saturates, and what sharding by thread gives. A simulation, seeded.

    python bench/scaling.py [--workers 1000] [--threads 100000] [--seconds 4]

The broker is the real policy core, driven by simulated workers and clients on a simulated clock; sockets and machines
are not there. What a message costs the broker's process comes from out/bench/growth.json (see bench/growth.py); what
the core itself costs for the start of a turn is measured first, at this size. The broker is one server with a queue: a
message that comes while it is busy waits.

A turn lasts 20 s in the mean (exponential) and sends as many messages a second as the profile says, at random times:

    full     somebody watches: 10 messages a second of 4 deltas each
    items    batches: one message in two seconds

Each message is acknowledged. Load is told in turns that run at once. Shards have their part of the workers, and the
threads whose id hashes to them; each client has a session, and so beats, on every shard.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import common

from codex_pool.broker.core import BrokerCore
from codex_pool.broker.effects import ToWorker
from codex_pool.protocol import wire

SEED = 20240
CLIENTS = 200
TURN_S = 20.0
PER_MESSAGE = 4
START_S = 0.05
PROFILES = {"full": 10.0, "items": 0.5}
SHARDS = (1, 2, 4, 8)
# Of what one broker carries: so much are the shards to carry together.
SHARDED_LOAD = 3.5
# Of what one broker could carry, by the costs.
LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.05)


class Costs(NamedTuple):
    """Seconds of the broker's process for a message of any kind, and for a client's start of a turn on top."""

    message_s: float
    start_s: float

    def of(self, kind: str) -> float:
        return self.message_s + (self.start_s if kind == "start" else 0.0)


@dataclass
class Outcome:
    """Outcome of one broker: how busy it was, how long what came had to wait, and what was done."""

    busy: float
    waits_s: list[float] = field(repr=False)
    messages: int = 0
    turns: int = 0

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.waits_s) * 1000

    @property
    def p99_ms(self) -> float:
        return sorted(self.waits_s)[int(len(self.waits_s) * 0.99)] * 1000


class Shard:
    """One broker with its workers, its threads and all clients."""

    def __init__(
        self, workers: int, threads: list[str], costs: Costs, rng: random.Random, messages_per_s: float
    ) -> None:
        self._costs, self._rng, self._messages_per_s = costs, rng, messages_per_s
        self._threads = threads
        self._events: list[tuple[float, int, str, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)
        # Turn -> the number of its last notification.
        self._last: dict[str, int] = {}
        self.outcome = Outcome(0.0, [])
        per_worker = max(64, 2 * len(threads) // workers)
        self._core = BrokerCore(slots=workers, turns_per_worker=per_worker, now=0.0)
        for number in range(workers):
            mine = threads[number::workers]
            records = [wire.ThreadRecord(thread, ephemeral=False, turns=1) for thread in mine]
            followers = {thread: [self._session(thread)] for thread in mine}
            register = wire.encode(wire.Register(number, f"w{number}", 10, 11))
            holdings = wire.encode_worker_state(wire.WorkerState(records, followers))
            self._core.worker_message(f"w{number}".encode(), [register, b"{}", holdings], 0.0)
        for client in range(CLIENTS):
            self._core.client_message(b"c%d" % client, [wire.encode(wire.Hello(f"s{client}", "x"))], 0.0)

    def run(self, turns_at_once: int, seconds: float) -> Outcome:
        """Run from a state in which so many turns run already, with as many new ones as end."""
        rng = self._rng
        for client in range(CLIENTS):
            self._at(rng.random() * wire.BEAT_S, "beat", lambda at, c=client: self._beat(at, c))
        for thread in rng.sample(self._threads, min(turns_at_once, len(self._threads))):
            self._begin_running(thread)
        self._arrivals_per_s = turns_at_once / TURN_S
        if turns_at_once:
            self._at(rng.expovariate(self._arrivals_per_s), "arrival", self._arrive)
        free_at = busy_s = tick_at = 0.0
        while self._events and self._events[0][0] < seconds:
            at, _, kind, act = heapq.heappop(self._events)
            if at >= tick_at:
                self._core.tick(at)
                tick_at = at + 1.0
            if kind == "arrival":
                act(at)
                continue
            began = max(at, free_at)
            free_at = began + self._costs.of(kind)
            busy_s += self._costs.of(kind)
            self.outcome.waits_s.append(began - at)
            self.outcome.messages += 1
            act(free_at)
        self.outcome.busy = busy_s / seconds
        return self.outcome

    def _at(self, at: float, kind: str, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), kind, act))

    def _session(self, thread: str) -> wire.SessionId:
        return wire.SessionId("", f"s{client_of(thread)}")

    def _client(self, thread: str) -> bytes:
        return b"c%d" % client_of(thread)

    def _beat(self, at: float, client: int) -> None:
        self._core.client_message(b"c%d" % client, [wire.encode(wire.Beat())], at)
        self._at(at + wire.BEAT_S, "beat", lambda later: self._beat(later, client))

    def _arrive(self, at: float) -> None:
        """Somebody asks for a turn on a thread; the next one comes some time later."""
        thread = self._rng.choice(self._threads)
        self._at(at, "start", lambda done: self._start(done, thread))
        self._at(at + self._rng.expovariate(self._arrivals_per_s), "arrival", self._arrive)

    def _start(self, at: float, thread: str) -> None:
        params = {"threadId": thread, "input": [{"type": "text", "text": "What comes next?"}]}
        line = json.dumps({"id": next(self._ids), "method": "turn/start", "params": params}).encode()
        self._dispatched(self._core.client_message(self._client(thread), [wire.encode(wire.Call()), line], at), at)

    def _dispatched(self, effects: list[Any], at: float) -> None:
        for effect in effects:
            if isinstance(effect, ToWorker):
                head = wire.decode_to_worker(effect.frames[0])
                if isinstance(head, wire.Dispatch):
                    thread = json.loads(effect.frames[1])["params"]["threadId"]
                    later = at + START_S * self._rng.uniform(0.5, 1.5)
                    self._at(later, "worker", lambda t, e=effect, c=head.call, th=thread: self._begin(t, e.peer, c, th))

    def _begin(self, at: float, worker: bytes, call: int, thread: str) -> None:
        turn = self._new_turn(thread, worker, at)
        answered = wire.encode(wire.Answered(call, True, None, turn))
        self._core.worker_message(worker, [answered, wire.encode(wire.Lines()), b'{"id":1,"result":{}}'], at)
        self.outcome.turns += 1

    def _begin_running(self, thread: str) -> None:
        self._new_turn(thread, self._core.state.threads[thread].worker.encode(), 0.0)

    def _new_turn(self, thread: str, worker: bytes, at: float) -> str:
        turn = f"u{next(self._ids):035}"
        started = wire.TurnStarted(thread, turn, [self._session(thread)])
        self._core.worker_message(worker, [wire.encode(started)], at)
        self._last[turn] = 0
        self._next_message(at, at + self._rng.expovariate(1 / TURN_S), thread, turn, worker)
        return turn

    def _next_message(self, at: float, ends_at: float, thread: str, turn: str, worker: bytes) -> None:
        later = at + self._rng.expovariate(self._messages_per_s)
        if later < ends_at:
            self._at(later, "worker", lambda t: self._say(t, later, ends_at, thread, turn, worker))
        else:
            self._at(ends_at, "worker", lambda t: self._end(t, thread, turn, worker))

    def _say(self, at: float, said_at: float, ends_at: float, thread: str, turn: str, worker: bytes) -> None:
        after = self._last[turn]
        self._last[turn] = last = after + PER_MESSAGE
        events = wire.Events(thread, turn, after, last, [wire.Run(PER_MESSAGE, "droppable")], False, worker.decode())
        frames = [wire.encode(wire.ToSessions([self._session(thread)])), wire.encode(events), b"{}"]
        self._core.worker_message(worker, frames, at)
        self._at(at, "ack", lambda done: self._ack(done, thread, turn, worker, last))
        # By its own clock, however late the broker is.
        self._next_message(said_at, ends_at, thread, turn, worker)

    def _ack(self, at: float, thread: str, turn: str, worker: bytes, last: int) -> None:
        ack = wire.encode(wire.Ack(worker.decode(), [wire.Position(turn, last)]))
        self._core.client_message(self._client(thread), [ack], at)

    def _end(self, at: float, thread: str, turn: str, worker: bytes) -> None:
        del self._last[turn]
        effects = self._core.worker_message(worker, [wire.encode(wire.TurnEnded(thread, turn, "completed"))], at)
        self._dispatched(effects, at)


def client_of(thread: str) -> int:
    """Return the client whose thread it is, whatever its shard."""
    return zlib.crc32(b"client of " + thread.encode()) % CLIENTS


def thread_ids(count: int) -> list[str]:
    return [f"t{number:035}" for number in range(count)]


def core_start_s(workers: int, threads: int) -> float:
    """CPU seconds of the core alone for a client's start of a turn, among so many."""
    shard = Shard(workers, thread_ids(threads), Costs(0.0, 0.0), random.Random(SEED), 1.0)
    chosen = random.Random(SEED).sample(shard._threads, min(threads, 500))
    began = time.process_time()
    for thread in chosen:
        shard._start(0.0, thread)
    return (time.process_time() - began) / len(chosen)


def costs_of(growth: Path, workers: int, threads: int) -> Costs:
    """Raises FileNotFoundError without a report of bench/growth.py."""
    report = json.loads(growth.read_text())
    per_message = report["settings"]["per_message"]
    large_ms = statistics.median(report["cpu_ms_per_1000"]["large"])
    # With each message its acknowledgement, and in six a start and an end of a turn.
    message_s = large_ms / 1000 * per_message / 1000 / (2 + 2 / 6)
    return Costs(message_s, core_start_s(workers, threads))


def simulate(
    shards: int, workers: int, threads: int, costs: Costs, profile: str, turns: int, seconds: float
) -> list[Outcome]:
    """Each broker by itself: they know nothing of each other."""
    ids = thread_ids(threads)
    outcomes = []
    for shard in range(shards):
        mine = [each for each in ids if zlib.crc32(each.encode()) % shards == shard]
        rng = random.Random(SEED + shard)
        broker = Shard(max(1, workers // shards), mine, costs, rng, PROFILES[profile])
        outcomes.append(broker.run(round(turns * len(mine) / threads), seconds))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000, help="workers (default 1,000)")
    parser.add_argument("--threads", type=int, default=100_000, help="open threads (default 100,000)")
    parser.add_argument("--seconds", type=float, default=4.0, help="simulated seconds of each point (default 4)")
    parser.add_argument("--growth", type=Path, default=Path("out/bench/growth.json"), help="report of bench/growth.py")
    parser.add_argument("--out", type=Path, default=Path("out/bench/scaling.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    workers, threads, seconds = arguments.workers, arguments.threads, arguments.seconds

    costs = costs_of(arguments.growth, workers, threads)
    small_start_s = core_start_s(2, 10)
    # What a turn that runs costs a second: its messages with their acknowledgements, and its part of start and end.
    carries = {
        profile: (1 - CLIENTS * costs.message_s / wire.BEAT_S)
        / (2 * rate * costs.message_s + (3 * costs.message_s + costs.start_s) / TURN_S)
        for profile, rate in PROFILES.items()
    }
    rows = [
        common.row("a message, of the broker's process", costs.message_s * 1e6, "us"),
        common.row(
            f"the core's part of a turn/start, {workers:,} workers",
            costs.start_s * 1e6,
            "us",
            peer="2 workers, 10 threads",
            ratio=costs.start_s / small_start_s,
        ),
    ]
    points: list[dict[str, Any]] = []
    for profile, limit in carries.items():
        rows.append(common.row(f"turns at once that one broker carries, {profile}", limit, "turns"))
        for load in LOADS:
            turns = round(limit * load)
            (outcome,) = simulate(1, workers, threads, costs, profile, turns, seconds)
            points.append(point(profile, 1, turns, [outcome]))
            print(f"{profile:<6} 1 broker   {turns:>7,} turns  {said(points[-1])}", file=sys.stderr)
    for profile, limit in carries.items():
        for shards in SHARDS:
            turns = min(round(limit * SHARDED_LOAD), threads)
            outcomes = simulate(shards, workers, threads, costs, profile, turns, seconds / 2)
            points.append(point(profile, shards, turns, outcomes))
            print(f"{profile:<6} {shards} brokers  {turns:>7,} turns  {said(points[-1])}", file=sys.stderr)
            what = f"busiest broker of {shards}, {turns:,} turns at once, {profile}"
            rows.append(common.row(what, points[-1]["busy"] * 100, "% busy"))
    settings = {"workers": workers, "threads": threads, "clients": CLIENTS, "seconds": seconds, "seed": SEED}
    costs_us = {name: cost * 1e6 for name, cost in costs._asdict().items()}
    common.report(arguments.out, settings, rows, points=points, costs_us=costs_us)
    return 0


def point(profile: str, shards: int, turns: int, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the worst of several brokers."""
    return {
        "profile": profile,
        "shards": shards,
        "turns": turns,
        "busy": max(each.busy for each in outcomes),
        "p50_ms": max(each.p50_ms for each in outcomes),
        "p99_ms": max(each.p99_ms for each in outcomes),
        "messages": sum(each.messages for each in outcomes),
        "started": sum(each.turns for each in outcomes),
    }


def said(point: dict[str, Any]) -> str:
    return f"busy {point['busy']:6.1%}  wait p50 {point['p50_ms']:8.2f} ms  p99 {point['p99_ms']:9.2f} ms"


if __name__ == "__main__":
    sys.exit(main())
