"""One run against the merge of the shards of the same dataset: equal, but for the fields that are named here.

    PYTHONPATH=tests:tests/harness .venv/bin/python -m shard_runs --samples 300 [--variants] DIR

runs both at full size, with one shard killed and resumed, and prints what differs. Each task has two epochs, or one in
each of two variants.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from programs import codex_pool, environment

from codex_batch.store import RunStore, SampleRow, layout, open_run
from codex_batch.store.export import exported
from codex_batch.store.rows import is_valid

SHARDS, EPOCHS = 3, 2
VARIANTS = ("small", "large")
# Fields of a record that are of one machine and one time: ids, hosts, times, and the number of the launch.
OF_ONE_RUN = ("thread_id", "turn_id", "worker", "queued_ms", "duration_ms", "started_at", "ended_at", "launch")
# Of samples that had no answer when the shard was killed: what was under way was resumed or lost, and what had failed
# was tried again, as by any command that is given again.
OF_KILLED = ("attempts",)
SCORER = 'command:cat answer.txt; grep -qx "$(cat expected.txt)" answer.txt'


def write_dataset(directory: Path, tasks: int) -> Path:
    """Tasks with a workspace each: most agents write the right answer, some a wrong one, some fail."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(7):
        task = directory / f"task-{number}"
        task.mkdir(exist_ok=True)
        (task / "expected.txt").write_text(f"{number}\n")
    path = directory / "dataset.jsonl"
    path.write_text("".join(json.dumps(_sample(n)) + "\n" for n in range(tasks)))
    return path


def _sample(n: int) -> dict[str, Any]:
    answer = n % 7 if n % 5 else 99
    ask = f'[[tool_call "echo {answer} > answer.txt"]] [[text wrote-{answer}]]'
    if n % 50 == 49:
        ask = "[[http_error 400]]"
    return {
        "id": f"sample-{n}" if n % 9 else f"größe/{n}",
        "prompt": f"Task {n}: write the number of the task. {ask}",
        "workspace": {"template": f"task-{n % 7}"},
        "target": str(n % 7),
        "tags": [f"kind-{n % 3}"],
        "metadata": {"n": n},
    }


def batch(dataset: Path, output: Path, *more: str, has_variants: bool = False) -> list[str]:
    """The words of a command."""
    each = [word for name in VARIANTS for word in ("--model", name)] if has_variants else ["--epochs", str(EPOCHS)]
    words = [
        "batch",
        str(dataset),
        "--demo",
        "--workers",
        "1",
        "--retries",
        "1",
        "--scorer",
        SCORER,
    ]
    return [*words, *each, "-o", str(output), *more]


