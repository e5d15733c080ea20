"""The validity gate: decides from the facts of an attempt whether what it came to can be scored. Pure.

An attempt is valid if it completed or reached a limit and none of these holds:

- its environment was not ready before its first turn, or not ready after its last one (`environmentLost`, lost);
- a call of a tool could not be run for a reason that is not the agent's (`toolsUnavailable` or `sandboxError`, failed);
- a message of the runtime that the result is made of does not fit its type (`undecoded`, failed);
- a disk that the attempt wrote to was full meanwhile (`diskFull`, failed).

An agent's own mistakes leave its attempt valid: a tool that does not exist, arguments that do not fit, a
directory that does not exist, a command that ends with any exit code, 126 and 127 included.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from codex_app_server._runtime.text import one_line

from .retry import DISK_FULL, ENVIRONMENT_LOST, SANDBOX_ERROR, TOOLS_UNAVAILABLE, UNDECODED, Outcome, Status

SCORED: tuple[Status, ...] = ("completed", "limit")
"""Statuses of which there is something to score."""
INVALID = frozenset({ENVIRONMENT_LOST, TOOLS_UNAVAILABLE, SANDBOX_ERROR, UNDECODED, DISK_FULL})
"""Kinds of errors that the gate gives. What such an attempt did is not built upon."""
READY, PENDING = "ready", "pending"
"""Statuses of `environment/status`. While it is pending, codex offers the model no tools of the environment."""
LOCAL = "local"
"""The environment of the app-server's own machine, which is always ready."""

# Notifications of a turn that its result and its record are made of.
RESULT_METHODS = frozenset({"item/completed", "thread/tokenUsage/updated", "turn/completed", "model/rerouted"})
# Tools that codex (0.163.0) offers only while an environment is there.
_OF_ENVIRONMENT = ("exec_command", "write_stdin", "shell", "shell_command", "local_shell", "apply_patch", "view_image")
_UNSUPPORTED = "unsupported call: "
# The helpers of codex's sandboxes, about themselves: bubblewrap, codex-linux-sandbox, seatbelt.
_SANDBOX_SAYS = ("bwrap: ", "sandbox-exec: ")
_HELPER_PANICS = re.compile(r"\s*thread '[^'\n]*'(?: \(\d+\))? panicked at linux-sandbox/")
_HELPERS = ("bwrap", "bubblewrap", "sandbox-exec", "linux-sandbox")
_NO_DIRECTORY = "bwrap: Can't chdir to"
# codex, about its connection to an exec-server (0.163.0). What the exec-server itself answers is "rejected request".
_DISCONNECTED = re.compile(r"exec-server (?:connection|transport|websocket|session)|resume exec-server")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
# EIO, EAGAIN, ENOMEM, ENFILE, EMFILE: it may be better the next time.
_OF_MACHINE = frozenset({5, 11, 12, 23, 24})
# EPERM, ENOENT, ENOEXEC, EACCES, ENOTDIR, ETXTBSY, ENOSYS, ELIBBAD: no shell, or no directory.
_OF_PLACE = frozenset({1, 2, 8, 13, 20, 26, 38, 80})
# ENOSPC, EDQUOT.
_OF_DISK = frozenset({28, 122})
_FULL, _QUOTA = "No space left on device", "Disk quota exceeded"
# rmcp, when the process or the connection of an MCP server is gone.
_SERVER_GONE = ("Transport closed", "Transport send error", "connection closed: initialize")
_SHOWN_CHARS = 300


class Problem(NamedTuple):
    """Reason why an attempt is not valid: the kind of its error, and a message for people."""

    kind: str
    message: str


class Health(NamedTuple):
    """Health of an environment by `environment/status`; `note` adds what else is known of it."""

    environment: str
    status: str
    error: str | None = None
    note: str = ""

    @property
    def problem(self) -> Problem | None:
        if self.status == READY:
            return None
        state = "could not be reached in time" if self.status == PENDING else f"is {self.status}"
        said = f": {self.error}" if self.error else ""
        more = f"; {self.note}" if self.note else ""
        return Problem(ENVIRONMENT_LOST, f"the environment {self.environment} of the sample {state}{said}{more}")


