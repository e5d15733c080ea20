"""Memory that worker and broker occupy, and whether that grows.

    python bench/memory.py [--notifications 1000000]

A pool on null app-servers streams so many notifications to one client, in turns of 1,000 deltas. Per process:

    resident   what one occupies (RSS): at most 25 MiB for a worker, 30 for the broker. Libraries and the interpreter's
               text count in full here, though the processes of a pool share them
    own        what each further one costs (PSS: shared pages divided by those who share them), shown and not judged

Flat: the highest that is seen in the second half is less than 1 MiB above the highest in the first. The highest,
because what is on its way has its bounds too.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import common
from measured import PoolProcesses

DELTAS = 1_000
STRETCHES = 10
GROWTH_MIB = 1.0
MIB = 1024 * 1024


def mib(pid: int, kind: str) -> float:
    """`Rss` or `Pss` of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024 / MIB
    raise AssertionError(f"no {kind} of {pid}")


def growth(highest: list[float]) -> float:
    return max(highest[STRETCHES // 2 :]) - max(highest[: STRETCHES // 2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notifications", type=int, default=1_000_000, help="how many (default 1,000,000)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/memory.json"), help="where the JSON goes")
    arguments = parser.parse_args()

    from codex_app_server.testing import null_app_server
    from codex_pool import Pool

    limits = {"workers": 25.0, "broker": 30.0}
    resident: dict[str, list[float]] = {room: [] for room in limits}
    own: dict[str, float] = {}
    seen = 0
    with Pool(workers=2, config=null_app_server(deltas=DELTAS), log_file=os.devnull) as pool, pool.connect() as codex:
        assert pool.supervisor_pid is not None
        processes = PoolProcesses(pool.supervisor_pid)
        rooms = {"workers": processes.workers, "broker": [processes.broker]}
        threads = [codex.thread_start() for _ in range(2)]
        at_start = {room: max(mib(pid, "Rss") for pid in pids) for room, pids in rooms.items()}
        for stretch in range(STRETCHES):
            highest = dict.fromkeys(limits, 0.0)
            while seen < arguments.notifications * (stretch + 1) / STRETCHES:
                turns = [thread.turn("x") for thread in threads]
                seen += sum(1 for turn in turns for _ in turn.stream())
                for room, pids in rooms.items():
                    highest[room] = max(highest[room], *(mib(pid, "Rss") for pid in pids))
            for room in limits:
                resident[room].append(highest[room])
            print(
                f"{seen:>10,} notifications  " + "  ".join(f"{r} {h:.1f} MiB" for r, h in highest.items()),
                file=sys.stderr,
            )
        for room, pids in rooms.items():
            own[room] = max(mib(pid, "Pss") for pid in pids)

    rows = []
    for room, limit in limits.items():
        name = "a worker" if room == "workers" else "the broker"
        rows += [
            common.row(f"resident, {name}, ready and idle", at_start[room], "MiB", at_most=limit),
            common.row(f"resident, {name}, highest of {seen:,}", max(resident[room]), "MiB", at_most=limit),
            common.row(f"own (PSS), {name}", own[room], "MiB"),
            common.row(f"growth, {name}, second half over first", growth(resident[room]), "MiB", at_most=GROWTH_MIB),
        ]
    common.report(
        arguments.out,
        {"notifications": seen, "deltas": DELTAS},
        rows,
        resident_mib=resident,
        at_start_mib=at_start,
        own_mib=own,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
