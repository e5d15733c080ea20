"""Measurement of app-servers: real turns on the loopback model, in a home for the time being. Linux only."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from codex_app_server import AppServerConfig, AsyncCodex, StdioTransport
from codex_pool.demo import demo_home
from codex_pool.lean_profile import LEAN_ENVIRON, LEAN_OVERRIDES
from codex_pool.runtime import processes

from .savings import Figures
from .switches import Switch, switches

TURNS, TURNS_AT_ONCE = 16, 4
MOST_ROUNDS = 5
# No round begins that is not expected to end by then, and none is waited for longer than to the limit.
BUDGET_S, LIMIT_S = 80.0, 105.0
BASE = "base"
DELTAS = 20
# In the directory of a bench.
HOME, WORK = "codex-home", "codex-work"


class Bench:
    """A home for the time being, the loopback model behind it, and the switches to measure there."""

    def __init__(self, directory: Path, codex_bin: str | None) -> None:
        self._home = directory / HOME
        self._work = directory / WORK
        self._work.mkdir()
        self._codex_bin = codex_bin
        self.switches = switches(directory)

    def config(self, switch: Switch | None) -> AppServerConfig:
        """Return the configuration of an app-server as a pool starts it, with this switch on top."""
        lean = {name: value for name, value in LEAN_ENVIRON.items() if name not in os.environ}
        env = {"CODEX_HOME": str(self._home), "CODEX_SQLITE_HOME": str(self._home), **lean}
        own = (switch.env, switch.overrides) if switch is not None else ({}, ())
        return AppServerConfig(
            codex_bin=self._codex_bin,
            cwd=self._work,
            env={**env, **own[0]},
            config_overrides=(*LEAN_OVERRIDES, *own[1]),
        )

    def measure(self, switch: Switch | None, turns: int = TURNS, limit_s: float = LIMIT_S) -> Figures:
        """Start an app-server, run turns on it, end it. Raises TimeoutError after `limit_s` seconds."""
        try:
            return asyncio.run(asyncio.wait_for(_measure(self.config(switch), turns), max(0.0, limit_s)))
        except asyncio.TimeoutError:
            slow = f"an app-server did not run {turns} turns within {limit_s:.0f} s"
            raise TimeoutError(f"{slow}; try again while the machine has less to do") from None


@contextmanager
def bench(codex_bin: str | None = None) -> Iterator[Bench]:
    """Make a bench, and remove it with all that it has started.

    Raises StartError where there is no codex, and RuntimeError without /proc or where the model cannot serve.
    """
    if not processes.tells_trees():
        raise RuntimeError("CPU and memory of app-servers are read from /proc, which this system does not have")
    with tempfile.TemporaryDirectory(prefix="codex-pool-lean-") as name:
        made = Bench(Path(name), codex_bin)
        made.config(None).argv()
        with demo_home(Path(name) / HOME, script=None):
            # The first start writes into the home what later ones find there.
            made.measure(None, turns=1)
            yield made


def measure_all(
    on: Bench, tell: Callable[[str], object], clock: Callable[[], float] = time.monotonic
) -> dict[str, list[Figures]]:
    """Measure all switches, in rounds that take turns, for at most LIMIT_S seconds; by name, BASE without any.

    Each has as many figures. Raises TimeoutError if not even one round fits.
    """
    subjects: dict[str, Switch | None] = {BASE: None, **{switch.name: switch for switch in on.switches}}
    measured: dict[str, list[Figures]] = {name: [] for name in subjects}
    began, longest_s = clock(), 0.0
    for number in range(MOST_ROUNDS):
        round_began = clock()
        if round_began - began + longest_s > BUDGET_S:
            break
        tell(f"round {number + 1} of at most {MOST_ROUNDS}")
        names = list(subjects)
        turn = number % len(names)
        found: dict[str, Figures] = {}
        try:
            for name in names[turn:] + names[:turn]:
                found[name] = on.measure(subjects[name], limit_s=began + LIMIT_S - clock())
        except TimeoutError:
            if number == 0:
                raise
            break
        for name, figures in found.items():
            measured[name].append(figures)
        longest_s = max(longest_s, clock() - round_began)
    return measured


async def _measure(config: AppServerConfig, turns: int) -> Figures:
    transport = StdioTransport(config)
    began = time.perf_counter()
    async with AsyncCodex(config, transport=transport) as codex:
        start_ms = (time.perf_counter() - began) * 1000
        pid = transport.pid
        assert pid is not None
        await _run(codex, TURNS_AT_ONCE)
        before_s = processes.cpu_s(pid)
        await _run(codex, turns)
        cpu_ms = (processes.cpu_s(pid) - before_s) / turns * 1000
        return Figures(cpu_ms, _memory_bytes(pid), start_ms)


async def _run(codex: AsyncCodex, turns: int) -> None:
    todo = iter(range(turns))

    async def work() -> None:
        for number in todo:
            thread = await codex.thread_start(ephemeral=True, approval_policy="never")
            await thread.run(f"[[text deltas={DELTAS}]] Question {number}: what comes next?")

    await asyncio.gather(*(work() for _ in range(min(turns, TURNS_AT_ONCE))))


def _memory_bytes(pid: int) -> int:
    """Return the memory of a process and all below it that is not of files: others with the same binary share those."""
    return sum(map(_anonymous_bytes, (pid, *(each.id.pid for each in processes.tree(pid)))))


def _anonymous_bytes(pid: int) -> int:
    try:
        _, _, rest = Path(f"/proc/{pid}/status").read_text("ascii", "replace").partition("\nRssAnon:")
    except OSError:
        # It has ended meanwhile.
        return 0
    return int(rest.split(None, 1)[0]) * 1024 if rest else 0
