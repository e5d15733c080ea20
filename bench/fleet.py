"""Cost of a run on a Ray cluster to the process of the run, over samples that do nothing.

    python bench/fleet.py [--samples 2000] [--rounds 3] [--workers 2] [--turns-per-worker 16]

Three figures of CPU a sample, each of a process of its own, in every round: a batch on this machine (`local`), the same
on a host of a Ray cluster of this machine (`fleet`), and calls to an actor that does nothing, as many as a sample needs
and as large (`floor`). Wanted: fleet at most local + floor. Samples run on the null app-server, which answers at once.
Medians of the rounds. Also the bytes that go between the run and its host for a sample.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

KINDS = ("local", "fleet", "floor")
# A lease, and its share of the calls that collect results: no more than one.
CALLS = 2
LEASE_BYTES, DELIVERY_BYTES = 400, 1500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="samples per run (default 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="runs (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="app-servers of a pool (default 2)")
    parser.add_argument("--turns-per-worker", type=int, default=16, help="turns at once on each (default 16)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/fleet.json"), help="where the JSON goes")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        kind, root = options.child
        found = floor(options) if kind == "floor" else batch(Path(root), options, is_fleet=kind == "fleet")
        print(json.dumps(found))
        return 0
    rounds = [{kind: measured(kind, options) for kind in KINDS} for _ in range(options.rounds)]
    cpu = {kind: [each[kind]["cpu_ms_a_sample"] for each in rounds] for kind in KINDS}
    middle = {kind: common.median(cpu[kind]) for kind in KINDS}
    moved = common.median([each["fleet"]["bytes_a_sample"] for each in rounds])
    rows = [
        common.row(
            "CPU of the run's process, on a Ray host",
            middle["fleet"],
            "ms a sample",
            at_most=round(middle["local"] + middle["floor"], 3),
        ),
        common.row("CPU of the batch process, on this machine", middle["local"], "ms a sample"),
        common.row("CPU of Ray's own calls", middle["floor"], "ms a sample"),
        common.row("moved between run and host", moved, "bytes a sample"),
    ]
    common.report(options.out, {"samples": options.samples, "rounds": options.rounds}, rows, **cpu)
    return 0


def measured(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """One figure, of a process of its own."""
    with tempfile.TemporaryDirectory(prefix="cp-fleet-") as name:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", kind, name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{kind} ended with exit code {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind:6}  {found}", file=sys.stderr)
    return found


def batch(root: Path, options: argparse.Namespace, *, is_fleet: bool) -> dict[str, float]:
    """One batch in this process."""
    import codex_app_server.testing

    null = Path(codex_app_server.testing.__file__).parent / "_null_app_server.py"
    binary = root / "codex"
    binary.write_text(f"#!/bin/sh\nexec {sys.executable} -S -E {null} '{{\"deltas\": 3}}'\n")
    binary.chmod(0o755)
    (root / "home").mkdir()
    # Hosts use the codex that they find.
    os.environ |= {"CODEX_POOL_CODEX_BIN": str(binary), "CODEX_HOME": str(root / "home")}
    data = root / "data.jsonl"
    data.write_text("".join(json.dumps({"id": str(n), "prompt": f"prompt {n}"}) + "\n" for n in range(options.samples)))

    from codex_batch.configuration.settings import HostOptions, Settings
    from codex_batch.dataset.request import Request
    from codex_batch.hosts import run_hosts
    from codex_batch.run.controller import run_batch
    from codex_pool.options import PoolOptions

    shown: list[list[dict[str, Any]]] = []
    look = run_hosts.RunHosts.shown
    run_hosts.RunHosts.shown = lambda self: shown.append(look(self)) or shown[-1]  # type: ignore[method-assign,func-returns-value]
    settings = Settings(
        request=Request(source=data),
        output=root / "out",
        pool=PoolOptions(workers=options.workers, turns_per_worker=options.turns_per_worker),
        codex_bin=str(binary),
        hosts=HostOptions(address="local", spool=root / "spool") if is_fleet else None,
    )
    cpu, began = time.process_time(), time.perf_counter()
    code = run_batch(settings)
    if code != 0:
        raise SystemExit(f"the batch ended with exit code {code}")
    last = shown[-1] if shown else []
    moved = sum(host["sent_bytes"] + host["received_bytes"] for host in last)
    return {
        "cpu_ms_a_sample": round((time.process_time() - cpu) * 1000 / options.samples, 3),
        "samples_per_s": round(options.samples / (time.perf_counter() - began), 1),
        "bytes_a_sample": round(moved / options.samples),
    }


def floor(options: argparse.Namespace) -> dict[str, float]:
    """Calls to an actor that does nothing, in this process."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

    class Nothing:
        async def call(self, data: bytes) -> bytes:
            return bytes(DELIVERY_BYTES)

    cpu = time.process_time()
    with tempfile.TemporaryDirectory(prefix="cp-ray-") as directory:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=directory)
        actor = ray.remote(Nothing).remote()

        async def lane(count: int) -> None:
            for _ in range(count):
                await actor.call.remote(bytes(LEASE_BYTES))

        async def lanes() -> None:
            at_once = options.workers * options.turns_per_worker
            await asyncio.gather(*(lane(CALLS * options.samples // at_once) for _ in range(at_once)))

        asyncio.run(lanes())
        ray.shutdown()
    return {"cpu_ms_a_sample": round((time.process_time() - cpu) * 1000 / options.samples, 3)}


if __name__ == "__main__":
    os.environ.pop("CODEX_HOME", None)
    sys.exit(main())
