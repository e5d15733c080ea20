"""Turns side by side: CPU of a notification when the lines of several turns alternate.

    python bench/side_by_side.py [--rounds 5] [--quick]

Eight turns at once on one null app-server, which writes a line of each in turn, as fast as they are read. Each piece
has a text of its own, and lines have their time, a millisecond for each round of the eight. So no two lines that follow
each other are alike, as in real traffic of several turns.

    published     openai-codex, one app-server, a Python thread for each turn
    sdk           codex_app_server, the same
    sdk-asyncio   codex_app_server, an asyncio task for each turn
    typed         a pool of one worker, one client with a Python thread for each turn
    asyncio       the same, one asyncio client

A field of every payload is read from a pydantic instance. CPU is microseconds for each notification: of the client, and
with a pool of supervisor, broker and worker too. All take turns, each in processes of its own; figures are medians,
ratios medians of the ratios of the rounds. Nothing here is a rate: what else the machine does hardly matters.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import common
from notifications import Run, direct, through_pool

TURNS = 8
# Of the published client's CPU.
CLIENT, CHAIN = 1 / 5, 0.42


def through_worker(kind: str, deltas: int, turns: int) -> Run:
    return through_pool(kind, 1, TURNS, deltas, turns, workers=1, side_by_side=TURNS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each competitor (default 5)")
    parser.add_argument("--quick", action="store_true", help="short runs, two rounds: to see that it works")
    parser.add_argument("--deltas", type=int, default=4_000, help="deltas of a turn (default 4,000)")
    parser.add_argument("--only", nargs="+", help="only these competitors")
    parser.add_argument("--out", type=Path, default=Path("out/bench/side_by_side.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    rounds, deltas = (2, 1_000) if arguments.quick else (arguments.rounds, arguments.deltas)

    # So many turns that each has a second of CPU or more.
    competitors: dict[str, Callable[[], Run]] = {
        "published": lambda: direct("published", deltas, 3, TURNS),
        "sdk": lambda: direct("sdk", deltas, 10, TURNS),
        "sdk-asyncio": lambda: direct("sdk-asyncio", deltas, 10, TURNS),
        "typed": lambda: through_worker("typed", deltas, 10),
        "asyncio": lambda: through_worker("asyncio", deltas, 10),
    }
    names = arguments.only or list(competitors)
    runs: dict[str, list[Run]] = {name: [] for name in names}

    def run(name: str) -> float:
        runs[name].append(competitors[name]())
        return runs[name][-1].cpu_us["all"]

    common.alternate({name: lambda name=name: run(name) for name in names}, rounds, "us")  # type: ignore[misc]
    rooms = {name: {room: [each.cpu_us[room] for each in runs[name]] for room in runs[name][0].cpu_us} for name in runs}
    for name in names:
        said = "  ".join(f"{room} {common.median(figures):.2f}" for room, figures in rooms[name].items())
        print(f"CPU us a notification, {name}: {said}", file=sys.stderr)
    rows: list[common.Row] = []
    if "published" in names:
        peer = rooms["published"]["clients"]
        for name, what, room, wanted in (
            ("sdk", "a client alone, threads", "clients", CLIENT),
            ("sdk-asyncio", "a client alone, asyncio", "clients", CLIENT),
            ("typed", "the client of a pool, threads", "clients", CLIENT),
            ("asyncio", "the client of a pool, asyncio", "clients", CLIENT),
            ("typed", "worker, broker and client, threads", "all", CHAIN),
            ("asyncio", "worker, broker and client, asyncio", "all", CHAIN),
        ):
            if name in names:
                figures = {"published": peer, name: rooms[name][room]}
                ratio = common.ratio(figures, name, "published")
                figure = common.median(rooms[name][room])
                what = f"side by side: CPU of a notification, {what}"
                rows.append(common.row(what, figure, "us", peer="published", ratio=ratio, at_most=wanted))
    settings = {"turns": TURNS, "deltas": deltas, "rounds": rounds, "workers": 1}
    common.report(arguments.out, settings, rows, cpu_us=rooms)
    return 0


if __name__ == "__main__":
    sys.exit(main())
