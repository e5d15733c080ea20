"""Cost of a notification where it is routed, counted in CPU, against a plain loop over the same lines.

Wall-clock time says nothing on a shared machine; CPU time does, and the ratio to a loop of the same kind of work -
decode a header, look up a dict, append to a list - takes the machine out of it. A ratio may be 1.15 x the recorded one.
One that has become smaller for good is recorded again; `python tests/project/test_cost_gate.py` says what is seen.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from broker_bench import Bench as BrokerBench
from session_ids import sid
from worker_bench import Bench as WorkerBench

from codex_app_server._core.router import MessageRouter
from codex_pool.protocol import wire

# CPU of a notification as a multiple of the plain loop's. The interpreters differ in what they make faster.
RECORDED = {
    (3, 10): {"router": 2.3, "worker": 10.1, "broker": 2.9},
    (3, 11): {"router": 1.85, "worker": 8.8, "broker": 2.3},
    (3, 12): {"router": 1.85, "worker": 8.8, "broker": 2.25},
    (3, 13): {"router": 1.85, "worker": 8.2, "broker": 2.2},
}
ALLOWED = 1.15

TURNS, LINES_PER_READ, READS = 4, 8, 240
PAIRS = 9
# A neighbour that takes the caches away makes large programs dearer than small ones, mostly for some seconds; work that
# was added stays.
PATIENCE_S = 45.0
COUNT = READS * LINES_PER_READ


class _Params(msgspec.Struct):
    threadId: str
    turnId: str


class _Header(msgspec.Struct):
    method: str
    params: _Params


_decode = msgspec.json.Decoder(_Header).decode


def turn_id(number: int) -> str:
    return f"{number:08}-0000-7000-8000-000000000000"


def delta(number: int) -> bytes:
    params = {"threadId": turn_id(number + 50), "turnId": turn_id(number), "itemId": "msg_null", "delta": "null "}
    message = {"method": "item/agentMessage/delta", "params": params, "emittedAtMs": 1700000000000 + number}
    return json.dumps(message, separators=(",", ":")).encode()


# Two turns a read, as they come when several run.
READ_LINES = [[delta((read + line // 4) % TURNS) for line in range(LINES_PER_READ)] for read in range(READS)]


def plain() -> None:
    runs: dict[str, list[bytes]] = {}
    for lines in READ_LINES:
        for line in lines:
            header = _decode(line)
            runs.setdefault(header.params.turnId, []).append(line)


def router() -> Callable[[], None]:
    """Router of a client on its own app-server, and of a worker."""
    machine = MessageRouter()
    for number in range(TURNS):
        machine.follow(turn_id(number), f"turn {number}", even_unseen=True)

    def run() -> None:
        for lines in READ_LINES:
            assert len(machine.receive(lines)) == 2

    return run


def worker() -> Callable[[], None]:
    """Numbers, keeps and sends what is read, and lets go of what is acknowledged."""
    bench = WorkerBench().start()
    for number in range(TURNS):
        bench.thread(turn_id(number + 50))
        bench.turn(turn_id(number), turn_id(number + 50))
    sent = dict.fromkeys(map(turn_id, range(TURNS)), 0)

    def run() -> None:
        for read, lines in enumerate(READ_LINES):
            effects = bench.core.lines([*lines], bench.now)
            assert len(effects) == 1, "of two turns, for one session"
            for number in (read % TURNS, (read + 1) % TURNS):
                sent[turn_id(number)] += LINES_PER_READ // 2
            positions = [wire.Position(turn, last) for turn, last in sent.items()]
            if read % 4 == 3:
                bench.core.broker_message(wire.Acked(sid("s1"), positions), [], bench.now)

    return run


def broker() -> Callable[[], None]:
    """Passes on what a worker sends, a message of four notifications each, and acknowledgements."""
    bench = BrokerBench()
    bench.register()
    bench.hello()
    head = wire.encode(wire.Events(turn_id(50), turn_id(0), 0, 4, [wire.Run(4, "droppable")], worker="w0"))
    message = [wire.encode(wire.ToSessions([sid("s1")])), head, b"\n".join([delta(0)] * 4)]
    acknowledged = [wire.encode(wire.Ack("w0", [wire.Position(turn_id(0), 4)]))]

    def run() -> None:
        for _ in range(COUNT // 4):
            assert len(bench.core.worker_message(b"w0", list(message), bench.now)) == 1
            assert len(bench.core.client_message(b"s1", list(acknowledged), bench.now)) == 1

    return run


SUBJECTS = {"router": router, "worker": worker, "broker": broker}


def cpu_s(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def measured(name: str, pairs: int = PAIRS) -> float:
    """Median of the ratios of several runs, each to the run of the plain loop beside it.

    A machine that changes its speed meanwhile changes both, and a disturbed pair moves no median.
    """
    subject = SUBJECTS[name]()
    gc.disable()
    try:
        subject(), plain()
        seen = [(cpu_s(subject), cpu_s(plain)) for _ in range(pairs)]
    finally:
        gc.enable()
    return statistics.median(cost / plain_cost for cost, plain_cost in seen)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_notification_costs_what_it_did(name: str) -> None:
    limit = RECORDED[sys.version_info[:2]][name] * ALLOWED
    deadline, seen = time.monotonic() + PATIENCE_S, [measured(name)]
    while seen[-1] > limit and time.monotonic() < deadline:
        seen.append(measured(name))
    assert min(seen) <= limit, f"{name}: {min(seen):.2f} x the plain loop in {len(seen)} attempts"


def test_the_gate_closes() -> None:
    """Work of a fifth more per notification is seen."""

    def dearer() -> None:
        plain()
        runs: dict[str, list[bytes]] = {}
        for lines in READ_LINES[: READS // 5]:
            for line in lines:
                header = _decode(line)
                runs.setdefault(header.params.turnId, []).append(line)

    SUBJECTS["dearer"] = lambda: dearer
    try:
        deadline, seen = time.monotonic() + PATIENCE_S, [measured("dearer", PAIRS * 4)]
        while seen[-1] <= ALLOWED and time.monotonic() < deadline:
            seen.append(measured("dearer", PAIRS * 4))
        assert max(seen) > ALLOWED
    finally:
        del SUBJECTS["dearer"]


if __name__ == "__main__":
    print(sys.version_info[:2], {name: round(sorted(measured(name) for _ in range(9))[4], 2) for name in SUBJECTS})
