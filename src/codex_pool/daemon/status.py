"""What a daemon says of itself, as people read it. Pure: the result of pool/status in, lines out."""

from __future__ import annotations

from typing import Any

Row = tuple[str, ...]

HEADER: Row = (
    "slot",
    "state",
    "turns",
    "queued",
    "threads",
    "restarts",
    "worker",
    "app-server",
    "memory",
    "descendants",
    "commands",
)


def summary(status: dict[str, Any]) -> str:
    """One line over the whole pool."""
    turns = status["turns"]
    ready = sum(worker["state"] == "ready" for worker in status["workers"])
    ended = ", ".join(f"{turns[kind]} {kind}" for kind in ("completed", "failed", "interrupted", "lost") if turns[kind])
    clients = len(status["clients"])
    return (
        f"{ready} of {len(status['workers'])} workers ready, up {_duration(status['uptimeMs'])}, "
        f"{clients} {'client' if clients == 1 else 'clients'}; "
        f"turns: {turns['running']} running, {turns['queued']} queued"
        + (f", {ended}" if ended else "")
        + _waiting(status.get("threadsWaiting", 0))
    )


def rows(status: dict[str, Any]) -> list[Row]:
    """One row per slot, under HEADER."""
    return [
        (
            str(worker["slot"]),
            worker["state"] + (", recycling" if worker.get("recycling") else ""),
            f"{worker.get('turns', 0)}/{status['turnsPerWorker']}",
            str(worker.get("queued", 0)),
            str(worker.get("threads", 0)),
            str(worker["restarts"]),
            worker.get("worker", "-"),
            f"pid {worker['appServerPid']}" if "appServerPid" in worker else "-",
            _memory(worker),
            _number(worker.get("descendants")),
            _number(worker.get("toolCommands")),
        )
        for worker in status["workers"]
    ]


def _waiting(threads: int) -> str:
    return f"; {threads} {'thread waits' if threads == 1 else 'threads wait'} for room" if threads else ""


def _memory(worker: dict[str, Any]) -> str:
    """What a worker and all below it occupy; where the kernel does not tell PSS, it says so."""
    size_bytes = worker.get("memoryBytes")
    if size_bytes is None:
        return "-"
    return f"{size_bytes >> 20} MiB" + (" RSS" if worker.get("memoryIs") == "rss" else "")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _duration(ms: int) -> str:
    seconds = ms // 1000
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
