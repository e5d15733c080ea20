"""How long things take to be there: a pool, a recycled slot, the command line's help.

    python bench/start.py [--rounds 7] [--rollouts 5000]

    pool       a pool of 4 ready, against one app-server's own start (its process to the answer to `initialize`): at
               most 1.5 x that plus 0.5 s
    recycled   a slot whose worker is replaced, from when it is due - copying its SQLite home included - to when the new
               worker is ready, in a CODEX_HOME with thousands of rollouts: at most 2 x one app-server's own start there
    help       `codex-pool --help` against `python -c pass`, in CPU and in time: at most 3 x

Peers take turns; ratios are medians of the ratios of the rounds. SQLite homes are warm and bytecode is kept: what a
first start of all does is done before.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import common

RECYCLE_AGE_S = 2.0
LIMIT_S = 120.0
POOL_WORKERS = 4


def config(home: Path) -> Any:
    from codex_app_server import AppServerConfig

    return AppServerConfig(env={"CODEX_HOME": str(home)})


def own_start_s(home: Path) -> float:
    """One app-server as a pool starts it, on a warm SQLite home, until it has answered `initialize`."""
    from codex_pool.pool import LEAN_ENVIRON, lean_argv

    sqlite = home / "codex-pool" / "alone"
    sqlite.mkdir(parents=True, exist_ok=True)
    environ = {**config(home).environ(), **LEAN_ENVIRON, "CODEX_SQLITE_HOME": str(sqlite)}
    info = {"name": "bench", "title": "bench", "version": "0"}
    request = {"id": 1, "method": "initialize", "params": {"clientInfo": info}}
    began = time.perf_counter()
    app_server = subprocess.Popen(
        lean_argv(config(home)), env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert app_server.stdin is not None and app_server.stdout is not None
    with app_server:
        app_server.stdin.write(json.dumps(request).encode() + b"\n")
        app_server.stdin.flush()
        assert b"userAgent" in app_server.stdout.readline()
        took = time.perf_counter() - began
        app_server.stdin.close()
        app_server.wait(LIMIT_S)
    return took


def pool_start_s(home: Path) -> float:
    from codex_pool import Pool

    pool = Pool(workers=POOL_WORKERS, config=config(home), log_file=os.devnull)
    began = time.perf_counter()
    with pool:
        return time.perf_counter() - began


def fill(home: Path, rollouts: int) -> None:
    """Copies of one real rollout, each as a thread of its own."""
    from codex_app_server import Codex

    with Codex(config(home)) as codex:
        thread = codex.thread_start()
        thread.run("[[text deltas=5]] How are you?")
    (rollout,) = (home / "sessions").rglob("rollout-*.jsonl")
    text = rollout.read_text()
    for _ in range(rollouts - 1):
        new = str(uuid.uuid4())
        rollout.with_name(rollout.name.replace(thread.id, new)).write_text(text.replace(thread.id, new))
    shutil.rmtree(home / "codex-pool", ignore_errors=True)


def recycled(home: Path, rounds: int) -> common.Figures:
    """Seconds until a recycled slot is ready, and in between those of one app-server's own start."""
    from codex_pool import Pool

    changes: queue.SimpleQueue[tuple[float, dict[str, Any]]] = queue.SimpleQueue()
    figures: common.Figures = {"recycled": [], "app-server": []}
    pool = Pool(
        workers=1,
        config=config(home),
        log_file=os.devnull,
        recycle_age_s=RECYCLE_AGE_S,
        on_slots=lambda slots: changes.put((time.monotonic(), slots[0])),
    )
    with pool:
        # The first tells where the second begins.
        ready_at, replaced, skipped = 0.0, "", False
        while len(figures["recycled"]) < rounds:
            at, slot = changes.get(timeout=LIMIT_S)
            if slot["recycling"] and not replaced:
                # The new one is ready, the old one is drained.
                if skipped:
                    figures["recycled"].append(at - ready_at - RECYCLE_AGE_S)
                    figures["app-server"].append(own_start_s(home))
                ready_at, skipped = at, True
            replaced = slot["recycling"]
    return figures


def command(argv: list[str]) -> tuple[float, float]:
    """Seconds in time and in CPU."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True, timeout=LIMIT_S)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def help_figures(rounds: int) -> tuple[common.Figures, common.Figures]:
    """Milliseconds in time, and in CPU."""
    script = shutil.which("codex-pool", path=str(Path(sys.executable).parent))
    assert script is not None, "codex-pool is not installed beside this python"
    commands = {"codex-pool --help": [script, "--help"], "python -c pass": [sys.executable, "-c", "pass"]}
    taken: common.Figures = {name: [] for name in commands}
    cpu: common.Figures = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, argv in commands.items():
            figures = command(argv)
            if number:
                taken[name].append(figures[0] * 1000)
                cpu[name].append(figures[1] * 1000)
    return taken, cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each (default 7)")
    parser.add_argument("--rollouts", type=int, default=5000, help="stored threads while slots are recycled")
    parser.add_argument("--out", type=Path, default=Path("out/bench/start.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    rounds = arguments.rounds

    from codex_pool.demo import demo_home

    with tempfile.TemporaryDirectory(prefix="codex-pool-bench-") as temporary:
        directory = Path(temporary)
        # Of all processes that are started from here: whether a package was compiled when it was installed, or lies in
        # a source tree, makes no difference.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(directory / "bytecode")
        taken, cpu = help_figures(rounds * 4)
        with demo_home(directory / "home", script=None) as home:
            for start in (own_start_s, pool_start_s):
                start(home)
            starts = common.alternate(
                {"pool of 4": lambda: pool_start_s(home), "app-server": lambda: own_start_s(home)}, rounds, "s"
            )
        with demo_home(directory / "full", script=None) as home:
            fill(home, arguments.rollouts)
            own_start_s(home)
            recycles = recycled(home, rounds)

    allowed = [own * 1.5 + 0.5 for own in starts["app-server"]]
    rows = [
        common.row(
            "pool of 4 ready",
            statistics.median(starts["pool of 4"]),
            "s",
            peer="1.5 x an app-server's start + 0.5 s",
            ratio=statistics.median(a / b for a, b in zip(starts["pool of 4"], allowed, strict=True)),
            at_most=1.0,
        ),
        common.row(
            f"recycled slot ready, {arguments.rollouts} rollouts",
            statistics.median(recycles["recycled"]),
            "s",
            peer="an app-server's start",
            ratio=common.ratio(recycles, "recycled", "app-server"),
            at_most=2.0,
        ),
    ]
    for what, figures in (("CPU", cpu), ("time", taken)):
        rows.append(
            common.row(
                f"codex-pool --help, {what}",
                statistics.median(figures["codex-pool --help"]),
                "ms",
                peer="python -c pass",
                ratio=common.ratio(figures, "codex-pool --help", "python -c pass"),
                at_most=3.0,
            )
        )
    settings = {"rounds": rounds, "rollouts": arguments.rollouts, "workers": POOL_WORKERS}
    common.report(arguments.out, settings, rows, starts_s=starts, recycles_s=recycles, help_ms=taken, help_cpu_ms=cpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
