"""Findings of `codex-pool doctor`: facts in, findings with their remedies out. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from codex_app_server._runtime.text import duration, plural
from codex_pool import __version__

from .facts import Binary, Clock, Disk, Endpoint, Facts, Home, Key, Keys, Limits, Login, Sandbox, Software

Level = Literal["ok", "warning", "failure", "unknown"]

OLDEST_PYTHON = (3, 10)
MIB, GIB = 1024**2, 1024**3
# A worker has about 30 descriptors, a broker some for each session.
FEW_DESCRIPTORS, ENOUGH_DESCRIPTORS = 256, 1024
FREE_PROCESSES_NEEDED, FREE_PROCESSES_WANTED = 100, 500
FEW_BYTES, ENOUGH_BYTES = 100 * MIB, GIB
FEW_INODES, ENOUGH_INODES = 1000, 10_000
LARGE_HOME_BYTES, MANY_THREADS = 20 * GIB, 50_000
LARGE_LOG_BYTES = 2 * GIB
OLDEST_YEAR = 2025
STEP_S, AHEAD_S = 1.0, 120.0
# A refresh token that was not used for so long may have been withdrawn.
OLD_REFRESH_S = 30 * 86400.0
SOON_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `remedy` is empty where there is nothing to do."""

    check: str
    level: Level
    message: str
    remedy: str = ""


Found = Iterator[Finding]


def findings_of(facts: Facts) -> list[Finding]:
    """Judge the facts, group by group; a group that was not found out gives one finding of level unknown."""
    found: list[Finding] = []
    for group, judge in _JUDGES.items():
        value = getattr(facts, group)
        if value is None:
            reason = facts.unknown.get(group, "not found out")
            found.append(Finding(group, "unknown", reason, "try again; if it stays so, look at the machine's load"))
        else:
            found.extend(judge(value))
    return found


def as_plain(found: list[Finding]) -> dict[str, object]:
    """The findings as plain JSON values, with their number by level."""
    levels: tuple[Level, ...] = ("ok", "warning", "failure", "unknown")
    counts = {level: sum(each.level == level for each in found) for level in levels}
    return {"version": __version__, "counts": counts, "findings": [dataclasses.asdict(each) for each in found]}


def _software(facts: Software) -> Found:
    version = ".".join(map(str, facts.python))
    if facts.python[:2] < OLDEST_PYTHON:
        yield Finding("python", "failure", f"Python {version}; 3.10 or newer is needed", "install a newer Python")
    else:
        yield Finding("python", "ok", f"Python {version}, codex-pool {facts.pool}")
    for name, is_there in facts.extras.items():
        if is_there:
            yield Finding("extras", "ok", f"the extra {name} is installed")
        else:
            yield Finding(
                "extras",
                "warning",
                f"the extra {name} is not installed: no listeners for clients of codex app-server",
                f"pip install 'codex-pool[{name}]', if programs are to connect by --listen-unix or --listen-ws",
            )
    if facts.proxies:
        names = ", ".join(facts.proxies)
        yield Finding("proxy", "ok", f"codex asks the proxy of {names} for all but loopback")


def _binary(facts: Binary) -> Found:
    if facts.problem is not None:
        yield Finding(
            "codex", "failure", facts.problem, "pip install openai-codex-cli-bin, or name a binary with --codex-bin"
        )
    elif facts.version is None:
        yield Finding("codex", "unknown", f"{facts.path} does not state its version", f"run {facts.path} --version")
    elif facts.warning is not None:
        yield Finding(
            "codex", "warning", facts.warning, "install the version that codex-pool names, or test before use"
        )
    else:
        yield Finding("codex", "ok", f"codex {facts.version}, {facts.path}")


