"""A batch of which everything is killed at five moments, and run again each time: each sample recorded once, and none
asked again that was answered before.

    python tests/chaos/shows/resume.py [--quick] [--variants 2]

Every fifth sample has a workspace with a set-up and a command as scorer. Killed are the batch and all processes below
it: while a workspace is set up, while turns run, while samples are scored, while results.jsonl is written, and at a
random moment. The model server, which is not killed, says what was asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import common

from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_batch.store import RunDirectoryError, open_run
from codex_pool.runtime import processes

MOMENTS = ("set-up", "turns", "random", "scoring", "export")
LIMIT_S = 1800.0

Key = tuple[str, str]
"""Id and variant of a sample."""


def main() -> int:
    options = common.arguments(
        __doc__,
        "resume",
        samples=(1000, 60, "samples of the batch"),
        variants=(1, 1, "variants that each sample is run in"),
        seed=(1, 1, "of prompts and moments"),
    )
    of_variants, variants = common.variants(options.variants)
    wanted = options.samples * len(variants)
    generator = random.Random(options.seed)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="chaos-resume-") as name, LoopbackModel() as model:
        root, out = Path(name), Path(name) / "out"
        write_loopback_home(root / "home", model.base_url)
        data = root / "data.jsonl"
        data.write_text("".join(json.dumps(sample(n, generator)) + "\n" for n in range(options.samples)))
        command = [sys.executable, "-m", "codex_pool_cli", "batch", str(data), "--home", str(root / "home")]
        command += [
            "-o",
            str(out),
            "--workers",
            "2",
            "--retries",
            "3",
            "--retry-on",
            "lost,stalled,overload",
            *of_variants,
        ]
        environ = {**os.environ, "XDG_RUNTIME_DIR": name}
        began = time.monotonic()
        killed: list[str] = []
        answered: list[tuple[str, set[Key], Counter[Key]]] = []
        for moment in MOMENTS:
            with (root / "stderr").open("ab") as stderr:
                batch = subprocess.Popen(command, stdout=stderr, stderr=stderr, stdin=subprocess.DEVNULL, env=environ)
                try:
                    reached = wait_for(moment_of(moment, out, model, wanted, generator), batch)
                finally:
                    kill_all(batch)
            if reached:
                killed.append(moment)
            answered.append((moment, answered_in(out), asked(model, variants)))
        with (root / "stderr").open("ab") as stderr:
            code = subprocess.run(
                command, stdout=stderr, stderr=stderr, stdin=subprocess.DEVNULL, env=environ, timeout=LIMIT_S
            ).returncode
        took_s = time.monotonic() - began
        records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        final = asked(model, variants)
        if code != 0:
            problems.append(f"exit code {code}: {(root / 'stderr').read_text(errors='replace')[-2000:]}")
        left = [path.name for path in (out / "work").iterdir() if (path / "workspace.json").exists()]
        if left:
            problems.append(f"workspaces were left: {left[:5]}")
        with open_run(out) as store:
            attempts = Counter(str(row.status) for row in store.all_attempts())
            doubled = [row.n for row in store.all_attempts() if row.status == "completed" and row.attempt > 1]
            doubled = [n for n in doubled if [a.status for a in store.attempts(n)].count("completed") > 1]
        scored = sum(
            bool(record["scores"]) and all(s["passed"] for s in record["scores"].values()) for record in records
        )
    ids = Counter((record["id"], record.get("variant", "")) for record in records)
    if len(ids) != wanted or any(count != 1 for count in ids.values()):
        problems.append(f"{len(ids)} samples are recorded, {sum(ids.values())} times")
    if scored != wanted:
        problems.append(f"{scored} of {wanted} have the score that they should have")
    for moment, before, count in answered:
        again = [key for key in before if final[key] != count[key]]
        if again:
            problems.append(f"asked again after the kill ({moment}) though answered before: {again[:5]}")
    if doubled:
        problems.append(f"completed more than once: {doubled[:5]}")
    if killed != list(MOMENTS):
        problems.append(f"killed at {killed} only")
    figures = {
        "samples": options.samples,
        "variants": len(variants),
        "recorded once": sum(count == 1 for count in ids.values()),
        "scored as intended": scored,
        "killed at": ", ".join(killed),
        "answered at each kill": ", ".join(str(len(before)) for _, before, _ in answered),
        "turns asked of the model": sum(final.values()),
        **{f"attempts ended {status}": count for status, count in sorted(attempts.items())},
        "seconds": took_s,
    }
    return common.report("a batch killed at five moments", options.out, figures, problems)


def sample(number: int, generator: random.Random) -> dict[str, object]:
    pace_ms = generator.randrange(5, 30)
    made: dict[str, object] = {"id": str(number), "prompt": f"[[text deltas=10 pace_ms={pace_ms}]] sample {number}."}
    if number % 5:
        return {**made, "scorers": [{"type": "regex", "pattern": "."}]}
    workspace = {"files": {"given.txt": "x\n"}, "setup": "sleep 0.05; echo made > made.txt"}
    scorer = {"type": "command", "command": "sleep 0.05; grep -q made made.txt"}
    return {**made, "workspace": workspace, "scorers": [scorer]}


def asked(model: LoopbackModel, variants: list[str]) -> Counter[Key]:
    """Count how often the model was asked, by sample and variant."""
    return Counter(
        (record.prompt.rpartition("sample ")[2].rstrip("."), record.model if record.model in variants else "")
        for record in list(model.requests)
    )


def answered_in(out: Path) -> set[Key]:
    """The samples whose answers are on the disk."""
    with open_run(out) as store:
        return {
            (row.id, row.variant)
            for row in store.samples()
            if row.record is not None and row.record.status == "completed"
        }


def moment_of(
    moment: str, out: Path, model: LoopbackModel, samples: int, generator: random.Random
) -> Callable[[], bool]:
    """Return a check for the moment to kill. All moments but the first let some samples be done before."""
    before = len(model.requests)

    def counts() -> Counter[str]:
        # Looking must not be most of what the machine does.
        time.sleep(0.05)
        with contextlib.suppress(RunDirectoryError), open_run(out) as store:
            return Counter(store.counts())
        return Counter()

    def setting_up() -> bool:
        return any(not (path / "workspace.json").exists() for path in out.glob("work/*/workspace/..") if path.exists())

    if moment == "set-up":
        return setting_up
    if moment == "turns":
        return lambda: len(model.requests) > before + samples // 5
    if moment == "random":
        until = time.monotonic() + generator.uniform(3.0, 3.0 + samples / 40)
        return lambda: time.monotonic() > until
    if moment == "scoring":
        return lambda: len(model.requests) > before + samples // 10 and counts()["scoring"] > 0

    def exporting() -> bool:
        if counts()["done"] < samples:
            return False
        deadline = time.monotonic() + 10.0
        while not (out / "results.jsonl.partial").exists() and time.monotonic() < deadline:
            pass
        return True

    return exporting


def wait_for(is_moment: Callable[[], bool], batch: subprocess.Popen[bytes]) -> bool:
    """Wait for the moment, and return whether it came before the batch ended."""
    deadline = time.monotonic() + LIMIT_S
    while batch.poll() is None and time.monotonic() < deadline:
        if is_moment():
            return True
        time.sleep(0.001)
    return False


def kill_all(batch: subprocess.Popen[bytes]) -> None:
    below = processes.descendants(batch.pid)
    if batch.poll() is None:
        batch.kill()
    for process in below:
        with contextlib.suppress(ProcessLookupError):
            if processes.identify(process.pid) == process:
                os.kill(process.pid, signal.SIGKILL)
    batch.wait()
    common.wait_until(lambda: not any(processes.identify(p.pid) == p for p in below), "all of the batch is gone")


if __name__ == "__main__":
    sys.exit(main())
