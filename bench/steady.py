"""A polite client: `python bench/steady.py JSON`. For bench/neighbour.py.

    {"endpoint": ..., "key": FILE or null, "cwd": DIR, "per_second": 20, "turns": false}

It writes "ready" and asks at a steady pace: for `model/list`, or with `turns` for a whole turn. For each line on stdin
it writes one line of JSON: how long each request took since the line before, in seconds from when it was due, and the
errors.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any

from codex_app_server import Codex
from codex_pool import connect


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    codex: Codex = connect(settings["endpoint"], key=settings["key"], name="steady")
    turns = settings["turns"]
    thread = codex.thread_start(cwd=settings["cwd"], sandbox="read-only")
    pause = 1 / settings["per_second"]

    def ask() -> None:
        if turns:
            thread.run("hello")
        else:
            codex.client.request("model/list", {})

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
