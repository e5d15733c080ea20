"""A batch while something of its pool is killed every second: all completed, each recorded once.

    python tests/chaos/shows/kills.py [--quick] [--variants 2]

Prompts of 2 to 4 s on the real binary; app-servers, workers alone, the broker and the supervisor are killed in an order
that a seed decides, and between them the runtime directory, or the socket of the endpoint, is removed. Every repeated
turn must be justified by the end that the store gives the attempt before it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import common

from codex_batch.store import AttemptRow, open_run, shown_name
from codex_pool.demo import demo_home
from codex_pool.runtime import processes

LIMIT_S = 900.0
KINDS = {
    "app-server": (b"app-server", b"stdio"),
    "worker": (b"codex_pool.worker",),
    "broker": (b"codex_pool.broker",),
    "supervisor": (b"codex_pool.supervisor",),
}
# Removed from below the runtime directory of the batch's pool.
REMOVED = {"directory": "codex-pool/p*", "socket": "codex-pool/p*/s.sock"}


def main() -> int:
    options = common.arguments(
        __doc__,
        "kills",
        prompts=(300, 40, "prompts of the batch"),
        variants=(1, 1, "variants that the prompts are divided among"),
        kills=(60, 12, "processes to kill at least"),
        broker_kills=(20, 4, "brokers among them"),
        supervisor_kills=(4, 1, "supervisors among them"),
        removals=(4, 1, "times that the directory is removed, and the socket"),
        seed=(1, 1, "of the order"),
    )
    of_variants, variants = common.variants(options.variants)
    generator = random.Random(options.seed)
    problems: list[str] = []
    killed: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-kills-") as name,
        demo_home(Path(name) / "home", script=None) as home,
    ):
        root, out = Path(name), Path(name) / "out"
        data = root / "data.jsonl"
        samples = [
            {"id": str(n), "prompt": f"[[text deltas=20 pace_ms={generator.randrange(100, 201)}]] question {n}"}
            for n in range(options.prompts // len(variants))
        ]
        data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        command = [sys.executable, "-m", "codex_pool_cli", "batch", str(data), "--home", str(home), "-o", str(out)]
        command += ["--workers", "4", "--turns-per-worker", "4", "--retries", "50", "--json", *of_variants]
        environ = {**os.environ, "XDG_RUNTIME_DIR": name}
        began = time.monotonic()
        with (root / "stdout").open("wb") as stdout, (root / "stderr").open("wb") as stderr:
            batch = subprocess.Popen(command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, env=environ)
            try:
                common.wait_until(lambda: b'"launch"' in (root / "stdout").read_bytes(), "the batch runs")
                code = kill_until_it_ends(batch, root, killed, plan_of(options, generator), generator)
            finally:
                if batch.poll() is None:
                    batch.kill()
                    batch.wait()
        took_s = time.monotonic() - began
        records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        with open_run(out) as store:
            attempts = [(store.sample_at(row.n).shown_name, row) for row in store.all_attempts()]
        if code != 0:
            problems.append(f"exit code {code}: {(root / 'stderr').read_text()[-2000:]}")
            problems.append((out / "pool.log").read_text(errors="replace")[-3000:])
    ids = Counter(shown_name(record["id"], 1, record.get("variant", "")) for record in records)
    wanted = {shown_name(str(sample["id"]), 1, variant) for sample in samples for variant in variants}
    completed = sum(record["status"] == "completed" for record in records)
    if set(ids) != wanted or any(count != 1 for count in ids.values()):
        problems.append(f"{len(ids)} samples are recorded, {sum(ids.values())} times")
    if completed != len(wanted):
        problems.append(f"{completed} of {len(wanted)} completed")
    repeats, unjustified = justify(attempts)
    problems += [f"attempt {attempt} at {sample} is not justified: {why}" for sample, attempt, why in unjustified]
    short = killed["broker"] < options.broker_kills or killed["supervisor"] < options.supervisor_kills
    short = short or any(killed[name] < options.removals for name in REMOVED)
    if sum(killed[kind] for kind in KINDS) < options.kills or short:
        problems.append(f"only {dict(killed)} were killed")
    ends = Counter(str(row.status) for _, row in attempts)
    problems += [f"attempt {row.attempt} at {sample} has no end" for sample, row in attempts if row.status is None]
    for sample, row in attempts:
        if row.status not in ("completed", "lost"):
            print(f"{sample}: {row.status}: {row.error}", file=sys.stderr)
    figures = {
        "prompts": len(wanted),
        "variants": len(variants),
        "completed": completed,
        "recorded once": sum(count == 1 for count in ids.values()),
        **{f"killed: {kind}": killed[kind] for kind in KINDS},
        **{f"removed: {name}": killed[name] for name in REMOVED},
        "attempts repeated": repeats,
        **{f"attempts ended {status}": count for status, count in sorted(ends.items())},
        "seconds": took_s,
    }
    return common.report("a batch under random kills", options.out, figures, problems)


def plan_of(options: argparse.Namespace, generator: random.Random) -> list[str]:
    """List what is killed or removed, in order. The supervisor is not first: a pool that never ran is no fault."""
    others = options.kills - options.broker_kills - options.supervisor_kills
    plan = ["broker"] * options.broker_kills + ["app-server"] * (others // 2) + ["worker"] * (others - others // 2)
    plan += ["supervisor"] * options.supervisor_kills + [*REMOVED] * options.removals
    generator.shuffle(plan)
    while plan[0] == "supervisor":
        generator.shuffle(plan)
    return plan


def kill_until_it_ends(
    batch: subprocess.Popen[bytes], root: Path, killed: Counter[str], plan: list[str], generator: random.Random
) -> int:
    """One every second, as long as the batch runs; its exit code."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            return batch.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            done = sum(killed.values())
            kind = plan[done] if done < len(plan) else None
        if kind in REMOVED:
            killed[kind] += remove(root, REMOVED[kind])
        elif kind is not None and (found := common.below(batch.pid, *KINDS[kind])):
            victim = generator.choice(found)
            if processes.identify(victim.pid) == victim:
                os.kill(victim.pid, signal.SIGKILL)
                killed[kind] += 1
    raise AssertionError(f"the batch did not end within {LIMIT_S:.0f} s")


def remove(root: Path, pattern: str) -> bool:
    """Remove what is there under this name; whether there was anything."""
    found = False
    for path in root.glob(pattern):
        found = True
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def justify(attempts: list[tuple[str, AttemptRow]]) -> tuple[int, list[tuple[str, int, str]]]:
    """Count repeated attempts, and list those that nothing justifies: the attempt before must have ended, and not
    completed, before this one began."""
    before: dict[str, AttemptRow] = {}
    repeats = 0
    unjustified: list[tuple[str, int, str]] = []
    for sample, row in attempts:
        last = before.get(sample)
        before[sample] = row
        if row.attempt == 1:
            continue
        repeats += 1
        if last is None or last.attempt != row.attempt - 1:
            unjustified.append((sample, row.attempt, "the one before is missing"))
        elif last.status not in ("lost", "failed", "stalled"):
            unjustified.append((sample, row.attempt, f"the one before ended with {last.status}"))
        elif last.ended_at is None or last.ended_at > row.started_at:
            unjustified.append((sample, row.attempt, "the one before had not ended"))
    return repeats, unjustified


if __name__ == "__main__":
    sys.exit(main())
