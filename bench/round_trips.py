"""Clients that ask one thing after the other: `python bench/round_trips.py KIND JSON`. For bench/roundtrip.py and
bench/ingress.py.

For each line on stdin it asks `requests` times and writes how long each took, in seconds, as one JSON line.

    pool   through codex_pool's transport; with a `key` over TCP
    deltas runs a turn instead, and writes how long each of its deltas took from the app-server's writing
    echo   through a bare socket to the relay of relay.py
"""

from __future__ import annotations

import json
import queue
import sys
import time
from collections.abc import Callable
from typing import Any

PAUSE_S = 0.002
METHOD = "model/list"


class Answers:
    """A receiver that hands on every line."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def on_batch(self, batch: list[Any]) -> None:
        for line in batch:
            self.queue.put(line)

    def on_closed(self, error: Exception) -> None:
        raise SystemExit(f"the pool is gone: {error}")


def pool(settings: dict[str, Any]) -> Callable[[bytes], bytes]:
    from codex_pool.client.transport import PoolTransport

    answers = Answers()
    transport = PoolTransport(settings["endpoint"], key=settings.get("key"))
    transport.start(answers)

    def ask(line: bytes) -> bytes:
        transport.send(line)
        return answers.queue.get(timeout=30)

    ask(b'{"id":0,"method":"initialize","params":{"clientInfo":{"name":"bench","title":null,"version":"0"}}}')
    return ask


def echo(settings: dict[str, Any]) -> Callable[[bytes], bytes]:
    import zmq
    from relay import socket

    link = socket(zmq.Context(), zmq.DEALER, b"c%d" % settings["number"])
    link.connect(f"ipc://{settings['endpoint']}/clients")

    def ask(line: bytes) -> bytes:
        link.send(line)
        answer: bytes = link.recv()
        return answer

    return ask


def deltas(settings: dict[str, Any]) -> None:
    from codex_pool import connect

    with connect(settings["endpoint"], key=settings.get("key")) as codex:
        thread = codex.thread_start(cwd="/")
        print("ready", flush=True)
        while sys.stdin.readline():
            took = []
            for notification in thread.turn("x").stream():
                if notification.method == "item/agentMessage/delta":
                    took.append(time.time() - float(notification.payload.delta))
            print(json.dumps(took), flush=True)


def main() -> None:
    settings = json.loads(sys.argv[2])
    if sys.argv[1] == "deltas":
        deltas(settings)
        return
    ask = {"pool": pool, "echo": echo}[sys.argv[1]](settings)
    number = 0

    def trip() -> float:
        nonlocal number
        number += 1
        line = b'{"id":%d,"method":"%s","params":{}}' % (number, METHOD.encode())
        began = time.perf_counter()
        answer = ask(line)
        took = time.perf_counter() - began
        assert answer.startswith(b'{"id":%d,' % number), answer
        time.sleep(PAUSE_S)
        return took

    for _ in range(50):
        trip()
    print("ready", flush=True)
    while sys.stdin.readline():
        print(json.dumps([trip() for _ in range(settings["requests"])]), flush=True)


if __name__ == "__main__":
    main()
