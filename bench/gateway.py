"""The gateway against the real server: the lag of a delta, its CPU, memory, and idle sessions.

    python bench/gateway.py [--rounds 5] [--turns 100000] [--quick]

    real      clients on `codex app-server --listen unix://PATH`
    gateway   the same clients on the Unix socket of a pool with one worker

Both are up all the time, have the same home and switches, and get their turns from one scripted model, a process of its
own that writes into each delta when it is written. Windows take turns: so many clients run a turn each at 29 deltas a
second, on a thread of its own. Lag is from that time to the reading of the frame; p50 and p99 are compared by the
difference in each round. CPU is that of the gateway's process for each delta that came; its bounds are 60 us, and half
of what the real server needs for one.

50 idle sessions: CPU of gateway and broker together. Memory: resident size (RSS) of the gateway over many turns of 3
deltas of 2 clients, on a null app-server; flat: the highest of the second half is less than 1 MiB above the highest of
the first.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import common
import real
from measured import Child, PoolProcesses, children, cpu_ns, cpu_s
from memory import GROWTH_MIB, STRETCHES, growth, mib

PER_S = 29
PACE_MS = 34
# Of each turn, beside its window: until all turns speak, and to spare.
AROUND_S = 30
LIMIT_S = 30.0
SERVERS = ["real", "gateway"]
IDLE_CLIENTS = 50
SETTLE_S = 2.0
MEMORY_CLIENTS = 2
# Of a stretch: after each the resident size is read, and the last of its turns has just ended.
PARTS = 10
# By number of clients: what p50 and p99 may be above the real server's, in ms; None is shown and not judged.
WANTED: dict[int, tuple[float | None, float | None]] = {5: (1.5, 4.0), 50: (None, 25.0)}
MOST_US = 60.0
MOST_OF_APP_SERVER = 0.5
MOST_MIB = 64.0
MOST_IDLE_PERCENT = 0.3


class Server(NamedTuple):
    """The place where clients connect, and the CPU seconds of its processes so far, by name."""

    path: Path
    cpu_s: Callable[[], dict[str, float]]


class Window(NamedTuple):
    p50_ms: float
    p99_ms: float
    per_s: float
    # Of a delta, by process.
    cpu_us: dict[str, float]


@contextlib.contextmanager
def real_server(home: Path, path: Path) -> Iterator[Server]:
    from codex_app_server.config import find_codex

    switches = [part for override in real.overrides() for part in ("-c", override)]
    argv = [str(find_codex()), *switches, "app-server", "--listen", f"unix://{path}"]
    env = {**os.environ, **real.environment(home, "real")}
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not path.exists():
            assert process.poll() is None and time.monotonic() < deadline, "the app-server does not listen"
            time.sleep(0.02)
        yield Server(path, lambda: {"app-server": cpu_s(process.pid)})
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def processes_of(supervisor_pid: int | None) -> PoolProcesses:
    assert supervisor_pid is not None
    processes = PoolProcesses(supervisor_pid)
    assert processes.gateway and len(processes.app_servers) == 1
    return processes


def cpu_of(processes: PoolProcesses) -> dict[str, float]:
    (worker,), (app_server,) = processes.workers, processes.app_servers
    of_pool = {"gateway": processes.gateway, "broker": processes.broker, "worker": worker}
    return {"app-server": cpu_s(app_server)} | {name: cpu_ns(pid) / 1e9 for name, pid in of_pool.items()}


def window(server: Server, clients: int, window_s: float) -> Window:
    prompt = f"[[text deltas={int((window_s + AROUND_S) * PER_S)} pace_ms={PACE_MS} stamped=true]]"
    settings = {"path": str(server.path), "clients": clients, "prompt": prompt}
    with children(Child("socket_readers.py", "paced", settings)) as (reader,):
        assert reader.line() == "ready"
        # What the start of all turns has delayed is to be read by then.
        time.sleep(SETTLE_S)
        before, began = server.cpu_s(), time.monotonic()
        reader.go()
        time.sleep(window_s)
        reader.go()
        result = reader.result()
        took, after = time.monotonic() - began, server.cpu_s()
        assert not result["ended"], "a turn ended in the window"
        reader.go()
        assert reader.line() == "done"
    seen, quantiles = result["seen"], statistics.quantiles(result["lags_s"], n=100)
    cpu_us = {name: (after[name] - before[name]) / seen * 1e6 for name in after} | {
        "reader": result["cpu_s"] / seen * 1e6
    }
    return Window(quantiles[49] * 1000, quantiles[98] * 1000, seen / took, cpu_us)


def idle_percent(path: Path, processes: PoolProcesses, idle_s: float) -> dict[str, float]:
    """CPU of gateway and broker with idle sessions, in percent of a core."""
    pids = {"gateway": processes.gateway, "broker": processes.broker}
    settings = {"path": str(path), "clients": IDLE_CLIENTS}
    with children(Child("socket_readers.py", "idle", settings)) as (reader,):
        assert reader.line() == "ready"
        time.sleep(SETTLE_S)
        before, began = {name: cpu_ns(pid) for name, pid in pids.items()}, time.monotonic()
        time.sleep(idle_s)
        took = time.monotonic() - began
        return {name: (cpu_ns(pid) - before[name]) / 1e9 / took * 100 for name, pid in pids.items()}


def memory(turns: int, path: Path) -> list[float]:
    """The highest resident size of the gateway, in MiB, in each stretch of so many turns."""
    from codex_app_server.testing import null_app_server
    from codex_pool import Pool

    highest = []
    config = null_app_server(deltas=3)
    with Pool(1, config, turns_per_worker=64, listen_unix=path, log_file=os.devnull) as pool:
        processes = processes_of(pool.supervisor_pid)
        settings = {"path": str(path), "clients": MEMORY_CLIENTS}
        with children(Child("socket_readers.py", "turns", settings)) as (reader,):
            assert reader.line() == "ready"
            for stretch in range(STRETCHES):
                seen = [mib(processes.gateway, "Rss")]
                for _ in range(PARTS):
                    reader.say(str(max(1, turns // STRETCHES // PARTS)))
                    assert reader.line() == "done"
                    seen.append(mib(processes.gateway, "Rss"))
                highest.append(max(seen))
                print(f"stretch {stretch + 1}/{STRETCHES}  gateway {highest[-1]:.1f} MiB", file=sys.stderr)
    return highest


def rows_of(windows: dict[str, dict[int, list[Window]]]) -> list[common.Row]:
    """The rows of all windows, by server and number of clients."""
    rows: list[common.Row] = []
    for clients, (p50_ms, p99_ms) in WANTED.items():
        pairs = list(zip(windows["gateway"][clients], windows["real"][clients], strict=True))
        for name, wanted in (("p50_ms", p50_ms), ("p99_ms", p99_ms)):
            later = statistics.median(getattr(ours, name) - getattr(its, name) for ours, its in pairs)
            what = f"{clients} clients, a delta later than by the real server, {name[:3]}"
            rows.append(common.row(what, later, "ms", at_most=wanted))
        cost_us = statistics.median(ours.cpu_us["gateway"] for ours, _ in pairs)
        ratio = statistics.median(ours.cpu_us["gateway"] / its.cpu_us["app-server"] for ours, its in pairs)
        what = f"{clients} clients, CPU of the gateway, a delta"
        rows.append(common.row(what, cost_us, "us", at_most=MOST_US))
        rows.append(common.row(what, cost_us, "us", peer="app-server", ratio=ratio, at_most=MOST_OF_APP_SERVER))
        for name in ("worker", "broker"):
            cost_us = statistics.median(ours.cpu_us[name] for ours, _ in pairs)
            rows.append(common.row(f"{clients} clients, CPU of the {name}, a delta", cost_us, "us"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="windows of each (default 5)")
    parser.add_argument("--window", type=float, default=4.0, help="seconds of a window (default 4)")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds of idle sessions, 0 for none (default 20)")
    parser.add_argument("--turns", type=int, default=40_000, help="turns for memory, 0 for none (default 40,000)")
    parser.add_argument("--quick", action="store_true", help="short windows, two rounds: to see that it works")
    parser.add_argument("--out", type=Path, default=Path("out/bench/gateway.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    rounds, window_s = (2, 1.5) if arguments.quick else (arguments.rounds, arguments.window)
    idle_s, turns = (2.0, 200) if arguments.quick else (arguments.idle, arguments.turns)

    from codex_app_server import AppServerConfig
    from codex_pool import Pool
    from codex_pool.demo import demo_home

    windows: dict[str, dict[int, list[Window]]] = {name: {clients: [] for clients in WANTED} for name in SERVERS}
    idle: dict[str, float] = {}
    resident: list[float] = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gateway-")))
        home = stack.enter_context(demo_home(directory / "home", script=None))
        if rounds or idle_s:
            alone = stack.enter_context(real_server(home, directory / "real.sock"))
            path = directory / "gateway.sock"
            config = AppServerConfig(env={"CODEX_HOME": str(home)})
            pool = Pool(1, config, turns_per_worker=64, listen_unix=path, log_file=os.devnull)
            processes = processes_of(stack.enter_context(pool).supervisor_pid)
            servers = {"real": alone, "gateway": Server(path, lambda: cpu_of(processes))}
            for number in range(rounds):
                for clients in WANTED:
                    for name in SERVERS[:: 1 if number % 2 else -1]:
                        seen = window(servers[name], clients, window_s)
                        windows[name][clients].append(seen)
                        cpu = "  ".join(f"{room} {us:.0f}" for room, us in seen.cpu_us.items())
                        print(
                            f"round {number + 1}/{rounds}  {clients:>2} clients  {name:<8} p50 {seen.p50_ms:.2f} ms  "
                            f"p99 {seen.p99_ms:.2f} ms  {seen.per_s:.0f}/s  CPU us a delta: {cpu}",
                            file=sys.stderr,
                        )
            if idle_s:
                idle = idle_percent(path, processes, idle_s)
        if turns:
            resident = memory(turns, directory / "null.sock")
    rows = rows_of(windows) if rounds else []
    if idle:
        what = f"{IDLE_CLIENTS} idle sessions, CPU of gateway and broker"
        rows.append(common.row(what, sum(idle.values()), "% of a core", at_most=MOST_IDLE_PERCENT))
    if resident:
        what = f"resident, the gateway, highest of {turns:,} turns"
        rows.append(common.row(what, max(resident), "MiB", at_most=MOST_MIB))
        what = "growth, the gateway, second half over first"
        rows.append(common.row(what, growth(resident), "MiB", at_most=GROWTH_MIB))
    settings = {"rounds": rounds, "window_s": window_s, "deltas_per_s": PER_S, "idle_s": idle_s, "turns": turns}
    raw = {
        name: {str(clients): [each._asdict() for each in of_size] for clients, of_size in by_size.items()}
        for name, by_size in windows.items()
    }
    common.report(arguments.out, settings, rows, windows=raw, idle_percent=idle, resident_mib=resident)
    return 0


if __name__ == "__main__":
    sys.exit(main())