def run_killed(words: list[str], output: Path, limit_s: float) -> set[tuple[str, int, str]]:
    """Run a batch, kill it when a third is done, and run it again; the samples that were begun and had no answer."""
    command = [sys.executable, "-m", "codex_pool_cli", *words]
    process = subprocess.Popen(command, env=environment(None), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline, counts = time.monotonic() + limit_s, {"done": 0, "total": 1}
        while counts["done"] * 3 < counts["total"] or not counts["running"]:
            assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
            time.sleep(0.02)
            if (output / layout.DATABASE).exists():
                with open_run(output) as store:
                    counts = store.counts()
                    counts["total"] = counts["total"] or 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    with open_run(output) as store:
        without_answer = {
            row.key
            for row in store.samples()
            if row.attempts and (row.record is None or not is_valid(row.record.status))
        }
    again = codex_pool(*words, limit_s=limit_s)
    assert again.returncode in (0, 1), again.stderr
    return without_answer


def compared(row: SampleRow, store: RunStore, killed: set[tuple[str, int, str]]) -> dict[str, Any]:
    """All that is known of a sample, without what is of one run."""
    record = exported(row)
    for name in (*OF_ONE_RUN, *(OF_KILLED if row.key in killed else ())):
        del record[name]
    artifacts = {} if row.record is None else {name: store.artifact(row.n, name) for name in row.record.artifacts}
    attempts = store.attempts(row.n)
    return {
        **record,
        "state": row.state,
        "position": row.position,
        "digest": row.digest,
        "spec": row.spec,
        "made with": row.fingerprint,
        "bases": [score.basis for score in row.scores],
        "files": artifacts,
        "statuses": [] if row.key in killed else [attempt.status for attempt in attempts],
        "events": list(_events(store, row.n, attempts[-1].attempt)) if row.key not in killed else [],
    }


def _events(store: RunStore, n: int, attempt: int) -> Iterator[tuple[str, Any]]:
    """The items of an attempt that are of no process."""
    for event in store.events(n, attempt):
        item = event["params"].get("item") or {}
        if event["method"] == "item/completed":
            yield item["type"], item.get("text") or item.get("exitCode")


def differences(one: Path, merged: Path, killed: set[tuple[str, int, str]]) -> list[str]:
    """List what differs between two runs of one dataset."""
    with open_run(one) as first, open_run(merged) as second:
        rows = [
            [(row.key, compared(row, store, killed)) for row in store.samples(selected=True)]
            for store in (first, second)
        ]
        found = [] if [key for key, _ in rows[0]] == [key for key, _ in rows[1]] else ["the samples and their order"]
        for (key, before), (_, after) in zip(*rows, strict=False):
            found += [
                f"{key}: {name}: {before[name]!r}, {after[name]!r}" for name in before if before[name] != after[name]
            ]
        if first.counts() != second.counts():
            found.append(f"counts: {first.counts()}, {second.counts()}")
        if not killed and first.spent() != second.spent():
            found.append(f"spent: {first.spent()}, {second.spent()}")
    lines = [
        [(record["id"], record.get("variant")) for record in map(json.loads, (run / layout.RESULTS).open())]
        for run in (one, merged)
    ]
    return found + ([] if lines[0] == lines[1] else ["the order of results.jsonl"])


def run_all(
    directory: Path, samples: int, limit_s: float, *, has_variants: bool = False
) -> tuple[Path, Path, set[tuple[str, int, str]]]:
    """One run, its shards of which the second is killed and resumed, and their merge.

    Both runs, and the samples that were begun and had no answer when the shard was killed.
    """
    tasks = samples // (len(VARIANTS) if has_variants else EPOCHS)
    dataset, one, merged = write_dataset(directory / "data", tasks), directory / "one", directory / "merged"
    done = codex_pool(*batch(dataset, one, has_variants=has_variants), limit_s=limit_s)
    assert done.returncode in (0, 1), done.stderr
    killed: set[tuple[str, int, str]] = set()
    shards = [directory / f"shard-{index}" for index in range(1, SHARDS + 1)]
    for index, output in enumerate(shards, 1):
        words = batch(dataset, output, "--shard", f"{index}/{SHARDS}", has_variants=has_variants)
        if index == 2:
            # Few at once, so that some are done and others are not.
            killed = run_killed([*words, "--turns-per-worker", "2"], output, limit_s)
        else:
            done = codex_pool(*words, limit_s=limit_s)
            assert done.returncode in (0, 1), done.stderr
    joined = codex_pool("runs", "merge", *map(str, shards), "-o", str(merged), limit_s=limit_s)
    assert joined.returncode == 0, joined.stderr
    return one, merged, killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--variants", action="store_true")
    given = parser.parse_args()
    began = time.monotonic()
    one, merged, killed = run_all(given.directory, given.samples, 3600.0, has_variants=given.variants)
    found = differences(one, merged, killed)
    for difference in found:
        print(difference[:500])
    with open_run(merged) as store:
        counts = store.counts()
    print(f"{counts['total']} samples, {len(killed)} begun and without an answer at the kill: {len(found)} differences")
    print(f"{counts}; {time.monotonic() - began:.0f} s on {os.cpu_count()} processors")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
