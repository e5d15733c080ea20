"""Session files of codex 0.163.0, recorded on the loopback model; long texts are shortened. And homes with them."""

from __future__ import annotations

import json
from pathlib import Path

DIRECTORY = Path(__file__).parent.parent / "data" / "rollouts"
THREADS: dict[str, str] = json.loads((DIRECTORY / "threads.json").read_text())


def lines(name: str) -> list[bytes]:
    """The lines of a recorded file."""
    return (DIRECTORY / f"{name}.jsonl").read_bytes().splitlines()


def write_home(home: Path, *names: str, day: str = "2026/11/30") -> dict[str, Path]:
    """Put recorded files where codex keeps them; their paths by name."""
    directory = home / "sessions" / day
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name in names:
        paths[name] = directory / f"rollout-{day.replace('/', '-')}T07-14-13-{THREADS[name]}.jsonl"
        paths[name].write_bytes((DIRECTORY / f"{name}.jsonl").read_bytes())
    return paths
