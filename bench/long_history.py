"""A thread with a long history, resumed over a pool and on one app-server, and what that costs other clients.

    python bench/long_history.py [--rounds 5] [--megabytes 60] [--turns 300]

    alone    the app-server's answer to thread/resume, by the SDK
    pool     the same over a pool of two: app-server, worker, broker, client
    other    a second client asks for something small every 20 ms meanwhile; the longest that it waited: for the other
             worker, and for the app-server that writes the history

Both are alive in a round and take turns; ratios are medians over rounds. CPU is that of each process for one resume.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
import histories
from measured import PoolProcesses, children_of

from codex_app_server import Codex
from codex_app_server.operations import Operation, thread_resume

SMALL_EVERY_S = 0.02
ALLOWED = 3.0
ALLOWED_WAIT_S = 0.5
# A new request goes to the worker with the least to do; this one is answered by all.
OTHER_WORKER, SAME_APP_SERVER = "model/list", "thread/loaded/list"


def resume(codex: Codex, thread_id: str) -> tuple[float, int]:
    """Return how long the answer took, and its bytes."""
    asked = thread_resume(thread_id, {})
    began = time.perf_counter()
    answer = codex.client.perform(Operation(asked.method, asked.params, bytes, asked.thread_id))
    return time.perf_counter() - began, len(answer)


@contextmanager
def small_requests(codex: Codex, method: str) -> Iterator[list[float]]:
    """Ask for something small every 20 ms; how long each answer took."""
    over, waits = threading.Event(), list[float]()

    def ask() -> None:
        while not over.wait(SMALL_EVERY_S):
            began = time.perf_counter()
            codex.client.perform(Operation(method, b'{"limit":1}', bytes))
            waits.append(time.perf_counter() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()


def supervisor_of(pid: int) -> int:
    """The supervisor of the pool that this process has started."""
    commands = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children_of(pid)}
    return next(child for child, command in commands.items() if b"codex_pool.supervisor" in command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=60.0)
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("out/bench/long_history.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-history-") as directory:
        os.environ["XDG_RUNTIME_DIR"] = directory
        rows = measure(Path(directory) / "home", options)
    common.report(options.out, vars(options) | {"out": str(options.out)}, rows)
    sys.exit(any(row["met"] is False for row in rows))


def measure(home: Path, options: argparse.Namespace) -> list[common.Row]:
    from codex_pool import Pool

    history = histories.begin(home)
    histories.lengthen(history, options.turns, int(options.megabytes * 1e6) // options.turns)
    thread_id = histories.thread_of(history)
    waits: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    figures: common.Figures = {"pool": [], "alone": []}

    with Codex(histories.config_of(home)) as alone:
        # The first one makes the database of the history, of its file.
        first_s, size = resume(alone, thread_id)
    with Pool(2, histories.config_of(home), log_file=os.devnull) as pool:
        with pool.connect() as codex:
            pool_first_s, _ = resume(codex, thread_id)
        processes = PoolProcesses(supervisor_of(os.getpid()))
        for number in range(options.rounds):
            with pool.connect() as codex, pool.connect() as other:
                with small_requests(other, OTHER_WORKER) as quiet:
                    time.sleep(1.0)
                with small_requests(other, OTHER_WORKER) as beside:
                    resume(codex, thread_id)
                before = processes.cpu_s()
                with small_requests(other, SAME_APP_SERVER) as behind:
                    figures["pool"].append(resume(codex, thread_id)[0])
                for name, spent in processes.cpu_s().items():
                    cpu.setdefault(name, []).append(spent - before[name])
                # Only archiving has an app-server let go of a thread, so that another can write it.
                codex.thread_archive(thread_id)
                codex.thread_unarchive(thread_id)
            with Codex(histories.config_of(home)) as alone:
                resume(alone, thread_id)
                with small_requests(alone, SAME_APP_SERVER) as own:
                    figures["alone"].append(resume(alone, thread_id)[0])
            with pool.connect() as codex:
                resume(codex, thread_id)
            for name, each in (("quiet", quiet), ("beside", beside), ("behind", behind), ("own", own)):
                waits.setdefault(name, []).append(max(each, default=0.0))
            shown = ", ".join(f"{name} {each[-1]:.2f} s" for name, each in {**figures, **waits}.items())
            print(f"round {number + 1}/{options.rounds}  {shown}", file=sys.stderr)

    def longest(name: str) -> float:
        return common.median(waits[name])

    first = "the first on one app-server"
    warm, ratio = common.median(figures["pool"]), common.ratio(figures, "pool", "alone")
    rows = [
        common.row("answer", size / 1e6, "MB"),
        common.row("resume over a pool", warm, "s", peer="one app-server", ratio=ratio, at_most=ALLOWED),
        common.row("first resume", pool_first_s, "s", peer=first, ratio=pool_first_s / first_s, at_most=ALLOWED),
        common.row("longest wait of another client, other worker", longest("beside"), "s", at_most=ALLOWED_WAIT_S),
        common.row("the same with no resume beside it", longest("quiet"), "s"),
        common.row("longest wait for the same app-server", longest("behind"), "s"),
        common.row("the same without a pool", longest("own"), "s"),
    ]
    rows += [common.row(f"CPU of a resume, {name}", common.median(spent), "s") for name, spent in cpu.items()]
    return rows


if __name__ == "__main__":
    main()
