"""Turns with sub-agents while something of their pool is killed: each ends once, and an interrupt leaves nobody.

    python tests/chaos/shows/sub_agents.py [--quick]

Parents that spawn children, on the real binary. In each round an app-server, a worker alone or the broker is killed at
a moment that a seed decides: before the children are there, while they work, after their parents have completed. In
every other round the turns are interrupted as well. Then every turn that has begun, a child's too, must have ended
exactly once for the client, nothing may ask the model QUIET_S after the interrupts, and the pool must run nothing.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import common

from codex_app_server import AppServerConfig, AppServerError, Codex, JsonRpcError, TurnFailedError, TurnHandle
from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, ToolCall, write_loopback_home
from codex_pool import Pool
from codex_pool.runtime import processes

QUIET_S = 5.0
TURNS = 4
KINDS = {
    "app-server": (b"app-server", b"stdio"),
    "worker": (b"codex_pool.worker",),
    "broker": (b"codex_pool.broker",),
}
SPAWN = ToolCall(
    '{"message": "work as a child"}',
    tool="multi_agent_v1.spawn_agent",
    then=Text(chars=20, deltas=20, pace_ms=100),
)
SCRIPT = Script(
    (Rule(Text(chars=20, deltas=20, pace_ms=200), contains="work as a child"), Rule(SPAWN, contains="delegate"))
)


class Seen:
    """Counts of how often each turn has begun and ended, among what belongs to no handle: the turns of children."""

    def __init__(self, codex: Codex) -> None:
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._codex = codex
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for notification in self._codex.notifications():
            if notification.method in ("turn/started", "turn/completed"):
                counts = self.begun if notification.method == "turn/started" else self.ended
                counts[notification.params["turn"]["id"]] += 1

    def join(self) -> None:
        self._thread.join(10)


def main() -> int:
    options = common.arguments(__doc__, "sub_agents", rounds=(60, 9, "kills"), seed=(1, 1, "of kinds and moments"))
    generator = random.Random(options.seed)
    problems: list[str] = []
    ends: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    longest_s = 0.0
    with tempfile.TemporaryDirectory(prefix="chaos-agents-") as name, LoopbackModel(SCRIPT) as model:
        root = Path(name)
        os.environ["XDG_RUNTIME_DIR"] = name
        write_loopback_home(root / "home", model.base_url)
        config = AppServerConfig(cwd=root, env={"CODEX_HOME": str(root / "home"), "RUST_LOG": "error"})
        with Pool(2, config, log_file=root / "log") as pool, pool.connect() as codex:
            seen = Seen(codex)
            kinds = [list(KINDS)[number % len(KINDS)] for number in range(options.rounds)]
            generator.shuffle(kinds)
            for number, kind in enumerate(kinds):
                try:
                    took_s = play(pool, codex, model, kind, number, generator, ends, killed, problems)
                    longest_s = max(longest_s, took_s)
                except (AssertionError, AppServerError) as error:
                    problems.append(f"round {number}, {kind}: {error!r}")
            children = len(seen.begun)
        seen.join()
        problems += [f"turn {turn} of a child ended {seen.ended[turn]} times" for turn in lost(seen)]
        if problems:
            print((root / "log").read_text(errors="replace")[-4000:], file=sys.stderr)
    if not children:
        problems.append("there were no children")
    figures = {
        "rounds": options.rounds,
        **{f"killed: {kind}": killed[kind] for kind in KINDS},
        **{f"parents {status}": count for status, count in sorted(ends.items())},
        "turns of children": children,
        "longest until nothing asks, s": longest_s,
    }
    return common.report("turns with sub-agents under kills", options.out, figures, problems)


def lost(seen: Seen) -> list[str]:
    """Turns of children that did not end exactly once."""
    return [turn for turn in seen.begun if seen.ended[turn] != 1]


def play(
    pool: Pool,
    codex: Codex,
    model: LoopbackModel,
    kind: str,
    number: int,
    generator: random.Random,
    ends: Counter[str],
    killed: Counter[str],
    problems: list[str],
) -> float:
    """One round; how long after the interrupts something asked the model, 0 without interrupts."""
    turns: list[TurnHandle] = []
    for _ in range(TURNS):
        try:
            turns.append(codex.thread_start().turn("delegate"))
        except JsonRpcError as error:
            ends[f"refused: {type(error).__name__}"] += 1
    time.sleep(generator.uniform(0.0, 2.5))
    assert pool.supervisor_pid is not None
    found = common.below(pool.supervisor_pid, *KINDS[kind])
    if found:
        victim = generator.choice(found)
        if processes.identify(victim.pid) == victim:
            os.kill(victim.pid, signal.SIGKILL)
            killed[kind] += 1
    took_s = 0.0
    if number % 2:
        time.sleep(generator.uniform(0.0, 0.5))
        for turn in turns:
            turn.interrupt()
        began_at = time.monotonic()
        common.wait_until(lambda: not model.active, f"nothing asks the model, {active(model)}", QUIET_S)
        took_s = time.monotonic() - began_at
    for turn in turns:
        results: list[str] = []
        try:
            results.append(str(turn.run(timeout=common.LIMIT_S).status.value))
        except TurnFailedError as error:
            results.append(error.kind)
        ends[results[0]] += 1
        if turn.stream()._mailbox.get(0) is not None:
            problems.append(f"round {number}: something came after the end of turn {turn.id}")
    common.wait_until(lambda: common.status(codex)["turns"]["running"] == 0, "nothing runs")
    common.wait_until(lambda: all_ready(codex), "all workers are ready")
    return took_s


def active(model: LoopbackModel) -> list[Any]:
    return [record.prompt for record in model.active]


def all_ready(codex: Codex) -> bool:
    return all(row["state"] == "ready" for row in common.status(codex)["workers"])


if __name__ == "__main__":
    sys.exit(main())
