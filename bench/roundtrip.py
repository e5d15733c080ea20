"""The round trip of a small request over an idle pool, against a bare echo over the same hops.

    python bench/roundtrip.py [--rounds 5] [--quick]

    pool   a raw client asks for `model/list`, which a null app-server answers at once: client, broker, worker,
           app-server and back
    echo   the same request over bare ZeroMQ sockets: client, relay, a process that passes it to the app-server's
           stdin and its answer back

One request at a time, each sent when the one before is answered and a moment has passed, so that every process sleeps.
Both are alive in a round and take turns by requests in blocks; figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import common
from measured import Child, children

from codex_app_server.testing import null_app_server

BLOCKS = 10


def block(child: Child) -> list[float]:
    """The round trips of one block, in ms."""
    child.go()
    done: list[float] = json.loads(child.line())
    return [each * 1000 for each in done]


def one_round(requests: int) -> dict[str, list[float]]:
    from codex_pool import Pool

    config = null_app_server()
    found: dict[str, list[float]] = {"pool": [], "echo": []}
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-echo-"))
        settings = {"endpoint": endpoint, "number": 0, "argv": config.launch_args_override, "requests": requests}
        (relay,) = stack.enter_context(children(Child("relay.py", "relay", settings)))
        relay.line()
        source = Child("relay.py", "source", settings)
        stack.callback(source.process.kill)
        stack.callback(relay.process.kill)
        relay.line()
        (echo,) = stack.enter_context(children(Child("round_trips.py", "echo", settings)))
        echo.line()
        pool = stack.enter_context(Pool(workers=1, config=config, log_file=os.devnull))
        (ours,) = stack.enter_context(
            children(Child("round_trips.py", "pool", {"endpoint": pool.endpoint, "requests": requests}))
        )
        ours.line()
        for number in range(BLOCKS):
            for name, child in [("pool", ours), ("echo", echo)][:: 1 if number % 2 else -1]:
                found[name] += block(child)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument(
        "--requests", type=int, default=100, help="requests of a block, ten blocks a round (default 100)"
    )
    parser.add_argument("--quick", action="store_true", help="short blocks, two rounds: to see that it works")
    parser.add_argument("--out", type=Path, default=Path("out/bench/roundtrip.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    rounds, requests = (2, 20) if arguments.quick else (arguments.rounds, arguments.requests)

    p50: common.Figures = {"pool": [], "echo": []}
    p99: common.Figures = {"pool": [], "echo": []}
    for number in range(rounds):
        for name, trips in one_round(requests).items():
            cuts = statistics.quantiles(trips, n=100)
            p50[name].append(cuts[49])
            p99[name].append(cuts[98])
        said = "  ".join(f"{name} p50 {p50[name][-1]:.3f} p99 {p99[name][-1]:.3f} ms" for name in p50)
        print(f"round {number + 1}/{rounds}  {said}", file=sys.stderr)
    rows = [
        common.row(
            f"round trip of a small request, idle, {name}",
            common.median(figures["pool"]),
            "ms",
            peer="echo",
            ratio=common.ratio(figures, "pool", "echo"),
            at_most=at_most,
        )
        for name, figures, at_most in (("p50", p50, 2.0), ("p99", p99, 3.0))
    ]
    settings = {"rounds": rounds, "requests_per_round": requests * BLOCKS}
    common.report(arguments.out, settings, rows, p50_ms=p50, p99_ms=p99)
    return 0


if __name__ == "__main__":
    sys.exit(main())
