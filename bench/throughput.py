"""Real turns per second: the pool against the published SDK, side by side in one run.

    python bench/throughput.py [--turns 200] [--rounds 5] [--concurrency 16] [--workers 2]

Every competitor runs the same prompts on the same codex binary, with the same configuration, kind of thread and number
of turns at once, against one loopback model in a process of its own:

    published-1   openai-codex, one app-server, a thread of the caller per turn under way: how that SDK is used
    published-N   the same over N app-servers, driven by hand
    pool          codex_pool, N workers, one asyncio client

They take turns within each round, in an order that rotates, so that a drift of the machine hits all alike. Reported are
the median over rounds, and the pool's ratio to each peer as the median of the ratios of the rounds. Start-up is not
counted; a warm-up of each is thrown away.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import common

DELTAS = 20
OVERRIDES = ("features.shell_snapshot=false",)
Run = Callable[[int], float]


def prompt(number: int) -> str:
    return f"[[text deltas={DELTAS}]] Question {number}: what comes next?"


def environment(home: Path) -> dict[str, str]:
    return {"CODEX_HOME": str(home), "RUST_LOG": "error"}


@contextmanager
def published(home: Path, app_servers: int, concurrency: int) -> Iterator[Run]:
    """`openai-codex`, its threads spread over `app_servers` processes."""
    from openai_codex import ApprovalMode, Codex, CodexConfig

    with ExitStack() as stack:
        clients = []
        for number in range(app_servers):
            env = environment(home) | {"CODEX_SQLITE_HOME": str(home / f"published-{number}")}
            Path(env["CODEX_SQLITE_HOME"]).mkdir(exist_ok=True)
            clients.append(stack.enter_context(Codex(CodexConfig(env=env, config_overrides=OVERRIDES))))

        def run(turns: int) -> float:
            todo: queue.SimpleQueue[int] = queue.SimpleQueue()
            for number in range(turns):
                todo.put(number)
            failures: list[BaseException] = []

            def work(client: Codex) -> None:
                try:
                    while True:
                        number = todo.get_nowait()
                        thread = client.thread_start(ephemeral=True, approval_mode=ApprovalMode.deny_all)
                        check(number, thread.run(prompt(number)).final_response)
                except queue.Empty:
                    return
                except BaseException as error:
                    failures.append(error)

            # The first client of a process starts faster on a warm SQLite home; that is not what is measured.
            workers = [
                threading.Thread(target=work, args=(client,))
                for client, _ in zip(itertools.cycle(clients), range(concurrency), strict=False)
            ]
            began = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            took = time.perf_counter() - began
            if failures:
                raise failures[0]
            return took

        yield run


@contextmanager
def pooled(home: Path, workers: int, concurrency: int) -> Iterator[Run]:
    """`codex_pool`, one asyncio client."""
    from codex_app_server import AppServerConfig
    from codex_pool import Pool

    config = AppServerConfig(env=environment(home), config_overrides=OVERRIDES)
    per_worker = -(-concurrency // workers)
    with Pool(workers=workers, config=config, turns_per_worker=per_worker, log_file=os.devnull) as pool:

        async def run_all(turns: int) -> float:
            async with await pool.aconnect() as codex:
                todo = iter(range(turns))

                async def work() -> None:
                    for number in todo:
                        thread = await codex.thread_start(ephemeral=True, approval_policy="never")
                        check(number, (await thread.run(prompt(number))).final_response)

                began = time.perf_counter()
                await asyncio.gather(*(work() for _ in range(concurrency)))
                return time.perf_counter() - began

        yield lambda turns: asyncio.run(run_all(turns))


def check(number: int, response: str | None) -> None:
    if response is None or f"Question {number}:" not in response:
        raise AssertionError(f"turn {number} was answered {response!r}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=200, help="turns per run (default 200)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each competitor (default 5)")
    parser.add_argument("--concurrency", type=int, default=16, help="turns at once (default 16)")
    parser.add_argument("--workers", type=int, default=2, help="app-servers of the pool (default 2)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/throughput.json"), help="where the JSON goes")
    arguments = parser.parse_args()

    from codex_pool.demo import demo_home

    workers, concurrency = arguments.workers, arguments.concurrency
    competitors: dict[str, Callable[[Path], AbstractContextManager[Run]]] = {
        "published-1": lambda home: published(home, 1, concurrency),
        f"published-{workers}": lambda home: published(home, workers, concurrency),
        "pool": lambda home: pooled(home, workers, concurrency),
    }

    def measured(name: str, home: Path) -> float:
        # Only the competitor under measurement has processes: idle peers would still cost memory and beats.
        with competitors[name](home) as run:
            run(concurrency * 2)
            return arguments.turns / run(arguments.turns)

    with (
        tempfile.TemporaryDirectory(prefix="codex-pool-bench-") as directory,
        demo_home(Path(directory) / "home", script=None) as home,
    ):
        runs = {name: functools.partial(measured, name, home) for name in competitors}
        rates = common.alternate(runs, arguments.rounds, "turns/s")
    title = f"{arguments.turns} turns of {DELTAS} deltas, {concurrency} at once, median of {arguments.rounds} runs"
    ratios = common.table(title, rates, "pool", "turns/s")
    settings = {"turns": arguments.turns, "concurrency": concurrency, "deltas": DELTAS, "workers": workers}
    common.write(arguments.out, {**settings, "turns_per_s": rates, "pool_against": ratios})
    return 0


if __name__ == "__main__":
    sys.exit(main())
