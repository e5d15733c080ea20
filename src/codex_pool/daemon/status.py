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
    # A daemon of another version may count others.
    kinds = [kind for kind in turns if kind not in ("running", "queued", "subAgents")]
    ended = ", ".join(f"{turns[kind]} {kind}" for kind in kinds if turns[kind])
    clients = len(status["clients"])
    # What a limited key may not see is not there.
    lost = status.get("log", {}).get("lostLines", 0)
    return (
        f"{ready} of {len(status['workers'])} workers ready, up {_duration(status['uptimeMs'])}, "
        f"{clients} {'client' if clients == 1 else 'clients'}; "
        f"turns: {turns['running']} running{_of_agents(turns)}, {turns['queued']} queued"
        + (f", {ended}" if ended else "")
        + _waiting(status.get("threadsWaiting", 0))
        + (f"; {lost} {'line' if lost == 1 else 'lines'} of the log lost" if lost else "")
    )


def _of_agents(turns: dict[str, int]) -> str:
    """Say how many of the running turns are those of sub-agents."""
    count = turns.get("subAgents", 0)
    return f" ({count} of sub-agents)" if count else ""


def problems(status: dict[str, Any]) -> list[str]:
    """One line for each thing that cannot be written or bound for now, and each slot whose worker cannot be started.

    A client with a key is not shown any.
    """
    return [*_unwritten(status), *_not_started(status)]


def _unwritten(status: dict[str, Any]) -> list[str]:
    return [
        f"{problem['what']}: {problem['message']}; {problem['tries']} "
        f"{'try' if problem['tries'] == 1 else 'tries'} in {_duration(problem['forMs'])}"
        for problem in status.get("problems", ())
    ]


def _not_started(status: dict[str, Any]) -> list[str]:
    lines = []
    for slot in status["workers"]:
        failed = slot.get("failedStarts", 0)
        if not failed:
            continue
        starts = "1 start has failed" if failed == 1 else f"{failed} starts in a row have failed"
        goes_on = f"worker {slot['worker']} goes on meanwhile" if "worker" in slot else "it has no worker meanwhile"
        next_ms = slot.get("retryInMs")
        again = f"the next in {_duration(next_ms)}" if next_ms else "the next one is under way"
        lines.append(f"slot {slot['slot']}: {starts}, {again}; {goes_on}; the last one: {slot['problem']}")
    return lines


def rows(status: dict[str, Any]) -> list[Row]:
    """One row per slot, under HEADER, then one per worker that drains beside the worker of its slot."""
    slots = status["workers"]
    named = {slot.get("worker") for slot in slots}
    return [
        (
            str(worker["slot"]),
            worker["state"] + (", recycling" if worker.get("recycling") else ""),
            f"{worker.get('turns', 0)}/{status['turnsPerWorker']}",
            str(worker.get("queued", 0)),
            str(worker.get("threads", 0)),
            str(worker.get("restarts", "-")),
            worker.get("worker", "-"),
            f"pid {worker['appServerPid']}" if "appServerPid" in worker else "-",
            _memory(worker),
            _number(worker.get("descendants")),
            _number(worker.get("toolCommands")),
        )
        for worker in (*slots, *(worker for worker in status.get("draining", ()) if worker["worker"] not in named))
    ]


def _waiting(threads: int) -> str:
    return f"; {threads} {'thread waits' if threads == 1 else 'threads wait'} for room" if threads else ""


def _memory(worker: dict[str, Any]) -> str:
    """Format the memory of a worker and all below it; where the kernel does not tell PSS, it says so."""
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
