"""The price of the ingress: a small request, and a delta, over TCP against ipc, on an idle pool.

    python bench/ingress.py [--rounds 5] [--quick]

    request   a raw client asks for `model/list`, which a null app-server answers at once: there and back
    delta     a turn of a null app-server that writes one delta after the other: from its writing to the reader

Clients over both are alive in a round, on one pool, and take turns in blocks; figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import sys
import tempfile
from pathlib import Path

import common
from measured import Child, children
from roundtrip import block

from codex_app_server.testing import null_app_server

BLOCKS = 10
MOST_MS = 0.3


def one_round(requests: int) -> dict[str, list[float]]:
    from codex_pool import Pool
    from codex_pool.auth.keys import KeyStore
    from codex_pool.auth.principal import Identity

    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-ingress-")))
        store, key = KeyStore(directory / "keys"), directory / "bench.key"
        store.new(Identity(name="bench", cwd_roots=("/",)), key)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        config = null_app_server(deltas=requests, pace_ms=4, text="$NOW")
        pool = Pool(workers=1, config=config, log_file=os.devnull, listen=address, keys=store.directory)
        stack.enter_context(pool)
        ways = {"ipc": {"endpoint": pool.endpoint}, "tcp": {"endpoint": address, "key": str(key)}}
        clients = {}
        for what, kind in (("request", "pool"), ("delta", "deltas")):
            for way, settings in ways.items():
                (child,) = stack.enter_context(
                    children(Child("round_trips.py", kind, {**settings, "requests": requests}))
                )
                child.line()
                clients[f"{what} {way}"] = child
        for number in range(BLOCKS):
            for name, child in list(clients.items())[:: 1 if number % 2 else -1]:
                found.setdefault(name, []).extend(block(child))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--requests", type=int, default=100, help="requests, or deltas, of a block (default 100)")
    parser.add_argument("--quick", action="store_true", help="short blocks, two rounds: to see that it works")
    parser.add_argument("--out", type=Path, default=Path("out/bench/ingress.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    rounds, requests = (2, 20) if arguments.quick else (arguments.rounds, arguments.requests)
    p50: common.Figures = {}
    for number in range(rounds):
        for name, took in one_round(requests).items():
            p50.setdefault(name, []).append(statistics.median(took))
        said = "  ".join(f"{name} {figures[-1]:.3f} ms" for name, figures in p50.items())
        print(f"round {number + 1}/{rounds}  {said}", file=sys.stderr)
    rows = [
        common.row(
            f"{what} over TCP, what it takes longer than over ipc, p50",
            common.median([tcp - ipc for tcp, ipc in zip(p50[f"{what} tcp"], p50[f"{what} ipc"], strict=True)]),
            "ms",
            at_most=MOST_MS,
        )
        for what in ("request", "delta")
    ]
    common.report(arguments.out, {"rounds": rounds, "requests_per_block": requests}, rows, p50_ms=p50)
    return 0


if __name__ == "__main__":
    sys.exit(main())