def _sandbox(facts: Sandbox) -> Found:
    if not facts.started:
        remedy = "install bubblewrap, and permit unprivileged user namespaces (user.max_user_namespaces above 0)"
        if facts.namespaces == 0:
            remedy = "permit unprivileged user namespaces: sysctl user.max_user_namespaces=65536"
        yield Finding(
            "sandbox", "failure", f"a command could not run in codex's sandbox: {facts.message or 'no output'}", remedy
        )
    elif facts.wrote:
        yield Finding(
            "sandbox",
            "failure",
            "a command in codex's read-only sandbox could write a file",
            "do not run agents that you do not trust on this machine; use a container or a virtual machine",
        )
    else:
        yield Finding("sandbox", "ok", "commands run in codex's sandbox, and cannot write in the read-only one")


def _limits(facts: Limits) -> Found:
    limit = facts.descriptors
    if limit is not None and limit < ENOUGH_DESCRIPTORS:
        yield Finding(
            "descriptors",
            "failure" if limit < FEW_DESCRIPTORS else "warning",
            f"a process may open {limit} files; {ENOUGH_DESCRIPTORS} are enough for some hundred sessions",
            f"ulimit -n {ENOUGH_DESCRIPTORS}, or LimitNOFILE= of its systemd unit, before the daemon starts",
        )
    else:
        yield Finding("descriptors", "ok", f"a process may open {'any number of' if limit is None else limit} files")
    if facts.processes is None:
        yield Finding("processes", "ok", "no limit of processes and threads")
    elif facts.used_processes is None:
        yield Finding(
            "processes",
            "unknown",
            f"the user may have {facts.processes} processes and threads; how many there are is not known",
            "compare with: ps -L -u $USER | wc -l",
        )
    else:
        free = facts.processes - facts.used_processes
        text = f"{facts.used_processes} of {facts.processes} processes and threads of the user are in use"
        if free < FREE_PROCESSES_WANTED:
            level: Level = "failure" if free < FREE_PROCESSES_NEEDED else "warning"
            yield Finding("processes", level, text, "raise ulimit -u, or TasksMax= and LimitNPROC= of a systemd unit")
        else:
            yield Finding("processes", "ok", text)


def _disks(disks: tuple[Disk, ...]) -> Found:
    for disk in disks:
        text = f"{size(disk.free_bytes)} free for {disk.what}, {disk.path}"
        few_inodes = disk.free_inodes is not None and disk.free_inodes < ENOUGH_INODES
        if few_inodes:
            text += f", and room for {plural(disk.free_inodes or 0, 'file')}"
        if disk.free_bytes < FEW_BYTES or (disk.free_inodes is not None and disk.free_inodes < FEW_INODES):
            yield Finding("disk", "failure", text, "make room there, or use a directory on another disk")
        elif disk.free_bytes < ENOUGH_BYTES or few_inodes:
            yield Finding("disk", "warning", text, "make room there before turns fail to be saved")
        else:
            yield Finding("disk", "ok", text)


def _clock(facts: Clock) -> Found:
    remedy = "synchronise the clock (chrony, systemd-timesyncd): log-ins and certificates depend on it"
    if facts.year < OLDEST_YEAR:
        yield Finding("clock", "failure", f"the clock shows the year {facts.year}", remedy)
    elif abs(facts.step_s) > STEP_S:
        yield Finding("clock", "warning", f"the clock was set by {facts.step_s:+.1f} s while this ran", remedy)
    elif facts.ahead_s > AHEAD_S:
        text = f"a file in CODEX_HOME is {duration(facts.ahead_s)} newer than now: the clock is, or was, wrong"
        yield Finding("clock", "warning", text, remedy)
    else:
        yield Finding("clock", "ok", "the clock runs steadily; it was not compared with another one")


