"""Soak a daemon: `make soak`, or `python -m chaos.soak [--turns N] [--quick] [--seed N] [--only null|real]`.

The null leg: `codex-pool serve` on null app-servers, clients over ZeroMQ (the owner's, and two with keys over TCP) and
over WebSocket with a key, and a schedule of operations from a seed: recycles, upgrades of codex to another binary and
to one that cannot start, of codex-pool itself, reloads, scaling, and kills of broker, ingress and gateway, many of
them in the middle of a recycle. The real leg, of 200 turns: the real codex with the loopback model, its TUI in two
terminals beside clients of the SDK, and a shorter schedule of the same operations.

It fails if a turn fails, a verb ends in another way than it should, memory or descriptors grow, the metrics are ever
less than before or do not add up to what clients have counted, or something is left after `stop`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from .null_leg import null_leg
from .real_leg import real_leg

# For its end, after the time in which operations begin.
END_S = 180


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, help="turns at least (default 10000, quick 800, real 200)")
    parser.add_argument("--quick", action="store_true", help="a short form: fewer turns and operations")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule (default 1)")
    parser.add_argument("--only", choices=("null", "real"), help="one leg (default both, quick null)")
    parser.add_argument("--minutes", type=float, default=15, help="in which operations begin, of each leg (default 15)")
    options = parser.parse_args()
    began = time.monotonic()
    legs = [options.only] if options.only else ["null"] if options.quick else ["null", "real"]
    problems: list[str] = []
    for name in legs:
        with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as directory:
            problems += asyncio.run(
                asyncio.wait_for(_leg(name, Path(directory), options), options.minutes * 60 + END_S)
            )
    print(f"{time.monotonic() - began:.0f} s; " + ("no problem" if not problems else f"{len(problems)} problems"))
    return 1 if problems else 0


async def _leg(name: str, root: Path, options: argparse.Namespace) -> list[str]:
    if name == "real":
        return (await real_leg(root, options.turns or 200, options.seed, options.minutes * 60)).problems
    turns = options.turns or (800 if options.quick else 10_000)
    return (await null_leg(root, turns, options.seed, options.minutes * 60, quick=options.quick)).problems


if __name__ == "__main__":
    sys.exit(main())
