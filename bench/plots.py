"""Tables and plots of what the benches have left in out/bench: to stdout, and as SVG to docs/images.

python bench/plots.py [--reports out/bench] [--images docs/images]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import common
import matplotlib

matplotlib.use("svg")
# The same figures make the same files.
matplotlib.rcParams["svg.hashsalt"] = "codex-pool"
METADATA = {"Date": None, "Creator": "bench/plots.py"}

import matplotlib.pyplot as plt  # noqa: E402

MET, NOT_MET = "#2a7f62", "#b5472f"
COLORS = {"full": "#b5472f", "items": "#2a5d9f"}


def bounds(reports: dict[str, Any], image: Path) -> None:
    """Draw how much of each bound is used up: what is left of the line is met."""
    rows = [row for report in reports.values() for row in report.get("rows", ()) if row["wanted"]]
    if not rows:
        return
    names, used = [], []
    for row in rows:
        judged = row["figure"] if row["ratio"] is None else row["ratio"]
        used.append(judged / row["wanted"] if row["bound"] == "at most" else row["wanted"] / max(judged, 1e-9))
        against = f", against {row['peer']}" if row["peer"] else ""
        unit = row["unit"] if row["ratio"] is None else "x"
        names.append(f"{row['what'].strip()}{against}\n{judged:.3g} {unit}, {row['bound']} {row['wanted']:g}")
    figure, axes = plt.subplots(figsize=(10, 0.55 * len(rows) + 1))
    axes.barh(range(len(rows)), used, color=[MET if row["met"] else NOT_MET for row in rows])
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("part of the bound that is used; beyond 1 it is not met")
    save(figure, image)


def waits(points: list[dict[str, Any]], image: Path) -> None:
    """Draw how long a message waits for one broker, by turns at once."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for profile, color in COLORS.items():
        mine = [each for each in points if each["profile"] == profile and each["shards"] == 1 and each["busy"] < 1.5]
        mine.sort(key=lambda each: each["turns"])
        turns = [each["turns"] for each in mine]
        axes.plot(turns, [max(each["p99_ms"], 0.01) for each in mine], "o-", color=color, label=f"{profile}, p99")
        axes.plot(turns, [max(each["p50_ms"], 0.01) for each in mine], "o:", color=color, label=f"{profile}, p50")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("turns at once")
    axes.set_ylabel("wait for the broker, ms")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, image)


def shards(points: list[dict[str, Any]], image: Path) -> None:
    """Draw how busy the busiest of several brokers is, at the same load."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for profile, color in COLORS.items():
        highest = max(each["turns"] for each in points if each["profile"] == profile)
        mine = [each for each in points if each["profile"] == profile and each["turns"] == highest]
        label = f"{profile}, {highest:,} turns at once"
        axes.plot(
            [each["shards"] for each in mine], [each["busy"] * 100 for each in mine], "o-", color=color, label=label
        )
    axes.axhline(100, color="black", linewidth=1)
    axes.set_xticks([1, 2, 4, 8])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("brokers")
    axes.set_ylabel("busiest broker, % of its process")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, image)


def save(figure: Any, image: Path) -> None:
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, format="svg", metadata=METADATA, bbox_inches="tight")
    plt.close(figure)
    print(f"drawn {image}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, default=Path("out/bench"), help="where the benches leave their JSON")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="where the plots go")
    arguments = parser.parse_args()
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(arguments.reports.glob("*.json"))}
    if not reports:
        parser.error(f"no reports in {arguments.reports}; run make bench, or the scripts in bench/")
    for name, report in reports.items():
        if report.get("rows"):
            print(f"\n{name}: {json.dumps(report['machine'])}")
            common.show(report["rows"])
    bounds(reports, arguments.images / "benchmarks.svg")
    if "scaling" in reports:
        waits(reports["scaling"]["points"], arguments.images / "scaling-wait.svg")
        shards(reports["scaling"]["points"], arguments.images / "scaling-shards.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
