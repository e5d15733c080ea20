"""Notifications per second: the SDK alone and the pool, against the published SDK and a bare relay of ZeroMQ frames.

    python bench/notifications.py [--rounds 5] [--quick]

Null app-servers write turns of so many text deltas, of the size of real ones, as fast as they are read. A turn is short
enough that a pool has room for all of it: nothing is left out for a slow reader, which is checked.

    published   openai-codex, one app-server; a field of every payload is read from a pydantic instance
    sdk         the same with codex_app_server
    typed       the same through a pool of two workers, one client process, a Python thread for each of two turns
    asyncio     the same, one asyncio client, a task for each turn
    raw         a pool of two workers, two client processes: lines, undecoded
    relay       two app-servers, ZeroMQ frames over the same hops, as much as is read in each: two client processes
                that count lines
    pipe        one app-server's stdout, read and thrown away: the limit

All competitors take turns, each run in processes of its own; figures are medians, ratios medians of the ratios of the
rounds. CPU is microseconds for each notification, of all processes that move it but the app-server. Rates depend on
what else the machine does, CPU hardly: so there is also what the CPU seen would allow on two cores of its own, where a
client has one interpreter lock and all together have two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import common
import measured
from measured import Child, PoolProcesses, children

from codex_app_server.testing import null_app_server

READ_BYTES = 512 * 1024
CORES = 2


class Run(NamedTuple):
    """Figures of a run: notifications/s; CPU us each, by room; what that CPU would allow on two cores of its own."""

    rate: float
    cpu_us: dict[str, float]
    allowed: float


def direct(kind: str, deltas: int, turns: int, threads: int = 1) -> Run:
    """A client with an app-server of its own; the lines of `threads` turns come side by side."""
    argv = null_app_server(deltas=deltas, side_by_side=threads).launch_args_override
    settings = {"argv": argv, "turns": turns, "deltas": deltas, "threads": threads}
    with children(Child("readers.py", kind, settings)) as (reader,):
        reader.line()
        (app_server,) = measured.children_of(reader.pid)
        before = measured.cpu_s(app_server)
        reader.go()
        result = reader.result()
        return _run([result], {}, measured.cpu_s(app_server) - before)


def through_pool(
    kind: str, clients: int, threads: int, deltas: int, turns: int, *, workers: int = 2, side_by_side: int = 1
) -> Run:
    from codex_pool import Pool

    config = null_app_server(deltas=deltas, side_by_side=side_by_side)
    with Pool(workers=workers, config=config, log_file=os.devnull) as pool:
        settings = {"endpoint": pool.endpoint, "threads": threads, "turns": turns, "deltas": deltas}
        with children(*(Child("readers.py", kind, settings) for _ in range(clients))) as readers:
            for reader in readers:
                reader.line()
            assert pool.supervisor_pid is not None
            processes = PoolProcesses(pool.supervisor_pid)
            before = processes.cpu_s()
            for reader in readers:
                reader.go()
            results = [reader.result() for reader in readers]
            after = processes.cpu_s()
    rooms = {name: after[name] - before[name] for name in after if name != "app-servers"}
    return _run(results, rooms, after["app-servers"] - before["app-servers"])


def through_relay(deltas: int, turns: int) -> Run:
    argv = null_app_server(deltas=deltas).launch_args_override
    with tempfile.TemporaryDirectory(prefix="bench-relay-") as endpoint:
        settings = {"endpoint": endpoint, "argv": argv, "turns": turns}
        with children(Child("relay.py", "relay", settings)) as (relay,):
            relay.line()
            numbered = [{**settings, "number": number} for number in range(2)]
            sources = [Child("relay.py", "source", each) for each in numbered]
            try:
                for _ in sources:
                    relay.line()
                with children(*(Child("relay.py", "client", each) for each in numbered)) as clients:
                    for client in clients:
                        client.line()
                    before = _relay_cpu_s(relay, sources)
                    for client in clients:
                        client.go()
                    results = [client.result() for client in clients]
                    after = _relay_cpu_s(relay, sources)
            finally:
                for each in (*sources, relay):
                    each.process.kill()
    spent = [late - early for late, early in zip(after, before, strict=True)]
    return _run(results, {"broker": spent[0], "workers": spent[1]}, spent[2])


def _relay_cpu_s(relay: Child, sources: list[Child]) -> tuple[float, float, float]:
    app_servers = [pid for each in sources for pid in measured.children_of(each.pid)]
    return (
        measured.cpu_s(relay.pid),
        sum(measured.cpu_s(each.pid) for each in sources),
        sum(map(measured.cpu_s, app_servers)),
    )


def through_pipe(deltas: int, turns: int) -> Run:
    import fcntl

    argv = null_app_server(deltas=deltas).launch_args_override
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as app_server:
        assert app_server.stdin is not None and app_server.stdout is not None
        stdout = app_server.stdout.fileno()
        fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, READ_BYTES)

        def read(turns: int) -> int:
            seen = 0
            for number in range(turns):
                app_server.stdin.write(  # type: ignore[union-attr]
                    b'{"id":%d,"method":"turn/start","params":{"threadId":"%s"}}\n' % (number, b"t" * 36)
                )
                chunk = b""
                while chunk.rfind(b'{"method":"turn/completed"') < 0:
                    chunk = os.read(stdout, READ_BYTES)
                    seen += chunk.count(b"\n")
            return seen

        read(1)
        before = measured.cpu_s(app_server.pid)
        began, began_cpu = time.monotonic(), time.process_time()
        seen = read(turns)
        spent = measured.cpu_s(app_server.pid) - before
        done = {"seen": seen, "began": began, "ended": time.monotonic(), "cpu_s": time.process_time() - began_cpu}
        app_server.stdin.close()
    return _run([done], {}, spent)


def _run(results: list[dict[str, Any]], rooms_s: dict[str, float], app_servers_s: float) -> Run:
    seen = sum(result["seen"] for result in results)
    took = max(result["ended"] for result in results) - min(result["began"] for result in results)
    rooms_s["clients"] = sum(result["cpu_s"] for result in results)
    rooms_s["all"] = sum(rooms_s.values())
    allowed = min(len(results) / rooms_s["clients"], CORES / (rooms_s["all"] + app_servers_s)) * seen
    return Run(seen / took, {name: cpu / seen * 1e6 for name, cpu in rooms_s.items()}, allowed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each competitor (default 5)")
    parser.add_argument("--quick", action="store_true", help="short runs, two rounds: to see that it works")
    parser.add_argument("--deltas", type=int, default=35_000, help="deltas of a turn (default 35,000)")
    parser.add_argument("--only", nargs="+", help="only these competitors")
    parser.add_argument("--out", type=Path, default=Path("out/bench/notifications.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    rounds, deltas = (2, 10_000) if arguments.quick else (arguments.rounds, arguments.deltas)

    # So many turns that each runs for a second or more.
    competitors: dict[str, Callable[[], Run]] = {
        "published": lambda: direct("published", deltas, 3),
        "sdk": lambda: direct("sdk", deltas, 12),
        "typed": lambda: through_pool("typed", 1, 2, deltas, 6),
        "asyncio": lambda: through_pool("asyncio", 1, 2, deltas, 6),
        "raw": lambda: through_pool("raw", 2, 1, deltas, 20),
        "relay": lambda: through_relay(deltas, 36),
        "pipe": lambda: through_pipe(deltas, 60),
    }
    runs: dict[str, list[Run]] = {}

    def run(name: str) -> float:
        runs.setdefault(name, []).append(competitors[name]())
        return runs[name][-1].rate

    names = arguments.only or list(competitors)
    rates = common.alternate({name: lambda name=name: run(name) for name in names}, rounds, "per s")  # type: ignore[misc]
    cpu = {name: [each.cpu_us["all"] for each in runs[name]] for name in names}
    rooms = {name: {room: [each.cpu_us[room] for each in runs[name]] for room in runs[name][0].cpu_us} for name in runs}
    for name in names:
        said = "  ".join(f"{room} {common.median(figures):.2f}" for room, figures in rooms[name].items())
        print(f"CPU us a notification, {name}: {said}", file=sys.stderr)
    allowed = {name: [each.allowed for each in runs[name]] for name in names}
    if "published" in names:
        common.table("notifications/s", rates, "published", "per s")
        common.table("notifications/s that the CPU seen allows on two free cores", allowed, "published", "per s")
        common.table("CPU of a notification", cpu, "published", "us")

    def row(what: str, name: str, peer: str, at_least: float) -> common.Row:
        ratio = common.ratio(rates, name, peer)
        return common.row(what, common.median(rates[name]), "per s", peer=peer, ratio=ratio, at_least=at_least)

    wanted = [
        ("typed, SDK alone", "sdk", "published", 4.0),
        ("typed through the pool, threads", "typed", "published", 5.0),
        ("typed through the pool, asyncio", "asyncio", "published", 5.0),
        ("raw through the pool, two client processes", "raw", "published", 10.0),
        ("raw through the pool, two client processes", "raw", "relay", 0.6),
    ]
    rows = [row(*each) for each in wanted if {each[1], each[2]} <= {*names}]
    for what, name, against, _ in wanted:
        if {name, against} <= {*names}:
            ratio = common.ratio(allowed, name, against)
            figure = common.median(allowed[name])
            rows.append(common.row(f"{what}, as CPU allows", figure, "per s", peer=against, ratio=ratio))
    settings = {"deltas": deltas, "rounds": rounds, "workers": 2}
    common.report(arguments.out, settings, rows, notifications_per_s=rates, cpu_us=rooms, allowed_per_s=allowed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
