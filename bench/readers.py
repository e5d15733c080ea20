"""The processes whose reading is measured: `python bench/readers.py KIND '{"...": ...}'`. Started by the benches.

Each warms up, writes `ready`, waits for a line on stdin, reads so many turns, and writes one JSON line: how many
notifications came, when it began and ended (seconds of the monotonic clock, which processes share), and its CPU in
seconds.

    published     openai-codex, one app-server: a Python thread for each of `threads`, typed
    sdk           codex_app_server, one app-server: the same
    sdk-asyncio   the same, with a task for each
    typed         a client of a pool: a Python thread for each of `threads`, typed
    asyncio       the same, with a task for each
    raw           a client of a pool that takes the lines as they come, undecoded
"""

from __future__ import annotations

import asyncio
import itertools
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DELTA = "item/agentMessage/delta"
# That of a pool has no generated type, and comes once a turn.
ASSIGNED = "pool/turn/assigned"
Read = Callable[[int], int]
# What every reader is given at least.
Settings = dict[str, Any]


def read_typed(turn: Any) -> int:
    """Read a turn to its end, and of every payload a field; how many notifications it had."""
    seen = length = 0
    for event in turn.stream():
        payload = event.payload
        if event.method == DELTA:
            length += len(payload.delta)
        elif event.method != ASSIGNED:
            length += len(payload.thread_id)
        seen += 1
    assert length > seen
    return seen


def read_in_threads(codex: Any, settings: Settings) -> Read:
    """A Python thread for each of `threads`."""
    threads = [codex.thread_start() for _ in range(settings["threads"])]

    def read(turns: int) -> int:
        counts: queue.SimpleQueue[int] = queue.SimpleQueue()

        def work(thread: Any) -> None:
            try:
                counts.put(sum(read_typed(thread.turn("x")) for _ in range(turns)))
            except BaseException:
                counts.put(-1)
                raise

        readers = [threading.Thread(target=work, args=(thread,)) for thread in threads]
        for reader in readers:
            reader.start()
        return sum(counts.get(timeout=120) for _ in readers)

    return read


def read_in_tasks(runner: asyncio.Runner, codex: Any, settings: Settings) -> Read:
    """A task for each of `threads`."""

    async def start() -> list[Any]:
        return [await codex.thread_start() for _ in range(settings["threads"])]

    threads = runner.run(start())

    async def work(thread: Any, turns: int) -> int:
        seen = length = 0
        for _ in range(turns):
            turn = await thread.turn("x")
            async for event in turn.stream():
                payload = event.payload
                if event.method == DELTA:
                    length += len(payload.delta)
                elif event.method != ASSIGNED:
                    length += len(payload.thread_id)
                seen += 1
        assert length > seen
        return seen

    async def all_of_them(turns: int) -> int:
        return sum(await asyncio.gather(*(work(thread, turns) for thread in threads)))

    return lambda turns: runner.run(all_of_them(turns))


@contextmanager
def published(settings: Settings) -> Iterator[Read]:
    from openai_codex import Codex, CodexConfig

    with Codex(CodexConfig(launch_args_override=tuple(settings["argv"]))) as codex:
        yield read_in_threads(codex, settings)


@contextmanager
def sdk(settings: Settings) -> Iterator[Read]:
    from codex_app_server import AppServerConfig, Codex

    with Codex(AppServerConfig(launch_args_override=tuple(settings["argv"]))) as codex:
        yield read_in_threads(codex, settings)


@contextmanager
def sdk_asyncio(settings: Settings) -> Iterator[Read]:
    from codex_app_server import AppServerConfig, AsyncCodex

    with asyncio.Runner() as runner:
        codex = AsyncCodex(AppServerConfig(launch_args_override=tuple(settings["argv"])))
        runner.run(codex.__aenter__())
        yield read_in_tasks(runner, codex, settings)
        runner.run(codex.close())


@contextmanager
def typed(settings: Settings) -> Iterator[Read]:
    import codex_pool

    with codex_pool.connect(settings["endpoint"]) as codex:
        yield read_in_threads(codex, settings)


@contextmanager
def asyncio_(settings: Settings) -> Iterator[Read]:
    import codex_pool

    with asyncio.Runner() as runner:
        codex = runner.run(codex_pool.aconnect(settings["endpoint"]))
        yield read_in_tasks(runner, codex, settings)
        runner.run(codex.close())


class Lines:
    """A receiver that counts: what comes is a list of lines already, and no more is done with it."""

    def __init__(self) -> None:
        self.seen = 0
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[int] = queue.SimpleQueue()

    def on_batch(self, batch: list[Any]) -> None:
        for entry in batch:
            if isinstance(entry, bytes):
                if entry.startswith(b'{"id":'):
                    self.answers.put(json.loads(entry)["result"])
                continue
            self.seen += len(entry.lines)
            if entry.ended:
                self.ended.put(self.seen)

    def on_closed(self, error: Exception) -> None:
        self.ended.put(-1)


@contextmanager
def raw(settings: Settings) -> Iterator[Read]:
    from codex_pool.client.transport import PoolTransport

    lines = Lines()
    transport = PoolTransport(settings["endpoint"])
    transport.start(lines)

    numbers = itertools.count(1)

    def ask(method: str, params: dict[str, object]) -> Any:
        transport.send(json.dumps({"id": next(numbers), "method": method, "params": params}).encode())
        return lines.answers.get(timeout=30)

    ask("initialize", {"clientInfo": {"name": "bench", "title": None, "version": "0"}})
    thread_id = ask("thread/start", {})["thread"]["id"]

    def read(turns: int) -> int:
        before = lines.seen
        for _ in range(turns):
            ask("turn/start", {"threadId": thread_id, "input": []})
            assert lines.ended.get(timeout=60) >= 0
        return lines.seen - before

    yield read
    transport.close()


KINDS = {
    "published": published,
    "sdk": sdk,
    "sdk-asyncio": sdk_asyncio,
    "typed": typed,
    "asyncio": asyncio_,
    "raw": raw,
}


def main() -> None:
    settings = json.loads(sys.argv[2])
    with KINDS[sys.argv[1]](settings) as read:
        read(1)
        print("ready", flush=True)
        sys.stdin.readline()
        began, began_cpu = time.monotonic(), time.process_time()
        seen = read(settings["turns"])
        # What was left out for a slow reader would count as fast.
        expected = settings["turns"] * settings["threads"] * (settings["deltas"] + 5)
        assert expected <= seen <= expected + settings["turns"] * settings["threads"], (seen, expected)
        done = {"seen": seen, "began": began, "ended": time.monotonic(), "cpu_s": time.process_time() - began_cpu}
        print(json.dumps(done), flush=True)
        # What is measured of others is read before they end.
        sys.stdin.readline()


if __name__ == "__main__":
    main()