def _homes(homes: tuple[Home, ...]) -> Found:
    for home in homes:
        if not home.exists:
            yield Finding(
                "home",
                "warning",
                f"CODEX_HOME {home.path} does not exist: nobody has logged in or used codex here",
                "codex-pool login makes it",
            )
            continue
        if home.problem is not None:
            yield Finding("home", "failure", home.problem, "make it this user's, mode 0700, or set CODEX_HOME")
            continue
        if home.mode & 0o077:
            yield Finding(
                "home",
                "warning",
                f"{home.path} has mode {home.mode:04o}: others may read threads or the log-in",
                f"chmod 700 {home.path}",
            )
        if home.config_problem is not None:
            yield Finding(
                "config",
                "failure",
                f"{home.path}/config.toml: {home.config_problem}",
                "correct the file; codex refuses every thread until then",
            )
        elif not home.has_config:
            yield Finding("config", "ok", f"{home.path} has no config.toml: the defaults of codex count")
        else:
            yield Finding("config", "ok", f"{home.path}/config.toml can be read")
        yield _growth(home)


def _growth(home: Home) -> Finding:
    more = "" if home.is_counted else "more than "
    text = (
        f"{home.path} holds {more}{plural(home.threads, 'thread')} in {size(home.thread_bytes)}, "
        f"{size(home.database_bytes)} of databases, {size(home.log_bytes)} of logs"
    )
    total = home.thread_bytes + home.database_bytes + home.log_bytes
    if home.log_bytes > LARGE_LOG_BYTES:
        return Finding("growth", "warning", text, f"remove old files in {home.path}/log while no codex runs")
    if total > LARGE_HOME_BYTES or home.threads > MANY_THREADS:
        remedy = "archive or move old files of sessions/ while no daemon runs; lists of threads become slow"
        return Finding("growth", "warning", text, remedy)
    return Finding("growth", "ok" if home.is_counted else "unknown", text, "" if home.is_counted else "du -sh the home")


def _login(facts: Login) -> Found:
    if facts.problem is not None:
        yield Finding("login", "failure", facts.problem, "codex-pool login writes a new log-in")
        return
    if facts.mode is not None and facts.mode & 0o077:
        yield Finding(
            "login", "failure", f"auth.json has mode {facts.mode:04o}: others may read it", "chmod 600 auth.json"
        )
    if facts.missing_variable is not None:
        yield Finding(
            "login",
            "failure",
            f"the provider {facts.provider} takes its key of ${facts.missing_variable}, which is not set here",
            f"set {facts.missing_variable} in the environment of codex-pool serve",
        )
    elif facts.provider_has_credentials:
        yield Finding("login", "ok", f"the provider {facts.provider} has a key of its own, or needs none")
    elif facts.kind is None:
        yield Finding(
            "login", "failure", f"nobody is logged in, and the provider {facts.provider} needs it", "codex-pool login"
        )
    elif facts.kind == "chatgpt" and (facts.refreshed_ago_s or 0.0) > OLD_REFRESH_S:
        yield Finding(
            "login",
            "warning",
            f"the tokens of the ChatGPT log-in were last refreshed {duration(facts.refreshed_ago_s or 0.0)} ago; the "
            "provider may refuse them",
            "codex-pool account asks; codex-pool login logs in again",
        )
    else:
        text = f"logged in with {'ChatGPT' if facts.kind == 'chatgpt' else facts.kind}"
        if facts.access_expires_in_s is not None:
            left = facts.access_expires_in_s
            text += (
                f"; its access token {'is refreshed at the next use' if left <= 0 else f'has {duration(left)} left'}"
            )
        yield Finding("login", "ok", f"{text}; the provider was not asked")


