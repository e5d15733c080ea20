"""Counts and memory of what is below a worker, by what it is there for. Pure.

    app-server   with what its own start has brought: npm's `codex` is a node process with the native one below it
    servers      MCP servers, their launchers and all below these: they stay until their thread is unloaded, which is
                 half an hour after it was unsubscribed, unless it is archived or deleted before
    commands     commands of tools, and what else codex runs in a session of its own
    left         commands that have outlived the turns that they may belong to

codex (0.163, measured) starts an MCP server in its own session (setsid), in a process group of its own, and has it
before it answers the request that loads the thread. A command gets a session of its own, with and without sandbox; so
do login shells for snapshots, and `command/exec`. So what a codex process has started within its own session is a
server, and all below a process is what that is. A process whose parent has ended is a child of the worker; unless it
was known as a server before, it is a command.

No process tells which turn a command belongs to. Turns are numbered as they begin: a command has outlived its turn once
all those are over that had begun within SETTLE_S of its first being seen. What clients run without a turn counts as a
turn of its own (`bound_objects`).

A launcher starts its server later, and git runs for a moment when a thread is loaded. So processes and threads settle
for SETTLE_S before the number of servers that a thread brings is derived from them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..protocol import wire
from ..runtime.processes import Memory, ProcessId, TreeProcess

SETTLE_S = 2.0
# A server, or its launcher, is there before the app-server answers, or soon after where the machine is short of time.
NONE_AFTER_S = 1.0

Kind = Literal["app-server", "server", "command"]


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """Processes below a worker at one moment, parents before children.

    `memory` may be older than that, and is of the worker too. `loads` and `threads` are what the worker's core had
    counted before: threads that the app-server was made to load, and those that it had loaded.
    """

    processes: list[TreeProcess]
    memory: Mapping[ProcessId, Memory]
    loads: int
    threads: int


@dataclass(slots=True)
class _Known:
    """A process that was seen. `since`: when first, of what a server has started when that server was.

    `begun`: the number of the last turn that it may belong to.
    """

    kind: Kind
    since: float
    begun: int


class Census:
    """See the module's docstring. `pid` is the worker's, `app_server_pid` that of the process which it has started."""

    def __init__(self, pid: int, app_server_pid: int) -> None:
        self._pid = pid
        self._app_server_pid = app_server_pid
        self._known: dict[ProcessId, _Known] = {}
        self._has_begun = False
        # When how many threads had been loaded, back to SETTLE_S ago.
        self._loads: deque[tuple[float, int]] = deque()

    def take(self, look: ProcessSnapshot, *, begun: int, oldest: int, now: float) -> wire.ProcessTree | None:
        """Count a look; None if the app-server is not in it, which then tells nothing.

        `begun` is the number of the last turn that has begun, `oldest` that of the oldest that runs; where none runs,
        it is the next number. The first look is to come before any thread is loaded: what is below the app-server then
        has come with it.
        """
        known, here = self._known, dict[int, _Known]()
        session = next((each.session for each in look.processes if each.id.pid == self._app_server_pid), None)
        if session is None:
            return None
        self._known = {}
        for process in look.processes:
            seen = known.get(process.id)
            if seen is None:
                parent = here.get(process.parent)
                kind = self._kind(process, parent.kind if parent is not None else None, session)
                belongs = parent is not None and kind == parent.kind == "server"
                seen = _Known(kind, parent.since if parent is not None and belongs else now, begun)
            if now - seen.since < SETTLE_S:
                seen.begun = begun
            here[process.id.pid] = self._known[process.id] = seen
        self._has_begun = True
        return self._tree(look, oldest, now)

    def _kind(self, process: TreeProcess, parent: Kind | None, session: int) -> Kind:
        if process.id.pid == self._app_server_pid:
            return "app-server"
        if parent is None:
            return "command"
        if parent != "app-server":
            return parent
        if not self._has_begun:
            return "app-server"
        return "server" if process.session == session else "command"

    def _tree(self, look: ProcessSnapshot, oldest: int, now: float) -> wire.ProcessTree:
        servers = settled = left = commands = 0
        commanding: set[ProcessId] = set()
        for process, known in self._known.items():
            is_settled = now - known.since >= SETTLE_S
            if known.kind == "server":
                servers += 1
                settled += is_settled
            elif known.kind == "command" and is_settled and oldest > known.begun:
                left += 1
            elif known.kind == "command":
                commands += 1
                commanding.add(process)
        # Processes that have ended since their memory was read have none.
        sizes = {
            process: memory
            for process, memory in look.memory.items()
            if process in self._known or process.pid == self._pid
        }
        command_bytes = sum(memory.size_bytes for process, memory in sizes.items() if process in commanding)
        self._loads.append((now, look.loads))
        while len(self._loads) > 1 and self._loads[1][0] <= now - SETTLE_S:
            self._loads.popleft()
        # Those that were archived or deleted meanwhile have taken their servers with them.
        young = min(look.loads - self._loaded_by(now - SETTLE_S), look.threads)
        return wire.ProcessTree(
            servers=servers,
            settled=settled,
            left=left,
            commands=commands,
            memory_bytes=sum(memory.size_bytes for memory in sizes.values()) - command_bytes,
            command_memory_bytes=command_bytes,
            is_pss=all(memory.is_pss for memory in sizes.values()),
            threads=look.threads,
            young=young,
            each=self._each(servers, settled, look.threads, look.threads - young, now),
        )

    def _loaded_by(self, at: float) -> int:
        """Return the number of threads that had been loaded at this time, as far as was seen then."""
        return max((loads for when, loads in self._loads if when <= at), default=0)

    def _each(self, servers: int, settled: int, threads: int, settled_threads: int, now: float) -> int | None:
        """Servers that a loaded thread has brought, rounded up; None while that is not known."""
        if settled_threads > 0:
            return -(-settled // settled_threads)
        brings_none = threads and not servers and self._loaded_by(now - NONE_AFTER_S)
        return 0 if brings_none else None
