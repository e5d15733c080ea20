"""The leg of a soak on the real codex: TUIs in terminals beside clients of the SDK, and a short plan of operations."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path

from codex_servers import CODEX, CodexServer
from tui import EMPTY, TITLE_PROMPT, TUI_CONFIG, Tui

from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, write_loopback_home

from .checks import TURNS
from .clients import OWNER, Load, over_zeromq
from .daemon import Daemon
from .null_leg import Leg
from .plan import Binaries, plan

NAMES = ("alice",)
TURNS_EACH = 10
TUI_LIMIT_S = 90.0
ENTER_AGAIN_S = 10.0
# A TUI asks for a title of its thread too.
SCRIPT = Script(
    (
        Rule(Text("A title of the task"), contains=TITLE_PROMPT),
        *(
            Rule(Text(f"sextant-{number}", deltas=6, pace_ms=60), contains=f"question {number}.")
            for number in range(400)
        ),
        Rule(Text("hello to you", deltas=6, pace_ms=60), contains="hello"),
    )
)


async def in_terminal(server: CodexServer, load: Load) -> None:
    """A TUI that asks one question after the other, and sees each answer."""
    await asyncio.to_thread(_ask, server, load)


def _ask(server: CodexServer, load: Load) -> None:
    with server.tui() as tui:
        tui.wait(EMPTY, limit_s=TUI_LIMIT_S)
        number = 0
        while not load.over.is_set():
            began = time.monotonic()
            _submit(tui, f"question {number}.", load)
            _wait_for_answer(tui, f"• sextant-{number}")
            load.ended(OWNER, "completed", began)
            load.connections["turns of TUIs"] += 1
            number += 1
        tui.ask("/quit")
        tui.wait_for_end()


def _submit(tui: Tui, text: str, load: Load) -> None:
    """Type a prompt, and press Enter until the composer is empty: without a connection the TUI keeps it there."""
    tui.type(text)
    deadline = time.monotonic() + TUI_LIMIT_S
    while True:
        tui.press("Enter")
        try:
            tui.wait(EMPTY, limit_s=ENTER_AGAIN_S)
            return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            load.connections["Enter pressed again"] += 1


def _wait_for_answer(tui: Tui, text: str) -> None:
    # The number may be the beginning of another one.
    tui.wait_until(lambda screen: any(line.startswith(text) for line in screen.splitlines()), text, TUI_LIMIT_S)


class RealLeg(Leg):
    """A leg whose tokens and titles are up to codex: turns of clients are counted only."""

    async def _sums(self) -> None:
        metrics = await self.daemon.metrics_soon()
        for outcome in ("failed", "lost", "stalled"):
            if metrics.get((TURNS, outcome)):
                self.problems.append(f"{TURNS} has {metrics[TURNS, outcome]:g} that were {outcome}")
        if metrics.get((TURNS, "completed"), 0) < self.load.turns:
            self.problems.append(f"clients have seen {self.load.turns} turns; {TURNS} has less: {metrics}")


async def real_leg(root: Path, turns: int, seed: int, limit_s: float) -> Leg:
    """Run the leg, and print what was seen."""
    other = root / "other" / "codex"
    other.parent.mkdir()
    shutil.copy2(CODEX, other)
    broken = root / "codex-broken"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o700)
    with LoopbackModel(SCRIPT) as model:
        home = write_loopback_home(root / "home", model.base_url)
        work = root / "work"
        trusted = f'[projects.{json.dumps(str(work))}]\ntrust_level = "trusted"\n'
        config = home / "config.toml"
        config.write_text(TUI_CONFIG + config.read_text() + trusted)
        daemon = Daemon(root, Path(CODEX), NAMES, workers=2, home=home)
        operations = plan(turns, seed, Binaries(CODEX, str(other), str(broken)), recycles=3, kills=1, scales=(3, 2))
        leg = RealLeg(daemon, turns, operations, limit_s)
        servers = []
        for name in ("t1", "t2"):
            # Each has terminals of its own: they are numbered in their directory.
            (root / name).mkdir()
            servers.append(CodexServer("pool", root / name, home, work, model))
            servers[-1].socket = daemon.socket
        await leg.run(
            [
                over_zeromq(daemon, leg.load, None, 2, TURNS_EACH),
                over_zeromq(daemon, leg.load, "alice", 1, TURNS_EACH),
                *(in_terminal(server, leg.load) for server in servers),
            ]
        )
    leg.show()
    return leg
