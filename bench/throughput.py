"""Real turns per second: the pool against what people would use instead, side by side in one run.

    python bench/throughput.py [--turns 300] [--rounds 7] [--concurrency 32] [--workers 2]

Every competitor runs the same prompts on the same codex binary, with the same configuration (but those that are plain),
kind of thread and number of turns at once, against one loopback model in a process of its own:

    pool          codex_pool, N workers, one asyncio client
    published-N   openai-codex over N app-servers, driven by hand, a thread of the caller per turn under way
    published-1   the same on one app-server
    exec          `codex exec` under xargs, a process a turn; fewer turns, because each takes so long
    exec-plain    the same without the switches that the pool adds, as people run it
    plain-1       published-1 without them

They take turns within each round, in an order that rotates, so that a drift of the machine hits all alike. Reported are
the median over rounds, and the pool's ratio to each peer as the median of the ratios of the rounds. Start-up is not
counted, but where it is part of every turn (exec); a warm-up of each is thrown away. The CPU of a turn - of all
processes of the competitor, clients included - says more where others use the machine too.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import common
import real

# One in so many turns is run by those that take long.
FEW, FEW_SHARE = frozenset({"exec", "exec-plain", "plain-1"}), 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=300, help="turns per run (default 300)")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each competitor (default 7)")
    parser.add_argument("--concurrency", type=int, default=32, help="turns at once (default 32)")
    parser.add_argument("--workers", type=int, default=2, help="app-servers of the pool (default 2)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/throughput.json"), help="where the JSON goes")
    arguments = parser.parse_args()

    from codex_pool.demo import demo_home

    workers, concurrency = arguments.workers, arguments.concurrency
    by_hand = f"published-{workers}"
    competitors: dict[str, Callable[[Path], AbstractContextManager[real.Running]]] = {
        "pool": lambda home: real.pooled(home, workers, concurrency),
        by_hand: lambda home: real.published(home, workers, concurrency),
        "published-1": lambda home: real.published(home, 1, concurrency),
        "exec": lambda home: real.executed(home, concurrency),
        "exec-plain": lambda home: real.executed(home, concurrency, plain=True),
        "plain-1": lambda home: real.published(home, 1, concurrency, plain=True),
    }

    cpu: common.Figures = {name: [] for name in competitors}

    def measured(name: str, home: Path) -> float:
        # Only the competitor under measurement has processes: idle peers would still cost memory and beats.
        turns = arguments.turns if name not in FEW else max(concurrency, arguments.turns // FEW_SHARE)
        with competitors[name](home) as running:
            if name not in FEW:
                running.run(concurrency * 2)
            before = sum(running.cpu_s().values())
            took = running.run(turns)
            cpu[name].append((sum(running.cpu_s().values()) - before) / turns * 1000)
            return turns / took

    with (
        tempfile.TemporaryDirectory(prefix="codex-pool-bench-") as directory,
        demo_home(Path(directory) / "home", script=None) as home,
    ):
        runs = {name: functools.partial(measured, name, home) for name in competitors}
        rates = common.alternate(runs, arguments.rounds, "turns/s")
    wanted_of = {by_hand: 0.98, "published-1": 1.2, "exec": 4.0, "exec-plain": None, "plain-1": None}
    title = f"{arguments.turns} turns of {real.DELTAS} deltas, {concurrency} at once, median of {arguments.rounds} runs"
    common.table(title, rates, "pool", "turns/s")
    rows = [
        common.row(
            f"real turns/s, {workers} workers",
            statistics.median(rates["pool"]),
            "turns/s",
            peer=peer,
            ratio=common.ratio(rates, "pool", peer),
            at_least=wanted,
        )
        for peer, wanted in wanted_of.items()
    ]
    rows += [
        common.row(
            f"CPU of a turn, {name}",
            statistics.median(values),
            "ms",
            peer=None if name == "pool" else "the pool's",
            ratio=None if name == "pool" else common.ratio(cpu, name, "pool"),
        )
        for name, values in cpu.items()
    ]
    settings = {"turns": arguments.turns, "rounds": arguments.rounds, "concurrency": concurrency, "workers": workers}
    common.report(arguments.out, {**settings, "deltas": real.DELTAS}, rows, turns_per_s=rates, cpu_ms=cpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
