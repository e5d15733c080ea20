"""Text of `codex-pool status`. Pure: the result of pool/status in, lines out."""

from __future__ import annotations

from typing import Any

from codex_app_server._runtime.text import duration, plural

from ..broker.event_log import line_of

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
    """Format one line over the whole pool."""
    turns = status["turns"]
    ready = sum(worker["state"] == "ready" for worker in status["workers"])
    # A daemon of another version may count others.
    kinds = [kind for kind in turns if kind not in ("running", "queued", "subAgents", "waiting")]
    ended = ", ".join(f"{turns[kind]} {kind}" for kind in kinds if turns[kind])
    clients = len(status["clients"])
    # What a limited key may not see is not there.
    lost = status.get("log", {}).get("lostLines", 0)
    unaudited = status.get("audit", {}).get("lostLines", 0)
    return (
        f"{ready} of {len(status['workers'])} workers ready, up {duration(status['uptimeMs'] / 1000)}, "
        f"{plural(clients, 'client')}; "
        f"turns: {turns['running']} running{_of_running(status)}, {turns['queued']} queued"
        + (f", {ended}" if ended else "")
        + _waiting(status.get("threadsWaiting", 0))
        + (f"; {status['mode']}" if status.get("mode", "running") != "running" else "")
        + _gateway(status.get("gateway"))
        + _tracer(status.get("tracer"))
        + _versions(status)
        + (f"; {plural(lost, 'line')} of the log lost" if lost else "")
        + (f"; {plural(unaudited, 'line')} of the audit log lost" if unaudited else "")
    )


def _versions(status: dict[str, Any]) -> str:
    """Format the versions of codex that the workers run, each once; a limited key is not shown them."""
    rows = (*status["workers"], *status.get("draining", ()))
    versions = dict.fromkeys(str(row["codexVersion"]) for row in rows if row.get("codexVersion"))
    return f"; codex {' and '.join(versions)}" if versions else ""


def _of_running(status: dict[str, Any]) -> str:
    """Format how many of the running turns are those of sub-agents, and how many wait for a person, for how long."""
    turns, oldest = status["turns"], status.get("turnsWaiting", [])
    agents, waiting = turns.get("subAgents", 0), turns.get("waiting", 0)
    since = f" for up to {duration(oldest[0]['waitedMs'] / 1000)}" if oldest else ""
    parts = [f"{agents} of sub-agents"] if agents else []
    parts += [f"{waiting} waiting for an approval{since}"] if waiting else []
    return f" ({', '.join(parts)})" if parts else ""


def _gateway(gateway: dict[str, Any] | None) -> str:
    """Format the gateway of a pool that has one; a limited key is not shown it."""
    if gateway is None:
        return ""
    restarts = f", {plural(gateway['restarts'], 'restart')}" if gateway["restarts"] else ""
    return f"; gateway {gateway['state']}, {plural(gateway['sessions'], 'session')}{restarts}"


def _tracer(tracer: dict[str, Any] | None) -> str:
    """Format the tracer of a pool that has one: what was exported and lost, and why."""
    if tracer is None:
        return ""
    lost = f", {tracer['lost']:,} lost" if tracer["lost"] else ""
    restarts = f", {plural(tracer['restarts'], 'restart')}" if tracer["restarts"] else ""
    problem = f" ({tracer['problem']})" if tracer["problem"] else ""
    return f"; tracer {tracer['state']}, {plural(tracer['exported'], 'span')} exported{lost}{restarts}{problem}"


def problems(status: dict[str, Any]) -> list[str]:
    """Format one line for each thing that cannot be written or bound for now, and each slot whose worker cannot start.

    A client with a key is not shown any.
    """
    return [*_unwritten(status), *_not_started(status), *_configuration(status), *_upgrades(status)]


