"""The cost of the SDK against the published one, side by side in one run, on the null app-server.

    python bench/sdk.py [--rounds 5]

    import         CPU seconds of `import codex_app_server`, and of `import openai_codex`, without a bare interpreter's
    first turn     CPU seconds of a whole process that does one turn, its app-server and the interpreter included
    typed          notifications/s on one client, a field of every payload read from a pydantic instance, and the
                   client's CPU for each, which says more than the rate where others use the machine too
    open turns     asyncio turns open at once on one client, all streamed to their end

Every figure is taken in a process of its own; competitors take turns, figures are medians, ratios are medians of the
ratios of the rounds. Each program is run once before it counts, with bytecode kept in a directory of this run: whether
a package was compiled when it was installed, or lies in a source tree, makes no difference.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common

DELTAS = 50_000
OPEN_TURNS = 1_000

PROGRAMS = {
    "import": {
        "ours": "import codex_app_server",
        "published": "import openai_codex",
    },
    "first turn": {
        "ours": (
            "from codex_app_server import Codex, AppServerConfig\n"
            "with Codex(AppServerConfig(launch_args_override=ARGV)) as codex:\n"
            "    assert codex.thread_start().run('x').final_response"
        ),
        "published": (
            "from openai_codex import Codex, CodexConfig\n"
            "with Codex(CodexConfig(launch_args_override=ARGV)) as codex:\n"
            "    assert codex.thread_start().run('x').final_response"
        ),
    },
    "typed": {
        "ours": (
            "from codex_app_server import Codex, AppServerConfig\n"
            "with Codex(AppServerConfig(launch_args_override=ARGV)) as codex:\n"
            "    thread = codex.thread_start()\n"
            "    measure(thread)"
        ),
        "published": (
            "from openai_codex import Codex, CodexConfig\n"
            "with Codex(CodexConfig(launch_args_override=ARGV)) as codex:\n"
            "    thread = codex.thread_start()\n"
            "    measure(thread)"
        ),
    },
}
# The first turn warms up types; of the second every delta's text is read.
MEASURE = """
import time
def measure(thread):
    thread.run("warm-up")
    began, began_cpu, seen, length = time.perf_counter(), time.process_time(), 0, 0
    for event in thread.turn("x").stream():
        if event.method == "item/agentMessage/delta":
            length += len(event.payload.delta)
        seen += 1
    assert length > 0
    print(seen / (time.perf_counter() - began), (time.process_time() - began_cpu) / seen * 1e6)
"""
OPEN = """
import asyncio
from codex_app_server import AsyncCodex, AppServerConfig
async def main():
    async with AsyncCodex(AppServerConfig(launch_args_override=ARGV)) as codex:
        threads = await asyncio.gather(*(codex.thread_start() for _ in range(COUNT)))
        turns = await asyncio.gather(*(thread.turn("x") for thread in threads))
        results = await asyncio.gather(*(turn.run() for turn in turns))
        assert len(results) == COUNT and all(result.final_response for result in results)
asyncio.run(main())
"""


def program(code: str, **scenario: object) -> str:
    from codex_app_server.testing import null_app_server

    argv = null_app_server(**scenario).launch_args_override
    return f"ARGV = {argv!r}\nCOUNT = {OPEN_TURNS}\n{MEASURE}\n{code}"


def cpu_s(code: str) -> float:
    """CPU seconds of an interpreter that runs the code, its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def printed(code: str, column: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True, env=environment()
    )
    return float(done.stdout.split()[column])


@functools.cache
def bytecode_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench-bytecode-")


def environment() -> dict[str, str]:
    """Environment of the measured processes: all write their bytecode, and find what an earlier one wrote."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": bytecode_directory().name}


def measured(
    programs: dict[str, str], measure: Callable[[str], float], rounds: int, unit: str, **scenario: object
) -> common.Figures:
    """Figures of each program, after a run of each that does not count."""
    codes = {name: program(code, **scenario) for name, code in programs.items()}
    for code in codes.values():
        measure(code)
    return common.alternate({name: functools.partial(measure, code) for name, code in codes.items()}, rounds, unit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each competitor (default 5)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/sdk.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    rounds = arguments.rounds

    # The same prelude as the others have.
    bare = statistics.median(cpu_s(program("")) for _ in range(5))
    report: dict[str, object] = {"bare_interpreter_cpu_s": bare}

    figures = measured(PROGRAMS["import"], lambda code: (cpu_s(code) - bare) * 1000, rounds, "ms")
    report["import_cpu_ms"] = figures
    report["import_against"] = common.table("import, CPU without the bare interpreter's", figures, "ours", "ms")

    figures = measured(PROGRAMS["first turn"], lambda code: cpu_s(code) * 1000, rounds, "ms", deltas=3)
    report["first_turn_cpu_ms"] = figures
    title = "a process that does one turn, CPU with its app-server's"
    report["first_turn_against"] = common.table(title, figures, "ours", "ms")

    rate, cpu = (functools.partial(printed, column=column) for column in (0, 1))
    figures = measured(PROGRAMS["typed"], rate, rounds, "notifications/s", deltas=DELTAS)
    report["typed_notifications_per_s"] = figures
    report["typed_against"] = common.table("typed streaming, one client", figures, "ours", "per s")
    figures = measured(PROGRAMS["typed"], cpu, rounds, "us", deltas=DELTAS)
    report["typed_cpu_us"] = figures
    title = "typed streaming, one client, CPU of a notification"
    report["typed_cpu_against"] = common.table(title, figures, "ours", "us")

    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program(OPEN, deltas=20)], check=True, timeout=120, env=environment())
    report["open_turns"] = {"count": OPEN_TURNS, "seconds": time.perf_counter() - began}
    print(f"\n{OPEN_TURNS} asyncio turns open at once on one client: all ended, in {time.perf_counter() - began:.1f} s")
    common.write(arguments.out, report)
    print(json.dumps({key: report[key] for key in report if key.endswith("against")}), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