class HiddenCall(NamedTuple):
    """A call that codex has reported no item for, from the stored thread: `name` of the tool, and the two texts."""

    name: str
    arguments: str
    output: str


class ToolCalls:
    """The calls of an attempt's tools: whether they could be run.

    `own` are the directories that the thread itself works in: only there a shell that cannot be started is not for the
    agent to answer for. Of a command that cannot be started because of the place it would start in, or of its sandbox,
    the agent may be the reason all the same; such failures count while no command of the attempt has been run. Those
    of the machine and of connections count until a later call is run.
    """

    def __init__(self, own: Collection[str] = ()) -> None:
        self.own = own
        self.has_environment = False
        """True if the thread has an environment other than the local one."""
        self.seen: set[str] = set()
        """Ids of the calls that there is an item for."""
        self.said_full: str | None = None
        """A line about a full disk that a command printed."""
        self.has_run = False
        """True if any command has been run."""
        self._never: Problem | None = None
        self._last: Problem | None = None
        self._servers: dict[str, Problem] = {}

    @property
    def problem(self) -> Problem | None:
        """Error that kept calls from being run, if that makes the attempt invalid."""
        if self._last is not None:
            return self._last
        for problem in self._servers.values():
            return problem
        return None if self.has_run else self._never

    def completed(self, item: Mapping[str, Any]) -> None:
        """Note that an item has ended."""
        kind = item.get("type")
        if kind == "commandExecution":
            self.seen.add(str(item.get("id")))
            self._command(item)
        elif kind == "mcpToolCall":
            self.seen.add(str(item.get("id")))
            self._server_called(item)

    def hidden(self, calls: Iterable[HiddenCall]) -> None:
        """Calls that have no item: of a command whose output looks to codex like a sandbox's denial there is none."""
        for call in calls:
            if call.output.startswith(_UNSUPPORTED):
                name = call.output.removeprefix(_UNSUPPORTED).strip()
                if self.has_environment and name in _OF_ENVIRONMENT:
                    message = f"the tool {name} was not there: the environment was not ready"
                    self._never = Problem(ENVIRONMENT_LOST, message)
            elif call.name in _OF_ENVIRONMENT:
                head, mark, output = call.output.partition("\nOutput:\n")
                refused = _refused(output if mark else head, call.arguments)
                if refused is not None:
                    self._never = refused
                elif mark:
                    self._was_run()

    def _command(self, item: Mapping[str, Any]) -> None:
        status, code = item.get("status"), item.get("exitCode")
        output = str(item.get("aggregatedOutput") or "").strip()
        command = str(item.get("command") or "")
        if status == "failed" and code in (None, -1):
            problem, is_own = self._not_started(item, output)
            if problem is not None:
                if is_own:
                    self._never = problem
                else:
                    self._last = problem
                return
            if item.get("processId") is None and code == -1:
                return
        if status == "declined":
            return
        refused = _refused(output, command) if status == "failed" else None
        if refused is not None and not (output.startswith(_NO_DIRECTORY) and not self._is_own(item)):
            self._never = refused
            return
        self._was_run()
        # Also one that went on: its last command may have succeeded.
        if _FULL not in command and _QUOTA not in command:
            for words in (_FULL, _QUOTA):
                if words in output:
                    self.said_full = one_line(next(line for line in output.splitlines() if words in line), _SHOWN_CHARS)

    def _not_started(self, item: Mapping[str, Any], output: str) -> tuple[Problem | None, bool]:
        """Return why a command was not started, or was lost, unless the agent caused it; and True if that counts only
        while no other command has been run."""
        if _DISCONNECTED.search(output):
            return Problem(ENVIRONMENT_LOST, f"a command could not be run: {one_line(output, _SHOWN_CHARS)}"), False
        found = _OS_ERROR.search(output)
        if found is None or item.get("processId") is not None:
            return None, False
        number, message = int(found[1]), f"a command could not be started: {one_line(output, _SHOWN_CHARS)}"
        if number in _OF_DISK:
            return Problem(DISK_FULL, message), False
        if number in _OF_MACHINE:
            return Problem(TOOLS_UNAVAILABLE, message), False
        if number in _OF_PLACE and self._is_own(item):
            return Problem(TOOLS_UNAVAILABLE, message), True
        return None, False

    def _is_own(self, item: Mapping[str, Any]) -> bool:
        return os.path.normpath(str(item.get("cwd"))) in map(os.path.normpath, self.own)

    def _server_called(self, item: Mapping[str, Any]) -> None:
        server, error = str(item.get("server")), item.get("error")
        said = str(error.get("message") or "") if isinstance(error, Mapping) else ""
        if item.get("status") == "failed" and any(words in said for words in _SERVER_GONE):
            message = f"the MCP server {server} is gone: {one_line(said.partition('Stack backtrace')[0], _SHOWN_CHARS)}"
            self._servers[server] = Problem(TOOLS_UNAVAILABLE, message)
        else:
            self._servers.pop(server, None)

    def _was_run(self) -> None:
        self.has_run, self._last = True, None


