"""Many slow turns at once: what a notification costs that comes alone, and how late it is.

    python bench/paced.py [--rounds 5] [--quick]

64 turns at once, each of 30 deltas a second, written one at a time, so that nearly every read has one line. Null
app-servers stamp each delta when they write it.

    published   openai-codex, one app-server, a Python thread for each turn
    sdk         codex_app_server, one app-server, an asyncio task for each turn
    pool        a pool of two workers, one asyncio client
    threads     a pool of two workers, one client with a Python thread for each turn

CPU is milliseconds for 1,000 notifications: of the client alone without a pool; of workers, broker, supervisor and
client with one. Lag is from the stamp to the reader's hands. Windows of all alternate, each in processes of its own;
figures are medians of the windows, ratios medians of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import common
from measured import Child, PoolProcesses, children

from codex_app_server.testing import null_app_server

TURNS = 64
PER_S = 30
# Of each run, beside its window: to start all turns, and to spare.
AROUND_S = 20
# CPU of worker, broker and client, of the published client's alone; lag, of the SDK's alone.
CHAIN = {"pool": 0.30, "threads": 0.35}
LAG = 2.0


class Run(NamedTuple):
    """Figures of a window: CPU ms for 1,000 notifications, by room; lag of the deltas in ms."""

    cpu_ms: dict[str, float]
    p50_ms: float
    p99_ms: float
    rate: float


def scenario(window_s: float) -> dict[str, Any]:
    return {"deltas": int((window_s + AROUND_S) * PER_S), "pace_ms": 1000 / PER_S, "text": "$NOW"}


def without_pool(kind: str, window_s: float) -> Run:
    argv = null_app_server(**scenario(window_s)).launch_args_override
    with children(Child("paced_readers.py", kind, {"argv": argv, "turns": TURNS})) as (reader,):
        reader.line()
        reader.go()
        time.sleep(window_s)
        reader.go()
        return _run(reader.result(), {}, window_s)


def with_pool(kind: str, window_s: float) -> Run:
    from codex_pool import Pool

    config = null_app_server(**scenario(window_s))
    with Pool(workers=2, config=config, turns_per_worker=TURNS, log_file=os.devnull) as pool:
        settings = {"endpoint": pool.endpoint, "turns": TURNS}
        with children(Child("paced_readers.py", kind, settings)) as (reader,):
            reader.line()
            assert pool.supervisor_pid is not None
            processes = PoolProcesses(pool.supervisor_pid)
            before = processes.cpu_s()
            reader.go()
            time.sleep(window_s)
            reader.go()
            after = processes.cpu_s()
            result = reader.result()
    return _run(result, {name: after[name] - before[name] for name in after if name != "app-servers"}, window_s)


def _run(result: dict[str, Any], rooms_s: dict[str, float], window_s: float) -> Run:
    rooms_s["client"] = result["cpu_s"]
    rooms_s["all"] = sum(rooms_s.values())
    lags = statistics.quantiles(result["lags_s"], n=100)
    cpu_ms = {name: cpu / result["seen"] * 1e6 for name, cpu in rooms_s.items()}
    return Run(cpu_ms, lags[49] * 1000, lags[98] * 1000, result["seen"] / window_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="windows of each (default 5)")
    parser.add_argument("--window", type=float, default=4.0, help="seconds of a window (default 4)")
    parser.add_argument("--quick", action="store_true", help="short windows, two rounds: to see that it works")
    parser.add_argument("--only", nargs="+", help="only these competitors")
    parser.add_argument("--out", type=Path, default=Path("out/bench/paced.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    rounds, window_s = (2, 1.5) if arguments.quick else (arguments.rounds, arguments.window)

    runs: dict[str, list[Run]] = {}

    def run(name: str) -> float:
        measure = with_pool if name in ("pool", "threads") else without_pool
        runs.setdefault(name, []).append(measure(name, window_s))
        return runs[name][-1].cpu_ms["all"]

    names = arguments.only or ["published", "sdk", "pool", "threads"]
    cpu = common.alternate({name: lambda name=name: run(name) for name in names}, rounds, "ms/1,000")  # type: ignore[misc]
    p99 = {name: [each.p99_ms for each in runs[name]] for name in names}
    p50 = {name: [each.p50_ms for each in runs[name]] for name in names}
    rooms = {
        name: {room: [each.cpu_ms[room] for each in runs[name]] for room in runs[name][0].cpu_ms} for name in names
    }
    for name in names:
        said = "  ".join(f"{room} {common.median(figures):.1f}" for room, figures in rooms[name].items())
        print(f"CPU ms for 1,000, {name}: {said}; {runs[name][-1].rate:,.0f}/s", file=sys.stderr)
    peer = names[0]
    common.table("CPU for 1,000 notifications", cpu, peer, "ms")
    common.table("lag of a delta, p50", p50, peer, "ms")
    common.table("lag of a delta, p99", p99, peer, "ms")

    def row(what: str, figures: common.Figures, name: str, peer: str, wanted: float | None) -> common.Row:
        ratio = common.ratio(figures, name, peer)
        return common.row(what, common.median(figures[name]), "ms", peer=peer, ratio=ratio, at_most=wanted)

    rows: list[common.Row] = []
    for name, said in (("pool", "asyncio"), ("threads", "threads")):
        if {name, "published"} <= {*names}:
            rows.append(row(f"paced: CPU for 1,000 notifications, {said}", cpu, name, "published", CHAIN[name]))
        if {name, "sdk"} <= {*names}:
            rows.append(row(f"paced: lag of a delta, p99, {said}", p99, name, "sdk", LAG))
    if {"sdk", "published"} <= {*names}:
        rows.append(row("paced: CPU for 1,000 notifications, the SDK alone", cpu, "sdk", "published", None))
    settings = {"turns": TURNS, "deltas_per_s": PER_S, "window_s": window_s, "rounds": rounds, "workers": 2}
    common.report(arguments.out, settings, rows, cpu_ms_per_1000=rooms, lag_p50_ms=p50, lag_p99_ms=p99)
    return 0


if __name__ == "__main__":
    sys.exit(main())
