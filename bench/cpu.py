"""Cost of a pool beside its app-servers: CPU of all its processes, the client included.

    python bench/cpu.py [--turns 2000] [--concurrency 32] [--workers 2]

Real turns on the loopback model, from ready to the last result. The share is the CPU of supervisor, broker, workers and
client as a part of that of the app-servers: under 8 % (the aim is 5). Beside it, in the same run, the published SDK's
client over as many app-servers driven by hand, with no pool at all. The two take turns in blocks, each on processes of
its own; a warm-up of each block is not counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import common
import real

BLOCKS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=2000, help="turns of each (default 2000)")
    parser.add_argument("--concurrency", type=int, default=32, help="turns at once (default 32)")
    parser.add_argument("--workers", type=int, default=2, help="app-servers (default 2)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/cpu.json"), help="where the JSON goes")
    arguments = parser.parse_args()

    from codex_pool.demo import demo_home

    workers, concurrency = arguments.workers, arguments.concurrency
    competitors = {
        "pool": lambda home: real.pooled(home, workers, concurrency),
        "published": lambda home: real.published(home, workers, concurrency),
    }
    spent: dict[str, Counter[str]] = {name: Counter() for name in competitors}
    turns = arguments.turns // BLOCKS
    with (
        tempfile.TemporaryDirectory(prefix="codex-pool-bench-") as directory,
        demo_home(Path(directory) / "home", script=None) as home,
    ):
        for block in range(BLOCKS):
            for name in sorted(competitors, reverse=bool(block % 2)):
                with competitors[name](home) as running:
                    running.run(concurrency * 2)
                    before = running.cpu_s()
                    took = running.run(turns)
                    used = {room: cpu - before[room] for room, cpu in running.cpu_s().items()}
                spent[name].update(used)
                share = share_of(used)
                print(f"block {block + 1}/{BLOCKS}  {name:<10} {took:6.1f} s  {share:6.2%}", file=sys.stderr)

    total = turns * BLOCKS
    print(f"\n{total} turns, CPU of a turn in ms\n{'':<14}{'pool':>10}{'published':>12}")
    for room in ("app-servers", "supervisor", "broker", "workers", "client"):
        cells = [f"{spent[name][room] / total * 1000:.2f}" if spent[name][room] else "" for name in competitors]
        print(f"{room:<14}{cells[0]:>10}{cells[1]:>12}")
    what = "of the app-servers' CPU"
    rows = [
        common.row(f"pool and client, {total} turns", share_of(spent["pool"]) * 100, f"% {what}", at_most=8.0),
        common.row("published SDK's client alone", share_of(spent["published"]) * 100, f"% {what}"),
        common.row(
            "pool's share",
            share_of(spent["pool"]) * 100,
            "%",
            peer="the published SDK's",
            ratio=share_of(spent["pool"]) / share_of(spent["published"]),
        ),
    ]
    rows += [
        common.row(f"  {room}", spent["pool"][room] / spent["pool"]["app-servers"] * 100, f"% {what}")
        for room in ("supervisor", "broker", "workers", "client")
    ]
    settings = {"turns": total, "concurrency": concurrency, "workers": workers, "deltas": real.DELTAS}
    cpu_ms = {name: {room: cpu / total * 1000 for room, cpu in by_room.items()} for name, by_room in spent.items()}
    common.report(arguments.out, settings, rows, cpu_ms_per_turn=cpu_ms)
    return 0


def share_of(cpu_s: Counter[str] | dict[str, float]) -> float:
    return (sum(cpu_s.values()) - cpu_s["app-servers"]) / cpu_s["app-servers"]


if __name__ == "__main__":
    sys.exit(main())