@dataclass(slots=True)
class Facts:
    """Facts that the gate decides by. Each part is filled in by the code that knows it."""

    tools: ToolCalls = field(default_factory=ToolCalls)
    environments: list[Health] = field(default_factory=list)
    """Environments of the thread, as they were after its last turn, or before the first one."""
    undecoded: list[str] = field(default_factory=list)
    """Methods of RESULT_METHODS notifications that do not fit their types."""
    versions: str = "the runtime may be another version than this package was made for"
    """Versions of the runtime and of the types, in words."""
    full: str | None = None
    """The disk that was full meanwhile, in words."""

    @property
    def problem(self) -> Problem | None:
        """The reason why an attempt with an answer cannot be scored; None if it can be."""
        if self.full is not None:
            return Problem(DISK_FULL, self.full)
        for health in self.environments:
            if health.problem is not None:
                return health.problem
        if self.tools.problem is not None:
            return self.tools.problem
        if self.undecoded:
            return Problem(
                UNDECODED,
                f"the turn completed, but a message of it does not fit its type ({self.undecoded[0]}), so that its "
                f"answer, its tool calls or its tokens may be missing; {self.versions}",
            )
        return None


def judged(outcome: Outcome, facts: Facts) -> Outcome:
    """Judge an attempt: return its outcome, or one with the reason why it is not valid.

    An attempt that was interrupted stays so. One that failed or was lost is not scored anyway; of these only a full
    disk changes the kind, because the run waits for room.
    """
    problem = facts.problem
    if problem is None or outcome.status == "interrupted":
        return outcome
    error, message = outcome.error, problem.message
    if outcome.status not in SCORED:
        if problem.kind != DISK_FULL:
            return outcome
        message += "" if error is None else f"; {error['message']}"
    elif outcome.status == "limit" and error is not None:
        message += f"; {error['message']}"
    status: Status = "lost" if problem.kind == ENVIRONMENT_LOST else "failed"
    return msgspec.structs.replace(outcome, status=status, limit=None, error={"kind": problem.kind, "message": message})


def may_be_built_on(error: Mapping[str, str] | None) -> bool:
    """Return True if an attempt that ended with this error can be continued."""
    return error is None or error["kind"] not in INVALID


def is_of_environment(error: Mapping[str, str] | None) -> bool:
    """Return True if an attempt was lost with its environment, not with its app-server."""
    return error is not None and error["kind"] == ENVIRONMENT_LOST


def _refused(output: str, command: str) -> Problem | None:
    """Return the message of a sandbox's helper that refused to run a command.

    A command that names a helper may have called it itself. Other output of a command proves that it was run.
    """
    if any(name in command for name in _HELPERS):
        return None
    text = output.strip()
    if _HELPER_PANICS.match(text) or (text.startswith(_SANDBOX_SAYS) and "\n" not in text):
        return Problem(SANDBOX_ERROR, one_line(text, _SHOWN_CHARS))
    return None
