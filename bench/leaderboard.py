"""A leaderboard of many large runs: how long it takes to make, its size, and how long a browser takes to open it.

    python bench/leaderboard.py [--runs 12] [--samples 5000]

The runs are made up, and written to a temporary directory by the store's own writer. Needs Chromium on the PATH, and
playwright; CHROMIUM names another one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

from codex_batch.report.leaderboard import operands
from codex_batch.report.leaderboard.table import table_of
from codex_batch.report.leaderboard.write import write_page
from codex_batch.store import Entry, RecordRow, RunDirectory, ScoreRow

MODELS = ("model-a", "model-b", "model-c")
EFFORTS = ("low", "medium", "high", "xhigh")
WAIT_S = 60.0
IN_FLIGHT = 500
USAGE = {"input_tokens": 9000, "cached_input_tokens": 3000, "output_tokens": 700, "total_tokens": 9700}


def made_run(path: Path, number: int, samples: int) -> None:
    """A finished run of so many samples, a few of them failed, each with two scores."""
    model, effort = MODELS[number % len(MODELS)], EFFORTS[number // len(MODELS) % len(EFFORTS)]
    draw, skill = random.Random(number), 0.4 + 0.04 * number
    dataset = {"name": "made-up.jsonl", "samples": samples, "fingerprint": "0123456789abcdef"}
    effective = {"model": model, "effort": effort, "provider": "openai", "codex_version": "0.163.0"}
    with contextlib.closing(RunDirectory(path)) as directory:
        directory.launch({"dataset": dataset, "currency": "USD", "effective": effective, "scorers": []})
        entries = (
            Entry(f"task-{n:05}", 1, f"{n}", {"id": f"task-{n:05}", "prompts": [f"Solve task {n}. " * 12]}, ("all",))
            for n in range(samples)
        )
        directory.load(entries, "made-up.jsonl")
        rows = list(directory.store.samples())
        for first in range(0, len(rows), IN_FLIGHT):
            block = rows[first : first + IN_FLIGHT]
            starts = [directory.start_attempt(row.n, f"{number}-{row.n}", f"thread-{row.n}") for row in block]
            written: list[Any] = []
            for row, start in zip(block, starts, strict=True):
                failed = draw.random() < 0.02
                duration_ms = int(draw.lognormvariate(9, 0.6))
                status = "failed" if failed else "completed"
                record = RecordRow(
                    status, 1, final_response="An answer. " * 20, usage=USAGE, cost=0.018, thread_id=f"thread-{row.n}",
                    turns=1, duration_ms=duration_ms, model=model, effort=effort, codex_version="0.163.0",
                    error={"kind": "overload", "message": "busy"} if failed else None,
                )  # fmt: skip
                end = {
                    "status": status,
                    "usage": USAGE,
                    "cost": 0.018,
                    "worker": "worker-0",
                    "duration_ms": duration_ms,
                }
                written.append(directory.finish(start.result(WAIT_S), record, end, to_score=not failed, events=None))
            for each in written:
                each.result(WAIT_S)
            scored = []
            for row in block:
                right = draw.random() < skill
                quality = min(1.0, max(0.0, draw.gauss(skill, 0.2)))
                scores = [
                    ScoreRow("tests", float(right), right, "12 passed", None, None, None, 5, 0.0),
                    ScoreRow("judge", quality, None, None, "It does what the task asks.", None, None, 5, 0.0),
                ]
                if directory.store.sample_at(row.n, scored=False).state == "scoring":
                    scored.append(directory.scored(row.n, scores))
            for each in scored:
                each.result(WAIT_S)
        directory.outcome("finished", {})


def opened_s(page: Path) -> float:
    """Seconds until Chromium shows the page and its script has run: the best of three."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        took = []
        for _ in range(3):
            tab = browser.new_page()
            began = time.monotonic()
            tab.goto(page.absolute().as_uri())
            tab.wait_for_selector("html[data-ready]", timeout=30_000)
            took.append(time.monotonic() - began)
            tab.close()
        browser.close()
    return min(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--keep", type=Path, help="where the runs are made, and kept")
    parser.add_argument("--out", type=Path, default=Path("out/bench/leaderboard.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or Path(temporary)
        paths = [directory / f"run-{number:02}" for number in range(options.runs)]
        began = time.monotonic()
        for number, path in enumerate(paths):
            if not path.exists():
                made_run(path, number, options.samples)
        print(f"runs written in {time.monotonic() - began:.1f} s", file=sys.stderr)
        before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began, began_cpu = time.monotonic(), time.process_time()
        results = operands.read(operands.choose([str(path) for path in paths]))
        read_s = time.process_time() - began_cpu
        table = table_of(results, 0)
        table_s = time.process_time() - began_cpu - read_s
        page = directory / "leaderboard.html"
        write_page(table, page)
        made_s, made_cpu_s = time.monotonic() - began, time.process_time() - began_cpu
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        what = f"{options.runs} runs x {options.samples:,} samples"
        rows = [
            common.row(f"{what}: made", made_s, "s"),
            common.row("CPU of that", made_cpu_s, "s", at_most=30.0),
            common.row("of these, runs read", read_s, "s"),
            common.row("of these, ranked and compared", table_s, "s"),
            common.row("memory beyond that of writing the runs", peak_mib - before_mib, "MiB", at_most=300.0),
            common.row("size of the page", page.stat().st_size / 1e6, "MB", at_most=10.0),
            common.row("opened by Chromium", opened_s(page), "s", at_most=3.0),
        ]
    settings = {"runs": options.runs, "samples": options.samples}
    common.report(options.out, settings, rows)


if __name__ == "__main__":
    main()
