"""Count how often the intervals of scores hold the true mean: `python bench/intervals.py`; seeded, some 15 minutes.

Draws runs whose true part of passes is known and counts how often the interval holds it. A sample's own part is drawn
from a beta distribution with the intraclass correlation `rho`, 0 for epochs that are independent, 1 for epochs that all
agree; its epochs are drawn with that part. Coverage is averaged over the true part, 0.05 to 0.95; the least is also of
parts nearer to 0 and 1. Prints the tables of docs/guides/scoring.md.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from codex_batch.report import paired
from codex_batch.scoring.intervals import interval

PARTS = (*(step / 20 for step in range(1, 20)), 0.01, 0.02, 0.035, 0.965, 0.98, 0.99)
EVEN = 19
"""Number of PARTS, the first ones, that are evenly spaced: those that are averaged."""
RHOS = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)
GRADES = {"thirds": (0.0, 1 / 3, 2 / 3, 1.0), "mostly right": (1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.5, 0.0)}


def passes(draw: random.Random, part: float, rho: float, epochs: int) -> int:
    """Draw how many epochs of one sample pass."""
    if rho >= 1:
        own = float(draw.random() < part)
    elif rho <= 0:
        own = part
    else:
        own = draw.betavariate(part * (1 - rho) / rho, (1 - part) * (1 - rho) / rho)
    return sum(draw.random() < own for _ in range(epochs))


def of_runs(samples: int, epochs: int, rho: float, *, runs: int, seed: int = 0) -> list[float]:
    """The part of intervals that hold the true part, for each of PARTS."""
    draw = random.Random(f"{seed} {samples} {epochs} {rho}")
    found = []
    for part in PARTS:
        known: dict[tuple[int, ...], bool] = {}
        held = 0
        for _ in range(runs):
            counts = tuple(sorted(passes(draw, part, rho, epochs) for _ in range(samples)))
            if counts not in known:
                low, high = interval([(epochs, float(count)) for count in counts], "pass_fail") or (1.0, 0.0)
                known[counts] = low <= part <= high
            held += known[counts]
        found.append(held / runs)
    return found


def of_differences(samples: int, epochs: int, rho: float, *, runs: int, seed: int = 0) -> list[float]:
    """The same of the difference between two runs of the same samples; B passes where A does with the same chance."""
    draw = random.Random(f"{seed} {samples} {epochs} {rho}")
    found = []
    for before, after in ((0.05, 0.05), (0.1, 0.2), (0.5, 0.5), (0.5, 0.7), (0.8, 0.9), (0.95, 0.95)):
        held = 0
        for _ in range(runs):
            pairs = []
            for _ in range(samples):
                # What makes a sample hard makes it hard for both.
                same = draw.random() < 0.5
                state = draw.getstate()
                a = passes(draw, before, rho, epochs)
                if same:
                    draw.setstate(state)
                b = passes(draw, after, rho, epochs)
                pairs.append(([1.0] * a + [0.0] * (epochs - a), [1.0] * b + [0.0] * (epochs - b)))
            means = [(fmean(first), fmean(second)) for first, second in pairs]
            low, high = paired.interval(means, paired.agreement_of(pairs))
            held += low <= after - before <= high
        found.append(held / runs)
    return found


def of_grades(samples: int, grades: Sequence[float], *, runs: int, seed: int = 0) -> float:
    """The part of intervals that hold the mean of graded scores."""
    draw = random.Random(f"{seed} {samples} {grades}")
    held = 0
    for _ in range(runs):
        drawn = [draw.choice(grades) for _ in range(samples)]
        low, high = interval([(1, value) for value in drawn], "unit") or (1.0, 0.0)
        held += low <= fmean(grades) <= high
    return held / runs


def lines(runs: int, seed: int) -> Iterator[str]:
    yield "| pass/fail, samples x epochs | rho | mean coverage | least |"
    yield "|---|---|---|---|"
    for samples, epochs in ((10, 1), (20, 1), (50, 1), (100, 1), (10, 5), (20, 5), (30, 5), (50, 5)):
        yield from _rows(of_runs, f"{samples} x {epochs}", samples, epochs, runs, seed)
    yield ""
    yield "| paired difference, samples x epochs | rho | mean coverage | least |"
    yield "|---|---|---|---|"
    for samples, epochs in ((10, 1), (50, 1), (10, 5), (20, 5), (50, 5)):
        yield from _rows(of_differences, f"{samples} x {epochs}", samples, epochs, runs, seed)
    yield ""
    yield "| grades | samples | coverage |"
    yield "|---|---|---|"
    for name, grades in GRADES.items():
        for samples in (10, 20, 50):
            yield f"| {name} | {samples} | {of_grades(samples, grades, runs=runs, seed=seed):.1%} |"


def _rows(
    measure: Callable[..., list[float]], name: str, samples: int, epochs: int, runs: int, seed: int
) -> Iterator[str]:
    for rho in RHOS if epochs > 1 else (1.0,):
        found = measure(samples, epochs, rho, runs=runs, seed=seed)
        yield f"| {name} | {rho if epochs > 1 else ''} | {fmean(found[:EVEN]):.1%} | {min(found):.1%} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=2000, help="runs drawn for each true part")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    for line in lines(asked.runs, asked.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
