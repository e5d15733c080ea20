"""Helpers that the shows share: bounded waits, the processes of a pool, a table, a JSON report."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codex_app_server import Codex
from codex_pool.runtime import processes

LIMIT_S = 60.0


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Ask again until it is true; its value."""
    deadline = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        time.sleep(0.02)


def status(codex: Codex) -> dict[str, Any]:
    found: dict[str, Any] = codex.client.request("pool/status")
    return found


def below(root: int, *words: bytes) -> list[processes.ProcessId]:
    """The processes below `root` whose command line has all these words."""
    found = []
    for process in processes.descendants(root):
        try:
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if all(word in command for word in words):
            found.append(process)
    return found


def rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def variants(count: int) -> tuple[list[str], list[str]]:
    """Options that have each sample run in so many variants, and their names; `""` alone for none, of one or fewer."""
    names = [f"model-{number}" for number in range(count)] if count > 1 else []
    return [word for name in names for word in ("--model", name)], names or [""]


def arguments(description: str | None, name: str, **sizes: tuple[int, int, str]) -> argparse.Namespace:
    """`--quick`, `--out`, and each size with its full and its quick default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small sizes")
    parser.add_argument("--out", type=Path, default=Path(f"out/chaos/{name}.json"), help="where the JSON goes")
    for size, (full, quick, text) in sizes.items():
        help = f"{text} (default {full}, quick {quick})"
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, default=None, help=help)
    found = parser.parse_args()
    for size, (full, quick, _) in sizes.items():
        if getattr(found, size) is None:
            setattr(found, size, quick if found.quick else full)
    return found


def report(title: str, out: Path, figures: dict[str, Any], problems: list[str]) -> int:
    """Print the figures as a table, write them as JSON; the exit code."""
    print(f"\n{title}")
    for name, value in figures.items():
        print(f"  {name:<34}{value:,.2f}" if isinstance(value, float) else f"  {name:<34}{value}")
    for problem in problems:
        print(f"  FAILED: {problem}", file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpus": os.cpu_count(), "load_1min": os.getloadavg()[0]}
    out.write_text(json.dumps({"machine": machine, "figures": figures, "problems": problems}, indent=2) + "\n")
    print(f"written to {out}", file=sys.stderr)
    return 1 if problems else 0
