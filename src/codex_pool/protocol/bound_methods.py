"""Methods whose objects an app-server keeps for one connection: commands, processes, watches, searches. Pure data.

The client chooses the id of such an object, and names it in later requests; notifications about it carry that id.
Read from the schema of codex 0.163.0 and measured on it:

 - Ids are of any length and content. Those of different kinds do not meet: a command and a process may have the same.
   The id of a process or of a search may not be empty.
 - An id may be used again once its object is over. Before that a second begin is refused (-32600), but for a search,
   which begins again.
 - A command is over with the answer to its `command/exec`, a process with `process/exited`. One that is terminated
   answers with exit code 137, with a terminal 1, one beyond its `timeoutMs` 124. Stopping a watch or a search succeeds
   whether there is one or not.
 - When the connection closes, the app-server kills commands and processes, and forgets watches and searches.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """One kind of object.

    `begin` makes it, under the id in `id_field`; `end` ends it; `others` are further requests that name it.
    `last_notification` reports that it is over; without one the answer to `begin` (of a command) or to `end` does.
    `duplicate` is how the app-server refuses a second one of the same id, with the id in JSON or as it is; "" if it
    does not.
    """

    name: str
    id_field: str
    begin: str
    end: str
    others: frozenset[str]
    notifications: frozenset[str]
    # A command of the client: it cannot be moved to another app-server, and runs at most once.
    is_process: bool
    duplicate: str
    last_notification: str = ""
    # The latest request of this method is part of its state.
    update: str = ""
    may_have_empty_id: bool = True


KINDS = (
    Kind(
        name="command",
        id_field="processId",
        begin="command/exec",
        end="command/exec/terminate",
        others=frozenset({"command/exec/write", "command/exec/resize"}),
        notifications=frozenset({"command/exec/outputDelta"}),
        is_process=True,
        duplicate="duplicate active command/exec process id: {json}",
    ),
    Kind(
        name="process",
        id_field="processHandle",
        begin="process/spawn",
        end="process/kill",
        others=frozenset({"process/writeStdin", "process/resizePty"}),
        notifications=frozenset({"process/outputDelta", "process/exited"}),
        is_process=True,
        duplicate="duplicate active process handle: {json}",
        last_notification="process/exited",
        may_have_empty_id=False,
    ),
    Kind(
        name="watch",
        id_field="watchId",
        begin="fs/watch",
        end="fs/unwatch",
        others=frozenset(),
        notifications=frozenset({"fs/changed"}),
        is_process=False,
        duplicate="watchId already exists: {name}",
    ),
    Kind(
        name="search",
        id_field="sessionId",
        begin="fuzzyFileSearch/sessionStart",
        end="fuzzyFileSearch/sessionStop",
        others=frozenset({"fuzzyFileSearch/sessionUpdate"}),
        notifications=frozenset({"fuzzyFileSearch/sessionUpdated", "fuzzyFileSearch/sessionCompleted"}),
        is_process=False,
        duplicate="",
        update="fuzzyFileSearch/sessionUpdate",
        may_have_empty_id=False,
    ),
)
KIND = {kind.name: kind for kind in KINDS}
COMMAND = KIND["command"]
PROCESS = KIND["process"]
WATCH = KIND["watch"]

KIND_OF_METHOD = {method: kind for kind in KINDS for method in (kind.begin, kind.end, *kind.others)}
KIND_OF_NOTIFICATION = {method: kind for kind in KINDS for method in kind.notifications}
# The name of the kind of commands whose clients gave them no id; they are known by that of their request.
ANONYMOUS = "anonymous"
# Parameters of `command/exec` that need an id.
STREAMING = ("tty", "streamStdin", "streamStdoutStderr")
# They start something: executed at most once, and never again on another app-server.
RUNS_ONCE = frozenset(kind.begin for kind in KINDS if kind.is_process)

# The thread of a stream of notifications of such an object, in Events and Ended: none.
NO_THREAD = ""
# What the pool reports as the exit code of a process whose app-server has died: it was killed.
KILLED = 137
# The pool keeps the request that makes a watch or a search, and its latest update, up to this size each.
MAX_KEPT_BYTES = 64 * 1024
MAX_ID_CHARS = 1024


def exited_params(handle: str, message: str, exit_code: int = KILLED) -> dict[str, object]:
    """Parameters of the `process/exited` of a process that the pool or its death has ended; stderr has the reason."""
    return {
        "processHandle": handle,
        "exitCode": exit_code,
        "stdout": "",
        "stdoutCapReached": False,
        "stderr": message,
        "stderrCapReached": False,
    }
