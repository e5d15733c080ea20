"""Cost of a batch to the machine beside its pool: CPU and memory of the batch process over samples that do nothing.

    python bench/batch.py [--samples 20000] [--variants 1 2] [--rounds 3] [--workers 2] [--turns-per-worker 16]

Samples run through the whole pool on the null app-server, which answers at once; with variants each of them is run in
each, and the figures are those of one sample in one variant. Only the batch process is measured: its CPU, dataset and
start included, and its peak of memory; the pool's processes are its children. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

WANTED_MS, WANTED_MIB = 1.0, 150.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="samples per run, in all variants (default 20000)")
    parser.add_argument(
        "--variants", type=int, nargs="+", default=[1], help="numbers of variants, by model (default 1: none)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="app-servers of the pool (default 2)")
    parser.add_argument("--turns-per-worker", type=int, default=16, help="turns at once on each (default 16)")
    parser.add_argument("--profile", action="store_true", help="print where the time of the loop's thread goes")
    parser.add_argument("--out", type=Path, default=Path("out/bench/batch.json"), help="where the JSON goes")
    parser.add_argument("--child", nargs=2, metavar=("DIRECTORY", "VARIANTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        directory, variants = options.child
        return run(Path(directory), int(variants), options)
    runs = [
        measured(number + 1, variants, options) for number in range(options.rounds) for variants in options.variants
    ]
    figures = {name: [run[name] for run in runs] for name in runs[0]}
    rows = [row for variants in options.variants for row in rows_of(runs, variants, options.samples)]
    settings = {
        "samples": options.samples,
        "variants": options.variants,
        "rounds": options.rounds,
        "turns": options.workers * options.turns_per_worker,
    }
    common.report(options.out, settings, rows, **figures)
    return 0


def rows_of(runs: list[dict[str, float]], variants: int, samples: int) -> list[common.Row]:
    """Rows of the runs with so many variants."""
    found = [run for run in runs if run["variants"] == variants]
    what = f"the batch process, {samples:,} samples that do nothing"
    what += f", in {variants} variants" if variants > 1 else ""
    cpu_ms = common.median([run["cpu_ms_a_sample"] for run in found])
    peak_mib = common.median([run["peak_mib"] for run in found])
    return [
        common.row(f"CPU of {what}", cpu_ms, "ms a sample", at_most=WANTED_MS),
        common.row(f"peak of memory of {what}", peak_mib, "MiB", at_most=WANTED_MIB),
    ]


def measured(number: int, variants: int, options: argparse.Namespace) -> dict[str, float]:
    """One batch in a process of its own: what this one has loaded is none of the batch's."""
    with tempfile.TemporaryDirectory(prefix="codex-pool-bench-") as name:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", name, str(variants)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SystemExit(f"the batch ended with exit code {done.returncode}: {done.stderr[-2000:]}")
        *said, last = done.stdout.splitlines()
        if said:
            print("\n".join(said))
        found: dict[str, float] = json.loads(last)
    print(
        f"run {number}/{options.rounds}, variants {variants}  {found['cpu_ms_a_sample']:.2f} ms a sample, "
        f"{found['peak_mib']:.0f} MiB, "
        f"{found['samples_per_s']:.0f} samples/s",
        file=sys.stderr,
    )
    return found


def run(root: Path, variants: int, options: argparse.Namespace) -> int:
    """One batch in this process; its figures as JSON on stdout."""
    data = root / "data.jsonl"
    with data.open("w") as file:
        for number in range(options.samples // variants):
            file.write(json.dumps({"id": str(number), "prompt": f"prompt {number}"}) + "\n")
    (root / "home").mkdir()
    cpu, began = time.process_time(), time.perf_counter()

    import codex_app_server.testing
    from codex_batch.configuration.settings import Settings
    from codex_batch.configuration.variants import variants_of
    from codex_batch.dataset.request import Request
    from codex_batch.run.controller import run_batch
    from codex_pool.options import PoolOptions

    null = Path(codex_app_server.testing.__file__).parent / "_null_app_server.py"
    binary = root / "codex"
    binary.write_text(f"#!/bin/sh\nexec {sys.executable} -S -E {null} '{{\"deltas\": 3}}'\n")
    binary.chmod(0o755)
    settings = Settings(
        request=Request(source=data),
        output=root / "out",
        pool=PoolOptions(workers=options.workers, turns_per_worker=options.turns_per_worker),
        codex_bin=str(binary),
        home=str(root / "home"),
        variants=variants_of([f"model-{number}" for number in range(variants)], (), None),
    )
    count = options.samples // variants * variants
    if options.profile:
        import cProfile
        import pstats

        profile = cProfile.Profile(time.thread_time)
        profile.enable()
    code = run_batch(settings)
    if options.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
        pstats.Stats(profile).sort_stats("cumulative").print_stats("codex_|asyncio/tasks")
    figures = {
        "variants": variants,
        "samples": count,
        "cpu_ms_a_sample": round((time.process_time() - cpu) * 1000 / count, 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "samples_per_s": round(count / (time.perf_counter() - began), 1),
    }
    print(json.dumps(figures))
    return code


if __name__ == "__main__":
    os.environ.pop("CODEX_HOME", None)
    sys.exit(main())
