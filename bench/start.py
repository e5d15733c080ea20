"""Times until things are there: a pool, a recycled slot, the command line's help, status and first text.

    python bench/start.py [--rounds 7] [--rollouts 5000] [--only pool recycled help commands]

    pool       a pool of 4 ready, against one app-server's own start (its process to the answer to `initialize`): at
               most 1.5 x that plus 0.5 s
    recycled   a slot whose worker is replaced, from when it is due - copying its SQLite home included - to when the new
               worker is ready, in a CODEX_HOME with thousands of rollouts: at most 2 x one app-server's own start there
    help       `codex-pool --help` against `python -c pass`, in CPU and in time: at most 3 x
    commands   with a warm daemon: the first text of `codex-pool run` against that of `codex exec`, at most 1 x; the CPU
               of `codex-pool status` against `python -c "import click, zmq, msgspec"`, at most 1.4 x. CPU is of
               the command and all it starts: a turn of `run` works in the daemon, whose CPU is not in it

Peers take turns; ratios are medians of the ratios of the rounds. SQLite homes are warm and bytecode is kept: what a
first start of all does is done before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
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
    from codex_pool.lean_profile import LEAN_ENVIRON, lean_argv

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
    commands = {"codex-pool --help": [command_line(), "--help"], "python -c pass": [sys.executable, "-c", "pass"]}
    taken: common.Figures = {name: [] for name in commands}
    cpu: common.Figures = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, argv in commands.items():
            figures = command(argv)
            if number:
                taken[name].append(figures[0] * 1000)
                cpu[name].append(figures[1] * 1000)
    return taken, cpu


def first_text(argv: list[str], directory: Path) -> tuple[float, float]:
    """Seconds from the start of a command to its first byte on stdout, and its CPU seconds with all that it started."""
    reader, writer = os.pipe()
    began = time.perf_counter()
    with subprocess.Popen(
        argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.DEVNULL
    ) as process:
        os.close(writer)
        assert os.read(reader, 65536), f"{argv} has printed nothing"
        took = time.perf_counter() - began
        while os.read(reader, 65536):
            pass
        os.close(reader)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{argv} has ended with {process.returncode}"
    return took, usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def daemon(home: Path, endpoint: str) -> Iterator[None]:
    """A daemon with one worker."""
    argv = [command_line(), "serve", "--workers", "1", "--json", "--endpoint", endpoint]
    environ = {**os.environ, "CODEX_HOME": str(home)}
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            assert "launch" in process.stdout.readline()
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT_S)


def command_figures(directory: Path, home: Path, rounds: int) -> tuple[common.Figures, common.Figures]:
    """Milliseconds to the first text, and of CPU, of commands with a warm daemon and of their peers."""
    from codex_cli_bin import bundled_codex_path

    endpoint = f"ipc://{directory}/sockets/bench.sock"
    work = directory / "work"
    work.mkdir()
    prompt = "[[text deltas=20]] How are you?"
    exec_ = [str(bundled_codex_path()), "exec", "--skip-git-repo-check", prompt]
    commands = {
        "codex-pool run": [command_line(), "run", "--connect", endpoint, prompt],
        "codex exec": exec_,
        "codex-pool status": [command_line(), "status", "--connect", endpoint],
    }
    taken: common.Figures = {name: [] for name in commands}
    cpu: common.Figures = {name: [] for name in (*commands, "import")}
    imports = [sys.executable, "-c", "import click, zmq, msgspec"]
    os.environ["CODEX_HOME"] = str(home)
    with daemon(home, endpoint):
        for number in range(rounds + 1):
            names = list(commands)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                figures = first_text(commands[name], work)
                # The first one of each warms caches up.
                if number:
                    taken[name].append(figures[0] * 1000)
                    cpu[name].append(figures[1] * 1000)
            spent = command(imports)[1]
            if number:
                cpu["import"].append(spent * 1000)
    return taken, cpu


def command_line() -> str:
    """The console script beside this python."""
    script = shutil.which("codex-pool", path=str(Path(sys.executable).parent))
    assert script is not None, "codex-pool is not installed beside this python"
    return script


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each (default 7)")
    parts = ("pool", "recycled", "help", "commands")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to run (default: all)")
    parser.add_argument("--rollouts", type=int, default=5000, help="stored threads while slots are recycled")
    parser.add_argument("--out", type=Path, default=Path("out/bench/start.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    rounds = arguments.rounds

    from codex_pool.demo import demo_home

    only = set(arguments.only)
    rows: list[common.Row] = []
    raw: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="codex-pool-bench-") as temporary:
        directory = Path(temporary)
        # Of all processes that are started from here: whether a package was compiled when it was installed, or lies in
        # a source tree, makes no difference.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(directory / "bytecode")
        if "help" in only:
            raw["help_ms"], raw["help_cpu_ms"] = figures = help_figures(rounds * 4)
            rows += help_rows(*figures)
        with demo_home(directory / "home", script=None) as home:
            if "commands" in only:
                raw["commands_ms"], raw["commands_cpu_ms"] = figures = command_figures(directory, home, max(rounds, 9))
                rows += command_rows(*figures)
            if "pool" in only:
                for start in (own_start_s, pool_start_s):
                    start(home)
                starts = common.alternate(
                    {"pool of 4": lambda: pool_start_s(home), "app-server": lambda: own_start_s(home)}, rounds, "s"
                )
                raw["starts_s"] = starts
                rows.append(pool_row(starts))
        if "recycled" in only:
            with demo_home(directory / "full", script=None) as home:
                fill(home, arguments.rollouts)
                own_start_s(home)
                recycles = recycled(home, rounds)
            raw["recycles_s"] = recycles
            rows.append(recycled_row(recycles, arguments.rollouts))
    settings = {"rounds": rounds, "rollouts": arguments.rollouts, "workers": POOL_WORKERS, "only": sorted(only)}
    common.report(arguments.out, settings, rows, **raw)
    return 0


def pool_row(starts: common.Figures) -> common.Row:
    allowed = [own * 1.5 + 0.5 for own in starts["app-server"]]
    return common.row(
        "pool of 4 ready",
        statistics.median(starts["pool of 4"]),
        "s",
        peer="1.5 x an app-server's start + 0.5 s",
        ratio=statistics.median(a / b for a, b in zip(starts["pool of 4"], allowed, strict=True)),
        at_most=1.0,
    )


def recycled_row(recycles: common.Figures, rollouts: int) -> common.Row:
    return common.row(
        f"recycled slot ready, {rollouts} rollouts",
        statistics.median(recycles["recycled"]),
        "s",
        peer="an app-server's start",
        ratio=common.ratio(recycles, "recycled", "app-server"),
        at_most=2.0,
    )


def help_rows(taken: common.Figures, cpu: common.Figures) -> list[common.Row]:
    return [
        common.row(
            f"codex-pool --help, {what}",
            statistics.median(figures["codex-pool --help"]),
            "ms",
            peer="python -c pass",
            ratio=common.ratio(figures, "codex-pool --help", "python -c pass"),
            at_most=3.0,
        )
        for what, figures in (("CPU", cpu), ("time", taken))
    ]


def command_rows(taken: common.Figures, cpu: common.Figures) -> list[common.Row]:
    run, exec_ = "codex-pool run", "codex exec"
    return [
        common.row(
            f"{run}, first text",
            statistics.median(taken[run]),
            "ms",
            peer=exec_,
            ratio=common.ratio(taken, run, exec_),
            at_most=1.0,
        ),
        common.row(
            f"{run}, CPU",
            statistics.median(cpu[run]),
            "ms",
            peer=exec_,
            ratio=common.ratio(cpu, run, exec_),
        ),
        common.row(
            "codex-pool status, CPU",
            statistics.median(cpu["codex-pool status"]),
            "ms",
            peer="import click, zmq, msgspec",
            ratio=common.ratio(cpu, "codex-pool status", "import"),
            at_most=1.4,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
