"""A hostile neighbour: what one client with a read-only key can cost others.

    python bench/neighbour.py [--seconds 30] [--quick] [--floods NAME,...] [--through tcp|ws] [--real]

An owner over ipc and another client over TCP - or, with --through ws, through the gateway - ask for something small 20
times a second, first alone, then beside each flood of bench/floods.py in turn, in which one client uses all the
sessions and bytes of its key. Beside it the p99 may grow by 50 ms for the owner and by 250 ms for the other; broker,
ingress and gateway have a bound of memory; broker, workers, supervisor and gateway may not be replaced; and 10 s after
it nothing of it may be left, but for sessions that are owed the end of a turn or an answer, which have 20 s to come
back. App-servers answer at once (null ones).

With --real they are the real binary: the owner runs a turn a second; none may fail, and the median may double.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
from floods import floods_of
from measured import Child, PoolProcesses, children

from codex_app_server import AppServerConfig
from codex_app_server.testing import null_app_server
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool
from codex_pool.runtime import processes

MIB = 1024 * 1024
MAX_BROKER_BYTES = 128 * MIB
MAX_GATEWAY_BYTES = 512 * MIB
OWNER_MS, OTHER_MS = 50.0, 250.0
REAL_RATIO = 2.0
SETTLE_S = 10.0
# A session that has turns or requests under way may come back for so long, and is kept.
OWED_S = 22.0


@dataclass
class Seen:
    """Measurements of one flood, or of none."""

    times: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    broker_bytes: int = 0
    # Of the ingress, or of the gateway.
    entrance_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def p99_ms(self, who: str) -> float:
        times = self.times[who]
        # One that was hardly ever answered has no distribution.
        return statistics.quantiles(times, n=100)[98] * 1000 if len(times) > 1 else math.inf

    def most_ms(self, who: str) -> float:
        return max(self.times[who], default=math.inf) * 1000

    def median_ms(self, who: str) -> float:
        return statistics.median(self.times[who]) * 1000


class Neighbours:
    """A pool that listens on TCP or WebSocket, and the clients that are measured on it."""

    def __init__(
        self, directory: Path, config: AppServerConfig, stack: contextlib.ExitStack, *, turns: bool, through: str
    ) -> None:
        self.directory = directory
        self.work = directory / "work"
        self.work.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{probe.getsockname()[1]}"
        self.address = f"{through}://{where}"
        keys = directory / "keys"
        self.keys = {name: self._new_key(keys, name) for name in ("mallory", "other")}
        log = directory / "log"
        listens: dict[str, Any] = {"listen": self.address} if through == "tcp" else {"listen_ws": where}
        self.pool = stack.enter_context(Pool(2, config, keys=keys, log_file=log, **listens))
        asked: dict[str, Any] = {"cwd": str(self.work), "turns": turns, "per_second": 1 if turns else 20}
        clients = {"owner": {"endpoint": self.pool.endpoint, "key": None}}
        if not turns:
            clients["other"] = {"endpoint": self.address, "key": str(self.keys["other"])}
        self.steady = {name: Child("steady.py", {**asked, **of_its_own}) for name, of_its_own in clients.items()}
        stack.enter_context(children(*self.steady.values()))
        for child in self.steady.values():
            child.line()

    def _new_key(self, keys: Path, name: str) -> Path:
        file = self.directory / f"{name}.key"
        command = [sys.executable, "-m", "codex_pool_cli", "keys", "new", name, "--keys", str(keys), "-o", str(file)]
        subprocess.run([*command, "--cwd-root", str(self.work)], check=True, capture_output=True, timeout=60)
        return file

    def processes(self) -> PoolProcesses:
        assert self.pool.supervisor_pid is not None
        return PoolProcesses(self.pool.supervisor_pid)

    def watch(self, seconds: float, flood: Child | None) -> Seen:
        """Measure for so long; the flood, if there is one, runs all the time."""
        seen = Seen()
        for child in self.steady.values():
            child.go()
            child.line()
        before = self.processes()
        if flood is not None:
            flood.go()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._weigh(seen)
            threading.Event().wait(0.05)
        for name, child in self.steady.items():
            child.go()
            result = child.result()
            seen.times[name] = result["times"]
            seen.errors += [f"{name}: {error}" for error in result["errors"]]
        after = self.processes()
        for what in ("supervisor", "broker", "workers", "app_servers", "gateway"):
            if getattr(before, what) != getattr(after, what):
                seen.problems.append(f"{what} were replaced")
        return seen

    def _weigh(self, seen: Seen) -> None:
        found = self.processes()
        seen.broker_bytes = max(seen.broker_bytes, rss_bytes(found.broker))
        seen.entrance_bytes = max(seen.entrance_bytes, rss_bytes(found.ingress or found.gateway))

    def left(self) -> dict[str, str]:
        """Return what is still there of the hostile client, by kind."""
        with self.pool.connect(name="look") as codex:
            status = codex.client.request("pool/status", {})
        assert isinstance(status, dict)
        found: dict[str, str] = {}
        if sessions := [row for row in status["sessions"] if row["identity"] == "mallory"]:
            found["sessions"] = f"{len(sessions)} sessions"
        if status["turns"]["queued"]:
            found["turns"] = f"{status['turns']['queued']} turns queued"
        broker = self.processes().broker
        if rss_bytes(broker) > MAX_BROKER_BYTES:
            found["memory"] = f"{rss_bytes(broker) / MIB:.0f} MiB in the broker"
        return found


def rss_bytes(pid: int) -> int:
    known = processes.identify(pid) if pid else None
    return (processes.resident_bytes(known) or 0) if known is not None else 0


@contextlib.contextmanager
def neighbours(*, real: bool, through: str) -> Iterator[Neighbours]:
    with tempfile.TemporaryDirectory(prefix="bench-neighbour-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        if real:
            model = stack.enter_context(LoopbackModel())
            home = write_loopback_home(directory / "home", model.base_url)
            config = AppServerConfig(env={"CODEX_HOME": str(home)}, config_overrides=("features.shell_snapshot=false",))
        else:
            # Turns last a second, so that some are under way.
            config = null_app_server(deltas=20, pace_ms=50, on={"model/list": {"result": {"data": []}}})
            config.env = {"CODEX_HOME": str(directory / "home")}
        config.cwd = str(directory)
        yield Neighbours(directory, config, stack, turns=real, through=through)


def flooded(name: str, seconds: float, *, real: bool, through: str) -> tuple[Seen, Seen]:
    """Alone, and beside the flood, on one pool."""
    with neighbours(real=real, through=through) as scene:
        alone = scene.watch(seconds, None)
        settings = {"endpoint": scene.address, "key": str(scene.keys["mallory"]), "cwd": str(scene.work)}
        flood = Child("floods.py", name, settings)
        with children(flood):
            flood.line()
            beside = scene.watch(seconds, flood)
        ended = time.monotonic()
        while (left := scene.left()) and time.monotonic() < ended + (OWED_S if set(left) == {"sessions"} else SETTLE_S):
            threading.Event().wait(0.2)
        beside.problems += [f"{each} still there {time.monotonic() - ended:.0f} s later" for each in left.values()]
    return alone, beside


def judge(alone: Seen, beside: Seen, *, real: bool) -> None:
    """Add what is beyond what is allowed."""
    problems = beside.problems
    problems += alone.errors[:2] + beside.errors[:2]
    if real:
        ratio = beside.median_ms("owner") / alone.median_ms("owner")
        if ratio > REAL_RATIO:
            problems.append(f"turns take {ratio:.1f} times as long, {REAL_RATIO:g} is allowed")
        return
    for who, allowed in (("owner", OWNER_MS), ("other", OTHER_MS)):
        more = beside.p99_ms(who) - alone.p99_ms(who)
        if more > allowed:
            problems.append(f"p99 of the {who} grows by {more:.0f} ms, {allowed:.0f} are allowed")
    if beside.broker_bytes > MAX_BROKER_BYTES:
        problems.append(f"the broker has {beside.broker_bytes / MIB:.0f} MiB, {MAX_BROKER_BYTES // MIB} are allowed")
    if beside.entrance_bytes > MAX_GATEWAY_BYTES:
        problems.append(f"it was let in by a process of {beside.entrance_bytes / MIB:.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each flood, and alone before it (default 30)")
    parser.add_argument("--quick", action="store_true", help="5 s of each")
    parser.add_argument("--through", choices=("tcp", "ws"), default="tcp", help="how the flood comes (default tcp)")
    parser.add_argument(
        "--floods", help=f"some of {', '.join(floods_of('tcp'))}; through ws {', '.join(floods_of('ws'))}"
    )
    parser.add_argument("--real", action="store_true", help="on the real app-server")
    parser.add_argument("--out", type=Path, default=Path("out/bench/neighbour.json"), help="where the JSON goes")
    options = parser.parse_args()
    known = floods_of(options.through)
    names = options.floods.split(",") if options.floods else known
    if unknown := set(names) - set(known):
        parser.error(f"no such flood: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    seconds = 5.0 if options.quick else options.seconds
    found: dict[str, Any] = {}
    failed = False
    measured = ("owner",) if options.real else ("owner", "other")
    heads = itertools.chain.from_iterable((f"{who} p99", "max", "alone") for who in measured)
    entrance = "ingress" if options.through == "tcp" else "gateway"
    print(f"{'flood':<12}" + "".join(f"{head:>12}" for head in heads) + f"{'broker':>10}{entrance:>10}")
    for name in names:
        alone, beside = flooded(name, seconds, real=options.real, through=options.through)
        judge(alone, beside, real=options.real)
        figures = itertools.chain.from_iterable(
            (beside.p99_ms(who), beside.most_ms(who), alone.p99_ms(who)) for who in measured
        )
        memory = f"{beside.broker_bytes / MIB:>6.0f} MiB{beside.entrance_bytes / MIB:>6.0f} MiB"
        print(f"{name:<12}" + "".join(f"{figure:>9.1f} ms" for figure in figures) + memory, flush=True)
        for problem in beside.problems:
            print(f"{'':<12}FAILED: {problem}", flush=True)
        failed |= bool(beside.problems)
        found[name] = {"alone": vars(alone), "beside": vars(beside)}
    common.write(
        options.out,
        {"settings": {"seconds": seconds, "real": options.real, "through": options.through}, "floods": found},
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