def _endpoint(facts: Endpoint) -> Found:
    if facts.directory_problem is not None:
        yield Finding("endpoint", "failure", facts.directory_problem, "do as the message says")
        if facts.status is None:
            return
    if facts.cleaned_by is not None:
        yield Finding(
            "endpoint",
            "warning",
            f"the sockets are in the directory for temporary files, which {facts.cleaned_by} cleans; a daemon makes "
            "removed ones again, but clients fail until then",
            "set XDG_RUNTIME_DIR for daemon and clients, or except the directory from cleaning",
        )
    if facts.status is not None:
        yield from _daemon(facts.endpoint, facts.status)
    elif facts.is_held:
        who = f"supervisor pid {facts.holder_pid}" if facts.holder_pid else "a supervisor"
        why = facts.problem or "it does not answer"
        yield Finding(
            "endpoint",
            "failure",
            f"{who} holds {facts.endpoint}, but no status comes: {why}",
            "wait a moment if it starts or stops; else read its log, and end it with SIGTERM",
        )
    elif facts.problem is not None:
        yield Finding("endpoint", "failure", facts.problem, "check the address, the key, and that the daemon runs")
    else:
        text = f"no daemon at {facts.endpoint}"
        if facts.stale:
            text += f"; an earlier one left {', '.join(facts.stale)}, which the next one takes over"
        yield Finding("endpoint", "ok", text, "codex-pool serve starts one")


def _daemon(endpoint: str, status: dict[str, Any]) -> Found:
    workers = status.get("workers", [])
    ready = sum(worker.get("state") == "ready" for worker in workers)
    up = duration(status.get("uptimeMs", 0) / 1000)
    text = f"a daemon at {endpoint}, up {up}: {ready} of {len(workers)} workers ready"
    if ready == 0:
        yield Finding("daemon", "failure", text, "codex-pool status names the slots and why their workers do not start")
    elif ready < len(workers):
        yield Finding("daemon", "warning", text, "codex-pool status names the slots that have no ready worker")
    else:
        yield Finding("daemon", "ok", text)
    for worker in workers:
        if worker.get("failedStarts"):
            message = (
                f"slot {worker['slot']}: {plural(worker['failedStarts'], 'start')} failed: {worker.get('problem')}"
            )
            yield Finding("daemon", "warning", message, "correct what the message names; the slot is tried again")
    for problem in status.get("problems", ()):
        message = f"{problem.get('what')}: {problem.get('message')}"
        yield Finding("daemon", "warning", message, "correct what the message names; the daemon tries again")
    lost = status.get("log", {}).get("lostLines", 0)
    if lost:
        text = f"{plural(lost, 'line')} of the daemon's log were lost"
        yield Finding("daemon", "warning", text, "look at the disk and at the program that reads the log")


def _keys(facts: Keys) -> Found:
    if not facts.exists:
        yield Finding("keys", "ok", f"no keys in {facts.directory}: only this user may connect")
        return
    for problem in facts.problems:
        yield Finding("keys", "failure", problem, "do as the message says; the key admits nobody until then")
    for key in facts.keys:
        yield from _key(key)
    if not facts.problems:
        yield Finding(
            "keys", "ok", f"{plural(len(facts.keys), 'key')} in {facts.directory}, for this user alone to read"
        )


def _key(key: Key) -> Found:
    name = key.name
    if key.expires_in_s is not None and key.expires_in_s <= 0:
        text = f"the key of {name} has expired"
        yield Finding("keys", "warning", text, f"codex-pool keys renew {name}, or keys revoke {name}")
    elif key.expires_in_s is not None and key.expires_in_s < SOON_S:
        text = f"the key of {name} expires in {duration(key.expires_in_s)}"
        yield Finding("keys", "warning", text, f"codex-pool keys renew {name}")
    if not key.admin and not key.directories:
        text = f"the key of {name} has no directory: it can start no thread"
        yield Finding("keys", "warning", text, f"make it again with codex-pool keys new {name} --cwd-root DIR")
    for path in key.missing_directories:
        text = f"the directory {path} of the key of {name} does not exist"
        yield Finding("keys", "warning", text, "make it, or make the key again with another --cwd-root")


def size(number: int) -> str:
    """Format a size in binary units."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit in ("B", "KiB") else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


_JUDGES: dict[str, Callable[[Any], Found]] = {
    "software": _software,
    "binary": _binary,
    "sandbox": _sandbox,
    "login": _login,
    "homes": _homes,
    "disks": _disks,
    "limits": _limits,
    "clock": _clock,
    "endpoint": _endpoint,
    "keys": _keys,
}
