"""A polite client: `python bench/steady.py JSON`. For bench/neighbour.py.

    {"endpoint": ..., "key": FILE or null, "cwd": DIR, "per_second": 20, "turns": false}

An endpoint ws://HOST:PORT is that of the gateway.

It writes "ready" and asks at a steady pace: for `model/list`, or with `turns` for a whole turn. For each line on stdin
it writes one line of JSON: how long each request took since the line before, in seconds from when it was due, and the
errors.
"""

from __future__ import annotations

import itertools
import json
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from websocket_client import WebSocketClient

from codex_app_server import Codex
from codex_pool import connect
from codex_pool.auth.keys import read_client_key


def through_the_gateway(endpoint: str, key: str) -> Callable[[], object]:
    """A client over WebSocket; each call of the result is a request."""
    client = WebSocketClient(endpoint, read_client_key(key).token)
    numbers = itertools.count(1)
    info = {"name": "steady", "title": None, "version": "1"}
    client.call("initialize", {"clientInfo": info}, id=next(numbers))
    return lambda: client.call("model/list", {}, id=next(numbers))


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    pause = 1 / settings["per_second"]
    if settings["endpoint"].startswith("ws://"):
        measure(through_the_gateway(settings["endpoint"], settings["key"]), pause)
        return
    codex: Codex = connect(settings["endpoint"], key=settings["key"], name="steady")
    turns = settings["turns"]
    thread = codex.thread_start(cwd=settings["cwd"], sandbox="read-only")

    def ask() -> None:
        if turns:
            thread.run("hello")
        else:
            codex.client.request("model/list", {})

    measure(ask, pause)


def measure(ask: Callable[[], object], pause: float) -> None:
    """Ask once every `pause` seconds, until stdin ends."""
    ask()
    print("ready", flush=True)
    times: list[float] = []
    errors: list[str] = []
    due = time.monotonic()
    while True:
        wait = due - time.monotonic()
        if select.select([0], [], [], max(0.0, wait))[0]:
            if not sys.stdin.readline():
                return
            print(json.dumps({"times": times, "errors": errors}), flush=True)
            times, errors = [], []
            continue
        try:
            ask()
        except Exception as error:  # What a client sees is what is measured, whatever it is.
            errors.append(f"{type(error).__name__}: {error}")
        times.append(time.monotonic() - due)
        due += pause


if __name__ == "__main__":
    main()
