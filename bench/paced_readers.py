"""Clients that read many paced turns at once: `python bench/paced_readers.py KIND '{"...": ...}'`. For bench/paced.py.

It starts `turns` turns, each on a thread of its own, and reads the text of every delta, which is the time when it was
written. It writes `ready` once every turn has begun to speak. The first line on stdin begins the window, the second
ends it: then it writes one JSON line - how many notifications came in the window, its CPU seconds, and how late deltas
were, in seconds - and ends, whatever still runs.

    published   openai-codex, one app-server, a Python thread for each turn
    sdk         codex_app_server, one app-server, an asyncio task for each turn
    pool        codex_pool, the same
    threads     codex_pool, a Python thread for each turn
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

DELTA = "item/agentMessage/delta"


class Window:
    """Notifications that came while the window was open."""

    def __init__(self, turns: int) -> None:
        self._silent = turns
        self._lock = threading.Lock()
        self._spoken = threading.Event()
        self._open = False
        self._seen = 0
        self._lags: list[float] = []

    def event(self, event: Any) -> None:
        if event.method == DELTA:
            lag = time.time() - float(event.payload.delta)
            if self._open:
                self._lags.append(lag)
        if self._open:
            self._seen += 1

    def spoke(self) -> None:
        """One more turn has begun to speak."""
        with self._lock:
            self._silent -= 1
            if not self._silent:
                self._spoken.set()

    def serve(self) -> None:
        """Say when it may begin, and what it showed; then end the process."""
        self._spoken.wait(60)
        print("ready", flush=True)
        sys.stdin.readline()
        self._seen, self._lags = 0, []
        began_cpu, self._open = time.process_time(), True
        sys.stdin.readline()
        self._open = False
        cpu_s = time.process_time() - began_cpu
        print(json.dumps({"seen": self._seen, "cpu_s": cpu_s, "lags_s": self._lags}), flush=True)
        sys.stdin.readline()
        os._exit(0)


def read_in_threads(codex: Any, window: Window, turns: int) -> None:
    def work() -> None:
        events = iter(codex.thread_start().turn("x").stream())
        for event in events:
            window.event(event)
            if event.method == DELTA:
                break
        window.spoke()
        for event in events:
            window.event(event)

    for _ in range(turns):
        threading.Thread(target=work, daemon=True).start()
    window.serve()


async def read_in_tasks(codex: Any, window: Window, turns: int) -> None:
    async def work() -> None:
        turn = await (await codex.thread_start()).turn("x")
        spoke = False
        async for event in turn.stream():
            window.event(event)
            if not spoke and event.method == DELTA:
                spoke = True
                window.spoke()

    threading.Thread(target=window.serve, daemon=True).start()
    await asyncio.gather(*(work() for _ in range(turns)))


def main() -> None:
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    turns = settings["turns"]
    window = Window(turns)
    with contextlib.ExitStack() as stack:
        if kind == "published":
            from openai_codex import Codex, CodexConfig

            codex = stack.enter_context(Codex(CodexConfig(launch_args_override=tuple(settings["argv"]))))
            read_in_threads(codex, window, turns)
        elif kind == "threads":
            import codex_pool

            read_in_threads(stack.enter_context(codex_pool.connect(settings["endpoint"])), window, turns)
        else:
            asyncio.run(run(kind, settings, window, turns))


async def run(kind: str, settings: dict[str, Any], window: Window, turns: int) -> None:
    if kind == "pool":
        import codex_pool

        codex: Any = await codex_pool.aconnect(settings["endpoint"])
    else:
        from codex_app_server import AppServerConfig, AsyncCodex

        codex = AsyncCodex(AppServerConfig(launch_args_override=tuple(settings["argv"])))
        await codex.__aenter__()
    await read_in_tasks(codex, window, turns)


if __name__ == "__main__":
    main()
