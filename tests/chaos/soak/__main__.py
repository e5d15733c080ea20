"""Soak a daemon: `make soak`, or `python -m chaos.soak [--turns N] [--quick] [--seed N]`.

`codex-pool serve` on null app-servers, clients over ZeroMQ (the owner's, and two with keys over TCP) and over WebSocket
with a key, and a schedule of operations from a seed: recycles, upgrades of codex to another binary and to one that
cannot start, of codex-pool itself, reloads, scaling, and kills of broker, ingress and gateway, many of them in the
middle of a recycle.

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

# Of the whole leg; what has not ended by then has failed.
LIMIT_S = 20 * 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, help="turns on null app-servers, at least (default 10000, quick 800)")
    parser.add_argument("--quick", action="store_true", help="a short form: fewer turns and operations")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule (default 1)")
    options = parser.parse_args()
    began = time.monotonic()
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as directory:
        turns = options.turns or (800 if options.quick else 10_000)
        leg = asyncio.run(
            asyncio.wait_for(null_leg(Path(directory), turns, options.seed, quick=options.quick), LIMIT_S)
        )
        problems += leg.problems
    print(f"{time.monotonic() - began:.0f} s; " + ("no problem" if not problems else f"{len(problems)} problems"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
