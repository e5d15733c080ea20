"""The leg of a soak on null app-servers: many turns, mixed clients, and all operations of the plan."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from codex_app_server.testing import null_app_server

from .checks import decreases, sums, usage_sums
from .clients import Load, over_websocket, over_zeromq
from .daemon import Daemon, Metrics
from .measure import HEAD, Samples
from .plan import FROM, Binaries, Operation, plan

NAMES = ("alice", "bob", "carol")
# Those of the null app-server.
TOKENS = {"input": 6, "output": 21}
TURNS_EACH = 20
SAMPLE_EVERY_S = 1.0
LOG_CHARACTERS = 15_000


def binary(path: Path, work: Path) -> Path:
    """A codex binary that is a null app-server, whose turns take a while and whose threads are in `work`."""
    scenario = {
        "deltas": 8,
        "pace_ms": 15,
        "version": "0.163.0",
        "on": {"thread/list": {"result": {"data": []}}},
        "rewrite": [['"cwd":"/"', f'"cwd":"{work}"']],
    }
    override = null_app_server(**scenario).launch_args_override
    assert override is not None
    command = " ".join(f"'{each}'" for each in override)
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo codex-cli 0.163.0\nexec {command}\n')
    path.chmod(0o700)
    return path


class Leg:
    """A daemon, its clients, and what is found of them. `problems` is what was not as it should be.

    After `limit_s` no further operation is begun, and no turn waited for, which is a problem too.
    """

    def __init__(self, daemon: Daemon, turns: int, operations: list[Operation], limit_s: float) -> None:
        self.daemon, self._turns, self._operations = daemon, turns, operations
        self.load, self.samples = Load(), Samples()
        self.problems = daemon.problems
        self._metrics: Metrics = {}
        self._until_at = time.monotonic() + limit_s
        # When the first operation began, and the last one was over.
        self._first_at = self._last_at = 0.0

    async def run(self, clients: list[Coroutine[Any, Any, None]]) -> None:
        """Run the leg to its end, and print what was seen."""
        with self.daemon.running():
            running = [asyncio.create_task(self.load.run("client", each)) for each in clients]
            watching = [asyncio.create_task(each) for each in (self._sample(), self._watch())]
            try:
                await self._operate()
                await self._until(self._turns)
            finally:
                self.load.over.set()
                await asyncio.gather(*running)
                ended = time.monotonic()
                for each in watching:
                    each.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await each
            await self._judge(ended)
            await self.daemon.stop()
        self.problems += self.load.failures[:20]

    async def _until(self, turns: int) -> None:
        """Wait until so many turns are over, something has failed, or it is too late."""
        while self.load.turns < turns and not self.load.failures and not self._is_late:
            await asyncio.sleep(0.2)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self._until_at

    async def _operate(self) -> None:
        began = time.monotonic()
        await self._until(round(self._turns * FROM))
        self._first_at = time.monotonic()
        for number, operation in enumerate(self._operations):
            await self._until(operation.at)
            if self._is_late:
                self.problems.append(f"{number} of {len(self._operations)} operations were carried out in time")
                break
            at = time.monotonic()
            await self.daemon.carry_out(operation)
            took = time.monotonic() - at
            print(f"{at - began:6.0f} s {self.load.turns:6} turns  {operation} ({took:.1f} s)", flush=True)
        self._last_at = time.monotonic()

    async def _sample(self) -> None:
        while True:
            self.samples.sample(await asyncio.to_thread(self.daemon.processes), time.monotonic())
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _watch(self) -> None:
        """See that counters never go back."""
        while True:
            found = await self.daemon.metrics()
            if found is not None:
                self.problems += decreases(self._metrics, found)
                self._metrics = found
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _sums(self) -> None:
        self.problems += sums(self.load, await self.daemon.metrics_soon(), TOKENS)
        usage = json.loads(await self.daemon.verb(("usage", "--json")) or "{}")
        self.problems += usage_sums(self.load, usage.get("data", []), TOKENS)

    async def _judge(self, ended: float) -> None:
        load = self.load
        await self._sums()
        quiet = self._last_at + (ended - self._last_at) / 2
        rows = self.samples.rows(self._first_at, quiet)
        print(HEAD, *rows, sep="\n")
        for row in rows:
            self.problems += row.problems()
        print(
            f"{load.turns} turns ({dict(load.completed)}), {load.unseen.total()} of them ended unseen, "
            f"{load.unanswered.total()} unanswered; connections {dict(load.connections)}; "
            f"the longest took {load.longest_s:.1f} s"
        )

    def show(self) -> None:
        """Print the problems, and the end of the log if there are any."""
        if self.problems:
            print("\n".join(f"PROBLEM: {each}" for each in self.problems))
            print(self.daemon.log.read_text(errors="replace")[-LOG_CHARACTERS:])


async def null_leg(root: Path, turns: int, seed: int, limit_s: float, *, quick: bool) -> Leg:
    """Run the leg, and print what was seen."""
    first, other = (binary(root / name, root / "work") for name in ("codex", "codex-other"))
    broken = root / "codex-broken"
    broken.write_text("#!/bin/sh\necho this is no codex >&2\nexit 7\n")
    broken.chmod(0o700)
    daemon = Daemon(root, first, NAMES, workers=3, home=root / "home")
    recycles, kills, scales = (4, 1, (2, 4, 3)) if quick else (20, 3, (2, 6, 3))
    binaries = Binaries(str(first), str(other), str(broken))
    operations = plan(turns, seed, binaries, recycles=recycles, kills=kills, scales=scales)
    leg = Leg(daemon, turns, operations, limit_s)
    clients = [
        over_zeromq(daemon, leg.load, None, 4, TURNS_EACH),
        over_zeromq(daemon, leg.load, "alice", 3, TURNS_EACH),
        over_zeromq(daemon, leg.load, "bob", 2, TURNS_EACH),
        over_websocket(daemon, leg.load, "carol", 3, TURNS_EACH),
    ]
    await leg.run(clients)
    leg.show()
    return leg
