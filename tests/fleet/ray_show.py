"""A run on a Ray cluster of this machine whose nodes and whose own process are killed meanwhile; then it is checked.

    python ray_show.py                                  # 60 samples, a node killed after every 20
    python ray_show.py --samples 300 --kill-every 60    # the full figure

It runs in a network namespace of its own with loopback alone, for which it needs root or user namespaces.
Everything is real but the model: codex, git workspaces, command scorers, Ray with a head and three nodes. After every
so many records a worker node is killed and a new one joins, and twice the process of the run is killed and the same
command is given again. Prints figures as JSON; exit code 1 and the reason if a promise did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_batch.store import open_run
from codex_pool.runtime import processes

LIMIT_S = 1500.0
STORE_BYTES = 80 * 2**20
ADDRESS = "192.0.2.2"
INSIDE = "CODEX_POOL_RAY_SHOW"


class Nodes:
    """The cluster: a head without CPUs, which runs no host, and nodes with two."""

    def __init__(self, directory: Path, count: int) -> None:
        from ray.cluster_utils import Cluster

        shared = {"object_store_memory": STORE_BYTES}
        self._node = {**shared, "num_cpus": 2}
        head = {**shared, "num_cpus": 0, "include_dashboard": False, "temp_dir": str(directory)}
        self._cluster = _until_started(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.address: str = self._cluster.address
        self._there = [self._add() for _ in range(count)]
        self.killed = 0

    def _add(self) -> Any:
        return _until_started(lambda: self._cluster.add_node(**self._node))

    def kill_one(self) -> None:
        """Kill the oldest node, with all of its processes, and let a new one join."""
        node = self._there.pop(0)
        self._cluster.remove_node(node, allow_graceful=False)
        self.killed += 1
        self._there.append(self._add())

    def close(self) -> None:
        self._cluster.shutdown()


def _until_started(start: Callable[[], Any]) -> Any:
    """The result of `start`, tried again: Ray gives its processes 30 s, which a busy machine may exceed."""
    for _ in range(4):
        with contextlib.suppress(Exception):
            return start()
    return start()


def dataset(directory: Path, count: int) -> Path:
    """Samples with a workspace, whose agent writes a file; every third one writes what its scorer does not expect."""
    template = directory / "template"
    template.mkdir()
    (template / "task.txt").write_text("Write the number of the sample to answer.txt.\n")
    path = directory / "samples.jsonl"
    lines = []
    for n in range(count):
        answer = "wrong" if n % 3 == 2 else n
        prompt = f'[[tool_call "echo {answer} > answer.txt"]] [[text deltas=4 pace_ms=100]] sample {n}'
        lines.append({"id": str(n), "prompt": prompt, "target": str(n), "workspace": {"template": "template"}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "check.py").write_text(
        "import json, pathlib, sys\n"
        "wanted = json.load(sys.stdin)['target']\n"
        "sys.exit(pathlib.Path('answer.txt').read_text().strip() != wanted)\n"
    )
    return path


@contextlib.contextmanager
def running(command: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=env)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def count_records(out: Path) -> int:
    try:
        return (out / "results.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def drive(command: list[str], out: Path, log: Path, env: dict[str, str], nodes: Nodes, given: Any) -> int:
    """Run to the end; return how often the process of the run was killed."""
    kills, deadline = 0, time.monotonic() + LIMIT_S
    next_node, next_driver = given.kill_every, given.samples // 3
    while True:
        with running(command, log, env) as child:
            while child.poll() is None:
                if time.monotonic() > deadline:
                    raise AssertionError(f"not over after {LIMIT_S:.0f} s:\n{log.read_text()[-3000:]}")
                done = count_records(out)
                if done >= next_node and done < given.samples:
                    next_node += given.kill_every
                    nodes.kill_one()
                if kills < 2 and done >= next_driver:
                    next_driver += given.samples // 3
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                time.sleep(0.1)
            if child.returncode != -signal.SIGKILL:
                if child.returncode != 0:
                    raise AssertionError(f"exit code {child.returncode}:\n{log.read_text()[-3000:]}")
                return kills
        kills += 1


def check(out: Path, model: LoopbackModel, samples: int) -> dict[str, Any]:
    """Check what was promised; return figures. Raises AssertionError."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(int(line["id"]) for line in lines) == list(range(samples)), "a sample is missing, or is there twice"
    assert {line["status"] for line in lines} == {"completed"}, Counter(line["status"] for line in lines)
    for line in lines:
        (score,) = line["scores"].values()
        assert score["error"] is None and score["passed"] is (int(line["id"]) % 3 != 2), line
    with open_run(out) as store:
        attempts = list(store.all_attempts())
        names = {row.n: row.spec["prompts"][0] for row in store.samples()}
        diffs = sum(b"answer.txt" in store.artifact(row.n, "diff.patch") for row in store.samples())
    assert diffs == samples, f"{diffs} diffs"
    open_ones = [each for each in attempts if each.status is None]
    assert not open_ones, f"{len(open_ones)} attempts without an end"
    # One turn an attempt: two requests, since it calls a tool.
    tries, begun = Counter(each.n for each in attempts), Counter()
    for record in model.requests:
        begun[record.prompt] += not record.tool_outputs
    for n, prompt in names.items():
        assert 1 <= begun[prompt] <= tries[n], f"sample {n}: {tries[n]} attempts, asked {begun[prompt]} times"
    return {
        "records": len(lines),
        "passed": sum(next(iter(line["scores"].values()))["passed"] for line in lines),
        "attempts": len(attempts),
        "by_status": dict(Counter(each.status for each in attempts)),
        "hosts": len({each.host for each in attempts}),
        "asked": sum(begun.values()),
    }


