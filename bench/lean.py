"""Savings of switches of the app-server: its CPU for a turn with them, against an app-server as a pool starts it.

    python bench/lean.py [--turns 80] [--rounds 5]

The switches of `codex-pool doctor --lean`, which has what is given up for each, measured by its code for as long as it
takes: one app-server each, real turns on the loopback model, in turns; ratios are medians of the ratios of the rounds.
The first one is undone here, since a pool sets it by itself.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from pathlib import Path

import common


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=80, help="turns per run (default 80)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/lean.json"), help="where the JSON goes")
    arguments = parser.parse_args()

    from codex_pool_cli.lean import measure

    def measured(on: measure.Bench, switch: measure.Switch | None) -> float:
        return on.measure(switch, arguments.turns, limit_s=600.0).cpu_ms

    with measure.bench() as on:
        subjects = {measure.BASE: None, **{switch.name: switch for switch in on.switches}}
        runs = {name: functools.partial(measured, on, switch) for name, switch in subjects.items()}
        figures = common.alternate(runs, arguments.rounds, "ms")
    rows = [
        common.row(
            f"CPU of an app-server for a turn, {name}",
            statistics.median(values),
            "ms",
            peer=None if name == measure.BASE else "as a pool starts it",
            ratio=None if name == measure.BASE else common.ratio(figures, name, measure.BASE),
        )
        for name, values in figures.items()
    ]
    settings = {"turns": arguments.turns, "rounds": arguments.rounds, "concurrency": measure.TURNS_AT_ONCE}
    common.report(arguments.out, settings, rows, cpu_ms=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