def trace(status: dict[str, Any]) -> list[str]:
    """The trace of the broker: requests and sessions by state, contradictions, and the last events, the oldest first.

    A client with a limited key, and one of an older daemon, is sent none.
    """
    found = status.get("trace")
    if found is None:
        return ["no trace: the daemon is older than this command, or the key may not see it"]
    lines = [f"{name}: {_counts(found[name])}" for name in ("requests", "held", "sessions")]
    lines += [f"inconsistent state, please report this: {fault}" for fault in found["faults"]]
    return [*lines, "events:", *(f"  {line_of(row)}" for row in found["events"])]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def _unwritten(status: dict[str, Any]) -> list[str]:
    return [
        f"{problem['what']}: {problem['message']}; "
        f"{plural(problem['tries'], 'try', 'tries')} in {duration(problem['forMs'] / 1000)}"
        for problem in status.get("problems", ())
    ]


def _configuration(status: dict[str, Any]) -> list[str]:
    """Format what a reload has left to do; a limited key is not shown the configuration."""
    found = status.get("configuration", {})
    lines = []
    if found.get("problem"):
        age = duration(found["loadedAgeMs"] / 1000)
        lines.append(f"configuration: not reloaded, that of {age} ago stays in force: {found['problem']}")
    if found.get("restartNeeded"):
        lines.append(f"configuration: restart needed for {', '.join(found['restartNeeded'])}")
    return lines


def _upgrades(status: dict[str, Any]) -> list[str]:
    """Format upgrades of codex and codex-pool that are under way, or have failed; a limited key is not shown them."""
    codex, pool = status.get("upgrade", {}), status.get("codexPool", {})
    lines = [f"upgrade: {upgrade_text(codex)}"] if codex and codex["state"] != "done" else []
    if pool.get("isOutdated"):
        lines.append(
            f"another codex-pool is installed than the daemon runs ({pool['version']}): codex-pool upgrade --self"
        )
    if pool.get("problem"):
        lines.append(f"the upgrade of codex-pool has failed: {pool['problem']}")
    elif pool.get("state") in ("checking", "replacing"):
        lines.append(f"codex-pool {pool['version']} is being upgraded")
    return lines


def upgrade_text(row: dict[str, Any]) -> str:
    """Format what an upgrade of codex is at."""
    path = row["codexBin"]
    if row["state"] == "checking":
        return f"{path} is tried out"
    if row["state"] == "replacing":
        return f"{path} (codex {row['codexVersion']}): {row['replaced']} of {plural(row['slots'], 'worker')} replaced"
    return f"{path} has failed: {row['problem']}" if row["problem"] else f"all workers run {path}"


def _not_started(status: dict[str, Any]) -> list[str]:
    lines = []
    for slot in status["workers"]:
        failed = slot.get("failedStarts", 0)
        if not failed:
            continue
        starts = "1 start has failed" if failed == 1 else f"{failed} starts in a row have failed"
        goes_on = f"worker {slot['worker']} goes on meanwhile" if "worker" in slot else "it has no worker meanwhile"
        next_ms = slot.get("retryInMs")
        again = f"the next in {duration(next_ms / 1000)}" if next_ms else "the next one is under way"
        lines.append(f"slot {slot['slot']}: {starts}, {again}; {goes_on}; the last one: {slot['problem']}")
    return lines


def rows(status: dict[str, Any]) -> list[Row]:
    """Format one row per slot, under HEADER, then one per worker that drains beside the worker of its slot."""
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


def waiting_text(report: dict[str, Any] | None) -> str:
    """Format what a pool that drains waits for: `turns` that run, `clients` (how many by the name of the client), how
    many of them are `waiting` for a person. "" while that is not known."""
    if report is None:
        return ""
    clients = ", ".join(
        f"{count} of {client or 'clients that have gone'}" for client, count in sorted(report["clients"].items())
    )
    waiting = f"; {report['waiting']} waiting for a person" if report["waiting"] else ""
    return f"waiting for {plural(report['turns'], 'turn')}{f': {clients}' if clients else ''}{waiting}"


def _waiting(threads: int) -> str:
    return f"; {plural(threads, 'thread waits', 'threads wait')} for room" if threads else ""


def _memory(worker: dict[str, Any]) -> str:
    """Format the memory of a worker and all below it; RSS is marked as such, where the kernel has no PSS."""
    size_bytes = worker.get("memoryBytes")
    if size_bytes is None:
        return "-"
    return f"{size_bytes >> 20} MiB" + (" RSS" if worker.get("memoryIs") == "rss" else "")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
