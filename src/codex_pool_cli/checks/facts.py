"""Facts that the probes of `codex-pool doctor` collect. Sizes are in bytes; None is a value that is not known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Software:
    """Versions, and packages that extras bring. `proxies`: names of the variables of proxies that are set."""

    python: tuple[int, int, int]
    pool: str
    extras: dict[str, bool]
    proxies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Binary:
    """The codex binary. `problem`: why there is none that can be used; `warning`: what its version lacks."""

    path: str | None
    version: str | None = None
    problem: str | None = None
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A command that was run in the sandbox of codex: did it run, and could it write where it must not?

    `started` is False also where the sandbox could not be tried; `message` then has the reason.
    """

    started: bool
    wrote: bool = False
    message: str = ""
    namespaces: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of this process, None for no limit, and how many processes and threads the user has."""

    descriptors: int | None
    processes: int | None
    used_processes: int | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """Free space of the file system that a path is on. `free_inodes` is None where it counts none."""

    what: str
    path: str
    free_bytes: int
    free_inodes: int | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall clock. `step_s`: its change against the monotonic clock while the checks ran; `ahead_s`: how far the
    newest file of CODEX_HOME is in the future."""

    year: int
    step_s: float
    ahead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Home:
    """A CODEX_HOME. `has_config`: it has a config.toml; `config_problem`: why that cannot be read.

    `is_counted` is False where time ran out before all of its files were seen; sizes are then lower bounds.
    """

    path: str
    exists: bool
    problem: str | None = None
    has_config: bool = True
    config_problem: str | None = None
    mode: int = 0o700
    threads: int = 0
    thread_bytes: int = 0
    database_bytes: int = 0
    log_bytes: int = 0
    is_counted: bool = True


@dataclass(frozen=True, slots=True)
class Login:
    """A log-in of codex, without its secrets. `kind`: "chatgpt", "apikey", another word of auth.json, or None for
    none. `access_expires_in_s`, `refreshed_ago_s`: of the tokens of a ChatGPT login."""

    kind: str | None
    provider: str
    provider_has_credentials: bool = False
    missing_variable: str | None = None
    problem: str | None = None
    mode: int | None = None
    access_expires_in_s: float | None = None
    refreshed_ago_s: float | None = None


Listening = Literal["yes", "no", "missing"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The endpoint of a daemon and the files beside it. `status`: the answer to pool/status, None without one."""

    endpoint: str
    directory_problem: str | None = None
    holder_pid: int | None = None
    is_held: bool = False
    socket: Listening = "missing"
    stale: tuple[str, ...] = ()
    cleaned_by: str | None = None
    status: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key that is allowed. `expires_in_s` is negative for one that has expired, None for one that does not expire."""

    name: str
    admin: bool
    directories: tuple[str, ...]
    missing_directories: tuple[str, ...] = ()
    expires_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Keys:
    """The directory of the keys. `problems`: files that admit no client, with the reason and the remedy."""

    directory: str
    exists: bool
    keys: tuple[Key, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts. A group that is None was not found out; `unknown` has the reason by group."""

    software: Software | None = None
    binary: Binary | None = None
    sandbox: Sandbox | None = None
    limits: Limits | None = None
    disks: tuple[Disk, ...] | None = None
    clock: Clock | None = None
    homes: tuple[Home, ...] | None = None
    login: Login | None = None
    endpoint: Endpoint | None = None
    keys: Keys | None = None
    unknown: dict[str, str] = field(default_factory=dict)
