"""One run on a Ray cluster by all ways to start and stop it; then it is checked.

    python ray_commands_show.py

In a network namespace of its own, see ray_show. The run is started with --detach and cancelled, gone on with and
stopped by Ctrl-C, gone on with and ended at once by Ctrl-C twice, and brought to its end by `ray job submit`. Prints
figures as JSON; exit code 1 and the reason if a promise did not hold.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from plugin_distributions import write_distribution
from ray_show import STORE_BYTES, codex_processes, count_records, enter_namespace

from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_batch.store import layout, open_run
from codex_pool.runtime import processes

SAMPLES = 24
LIMIT_S = 240.0
NOTING = """
class Noting:
    def __init__(self, run):
        pass

    def __call__(self, record):
        with open({path!r}, "a") as file:
            print(record["id"], file=file)

    def close(self):
        pass
"""
RAY = str(Path(sys.executable).with_name("ray"))
DASHBOARD_PORT = 8265


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {LIMIT_S:.0f} s"
        time.sleep(0.1)


def run(*command: str, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=limit_s)


class Show:
    """The command of one run, and what is known of it."""

    def __init__(self, directory: Path, model: LoopbackModel) -> None:
        self.out, self.model = directory / "out", model
        data = directory / "samples.jsonl"
        prompts = [f"[[text deltas=4 pace_ms=500]] sample {n}" for n in range(SAMPLES)]
        data.write_text("".join(json.dumps({"id": str(n), "prompt": text}) + "\n" for n, text in enumerate(prompts)))
        self.command = [sys.executable, "-m", "codex_pool_cli", "batch", str(data), "--ray", "auto", "--workers", "1"]
        self.command += ["--turns-per-worker", "2", "--retries", "2", "--ray-spool", str(directory / "spools")]
        self.command += ["--on-record", "noting", "-o", str(self.out)]
        self.noted = directory / "noted"
        hook = {"codex_pool.on_record": {"noting": "noting:Noting"}}
        write_distribution(directory / "site", "noting", hook, {"noting": NOTING.format(path=str(self.noted))})

    def until_more(self) -> None:
        """Wait until the run has recorded one more, and another one is under way."""
        before, asked = count_records(self.out), len(self.model.requests)
        until(lambda: count_records(self.out) > before and len(self.model.requests) > asked + 1, "no new record")

    def detach_and_cancel(self) -> None:
        done = run(*self.command, "--detach")
        assert done.returncode == 0 and "in the background" in done.stderr, done.stderr
        self.until_more()
        done = run(sys.executable, "-m", "codex_pool_cli", "runs", "cancel", str(self.out))
        assert done.returncode == 0, done.stderr
        until(lambda: layout.holder(self.out) is None, "a run that was cancelled did not end")

    def interrupt(self, times: int) -> float:
        """Start the run, and stop it by so many Ctrl-C; return the seconds that it took."""
        child = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        try:
            self.until_more()
            stopped_at = time.monotonic()
            for _ in range(times):
                child.send_signal(signal.SIGINT)
                time.sleep(0.3)
            _, words = child.communicate(timeout=LIMIT_S)
        finally:
            child.kill()
        assert child.returncode == 130 and "interrupted" in words, words
        return round(time.monotonic() - stopped_at, 1)

    def submit(self) -> None:
        address = f"http://127.0.0.1:{DASHBOARD_PORT}"
        done = run(RAY, "job", "submit", "--address", address, "--", *self.command, limit_s=2 * LIMIT_S)
        assert done.returncode == 0 and "succeeded" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]

    def check(self) -> dict[str, Any]:
        lines = [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]
        assert sorted(int(line["id"]) for line in lines) == list(range(SAMPLES)), "a sample is missing, or there twice"
        assert {line["status"] for line in lines} == {"completed"}, Counter(line["status"] for line in lines)
        with open_run(self.out) as store:
            attempts, launches = list(store.all_attempts()), len(store.info()["launches"])
            prompts = {row.n: row.spec["prompts"][0] for row in store.samples()}
        asked, tries = Counter(each.prompt for each in self.model.requests), Counter(each.n for each in attempts)
        # A sample is asked once an attempt, and after its answer was recorded not again.
        for n, prompt in prompts.items():
            assert 1 <= asked[prompt] <= tries[n], f"sample {n}: {tries[n]} attempts, asked {asked[prompt]} times"
        statuses = Counter(str(each.status) for each in attempts)
        assert "None" not in statuses, statuses
        noted = set(self.noted.read_text().split())
        last = {line["id"] for line in lines if line["launch"] == launches}
        assert last and last <= noted, f"the hook has not got {last - noted}"
        return {"records": len(lines), "launches": launches, "attempts": dict(statuses)}


def start_cluster(log: Path) -> None:
    """Start a cluster of one node with two CPUs, tried again: Ray gives it 30 s, which a busy machine may exceed."""
    words = ["--num-cpus", "2", "--object-store-memory", str(STORE_BYTES), "--disable-usage-stats"]
    words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(DASHBOARD_PORT)]
    for _ in range(4):
        # A file: the processes of the cluster keep what its output goes to.
        with log.open("w") as output:
            code = subprocess.call([RAY, "start", "--head", *words], stdout=output, stderr=output, timeout=LIMIT_S)
        if code == 0:
            return
        processes.sweep(os.getpid(), timeout_s=20.0)
    raise AssertionError(log.read_text())


def main() -> int:
    enter_namespace(__file__)
    processes.become_subreaper()
    with tempfile.TemporaryDirectory(prefix="cp-ray-") as name, LoopbackModel(records_kept=10**6) as model:
        directory = Path(name)
        write_loopback_home(directory / "home", model.base_url)
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": name}
        os.environ |= {"CODEX_HOME": str(directory / "home"), "PYTHONPATH": f"{name}/site"}
        show = Show(directory, model)
        try:
            start_cluster(directory / "start")
            show.detach_and_cancel()
            once_s, twice_s = show.interrupt(1), show.interrupt(2)
            show.submit()
            figures = show.check()
            until(lambda: not codex_processes(), "hosts of a run that is over did not end")
        finally:
            # `ray stop` would end the clusters of others as well.
            processes.sweep(os.getpid(), timeout_s=20.0)
    print(json.dumps({**figures, "stopped_in_s": [once_s, twice_s]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