def show(given: Any) -> dict[str, Any]:
    processes.become_subreaper()
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cp-ray-") as name, LoopbackModel(records_kept=10**6) as model:
        directory = Path(name)
        home, out, spools, ray = (directory / each for each in ("home", "out", "spools", "ray"))
        write_loopback_home(home, model.base_url)
        ray.mkdir()
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(directory)}
        nodes = Nodes(ray, given.nodes)
        try:
            path = dataset(directory, given.samples)
            scorer = {
                "type": "command",
                "command": [sys.executable, ".check.py"],
                "files": {".check.py": str(directory / "check.py")},
            }
            command = [sys.executable, "-m", "codex_pool_cli", "batch", str(path), "--ray", nodes.address]
            command += ["--workers", "2", "--turns-per-worker", "4", "--retries", "5", "--scorer", json.dumps(scorer)]
            command += ["--ray-spool", str(spools), "-o", str(out)]
            kills = drive(command, out, directory / "log", {**os.environ, "CODEX_HOME": str(home)}, nodes, given)
            figures = check(out, model, given.samples)
            left = [str(each.relative_to(spools)) for each in spools.rglob("results/*")] if spools.exists() else []
            assert not left, f"results were left on hosts: {left}"
        except BaseException:
            print((directory / "log").read_text()[-4000:] if (directory / "log").exists() else "", file=sys.stderr)
            raise
        finally:
            nodes.close()
        took_s = round(time.monotonic() - began_at, 1)
    return {**figures, "nodes_killed": nodes.killed, "drivers_killed": kills, "took_s": took_s, "left": left_over()}


def left_over() -> list[str]:
    """End what is left of our children within some seconds; return what was of codex."""
    deadline = time.monotonic() + 30.0
    while True:
        below = processes.descendants(os.getpid())
        if not below or time.monotonic() > deadline:
            break
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.1)
    left = codex_processes()
    # Of Ray, what a start that took too long has left.
    processes.sweep(os.getpid(), timeout_s=20.0)
    return left


def codex_processes() -> list[str]:
    """The commands of what runs below this process of codex and its pools."""
    names = []
    for each in processes.descendants(os.getpid()):
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{each.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
    return [name for name in names if "-m codex_pool" in name or "codex_cli_bin" in name]


def enter_namespace(script: str) -> None:
    """Start this script again in a network namespace of its own with loopback alone, unless it is in one."""
    if INSIDE in os.environ:
        return
    unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    # Ray takes the address that a packet to the outside would have.
    own = f"ip addr add {ADDRESS}/32 dev lo && ip route add default dev lo src {ADDRESS}"
    inside = f'ip link set lo up && {own} && exec "$@"'
    os.environ[INSIDE] = "1"
    os.execvp(unshare[0], [*unshare, "sh", "-c", inside, "sh", sys.executable, script, *sys.argv[1:]])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--kill-every", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=3)
    given = parser.parse_args()
    enter_namespace(__file__)
    try:
        figures = show(given)
    finally:
        # Also of a cluster that did not start.
        processes.sweep(os.getpid(), timeout_s=20.0)
    print(json.dumps(figures))
    return 1 if figures["left"] else 0


if __name__ == "__main__":
    sys.exit(main())
