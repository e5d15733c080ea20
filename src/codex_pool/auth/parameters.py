"""Parameters of a request, checked against what a key allows. Pure, but for real paths, by a function passed in.

Each parameter that sets where a thread works, in which sandbox, or when it may leave it, has a rule here; those that
set nothing of the kind are listed; what is neither is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from codex_app_server._runtime.text import cut
from codex_app_server.generated.routing import REQUESTS

from .. import trust
from ..protocol import jsonrpc, thread_records
from ..protocol.wire import ThreadRecord
from .principal import DEFAULT_METHODS, FULL, LEVEL, SANDBOX_MODES, Identity
from .projects import WITHOUT

# They start a turn, or change what the next one is.
STARTS_TURN = frozenset(
    {method for method, entry in REQUESTS.items() if entry.result_turn}
    | {"thread/compact/start", "thread/goal/set", "thread/queue/add", "thread/queue/start"}
)

# Parameters that widen nothing. One that is neither here nor in `ParameterRules` is refused to limited keys.
_HARMLESS_WORDS = """
    additionalContext allowProviderModelFallback ancestorThreadId archived attachmentType baseInstructions
    beforeTurnId capabilities clientInfo clientUserMessageId collaborationMode cursor cyberAccessProgram
    daybreakEnabled deferGoalContinuation delivery developerInstructions disabledPluginIds dynamicTools effort
    ephemeral excludeTurns excludedThreadIds expectedRevision expectedTurnId experimentalPredictionMode
    experimentalRawEvents forceReload gitInfo historyMode identityKey includeHidden includeTurns initialTurnsPage
    interest itemIds itemsView lastTurnId limit mockExperimentalField model modelProvider modelProviders
    multiAgentMode name objective operation origin originators outputSchema parentThreadId parentTurnId payload
    personality processId queuedSubmissionId queuedSubmissionIds requestId responsesapiClientMetadata rootTurnId
    searchTerm sectionId serviceName since serviceTier serviceTierForTurn sessionStartSource sortDirection sortKey
    sourceKinds sourceTurnId status summary target threadId threadSource tokenBudget toolOutput turnId turnTrigger
    useStateDbOnly
"""
HARMLESS = frozenset(_HARMLESS_WORDS.split())
# The same for one method each: there `cwd` is only a filter, and a limited key is not sent the trace.
_HARMLESS_HERE = frozenset({("thread/list", "cwd"), ("pool/status", "trace")})
# What the pool keeps of each thread, or remembers of requests.
_KEPT = frozenset(
    {"name", "model", "modelProvider", "cwd", "clientUserMessageId", "threadId", "turnId", "expectedTurnId"}
)
MAX_KEPT_CHARS = 4096
MAX_OUTPUT_BYTES = 8 * 1024 * 1024
# Of `command/exec`, which runs outside of a thread. Its `env` is none of them: it reaches the programs that make the
# sandbox, before there is one (codex 0.163.0 runs bwrap with it, LD_PRELOAD included).
_HARMLESS_COMMAND = frozenset(
    {
        "command",
        "processId",
        "tty",
        "streamStdin",
        "streamStdoutStderr",
        "size",
        "outputBytesCap",
        "disableOutputCap",
        "timeoutMs",
        "disableTimeout",
    }
)
_HARMLESS_CONFIG = frozenset({"model_reasoning_effort", "model_reasoning_summary", "model_verbosity"})
_HARMLESS_INPUT = frozenset({"text", "image", "audio", "mention"})
_POLICY_MEMBERS = {
    "readOnly": frozenset({"type", "networkAccess"}),
    "workspaceWrite": frozenset({"type", "networkAccess", "writableRoots", "excludeTmpdirEnvVar", "excludeSlashTmp"}),
}
_POLICY_OF = {mode: policy for policy, mode in thread_records.SANDBOX_MODES.items()}


class AccessDenied(Exception):
    """A request that is refused; the message has what came, what is allowed, and the remedy."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class ParameterRules:
    """Checks the parameters of one request, and fills in what must not be left to the pool's configuration."""

    def __init__(
        self,
        identity: Identity,
        method: str,
        record: ThreadRecord | None,
        default_cwd: str,
        realpath: Callable[[str], str],
    ) -> None:
        self._identity = identity
        self._method = method
        self._record = record
        self._default_cwd = default_cwd
        self._realpath = realpath
        self._full = identity.sandbox == FULL
        self._params: dict[str, Any] = {}

    def apply(self, params: dict[str, Any]) -> None:
        self._params = params
        self._fill(params)
        # An explicit grant is the owner's word on what only that method has.
        strict = not self._full and (self._method in DEFAULT_METHODS or self._method == "command/exec")
        for name, value in params.items():
            if name in _KEPT and isinstance(value, str) and len(value) > MAX_KEPT_CHARS:
                self._refuse("parameter", f"{name} has {len(value)} characters", f"give at most {MAX_KEPT_CHARS}")
            rule = self._rule(name)
            if rule is not None:
                if value is not None:
                    rule(self, name, value)
            elif strict and not self._is_harmless(name):
                self._refuse("parameter", f"{short(name)} is not a parameter that the pool can judge", "leave it out")
        if self._method in STARTS_TURN and self._record is not None:
            self._check_record(self._record, params)
        if self._method in ("thread/start", "command/exec") and params.get("cwd") is None:
            self._check_default_cwd()
        if self._method == "command/exec" and not self._full:
            self._check_output(params)
        if not self._full:
            self._leave_out_project(params)

    def _is_harmless(self, name: str) -> bool:
        if self._method == "command/exec":
            return name in _HARMLESS_COMMAND
        return name in HARMLESS or (self._method, name) in _HARMLESS_HERE

    def _rule(self, name: str) -> _Rule | None:
        """The rule for a parameter of this method, if there is one."""
        if name == "cwd" and self._method == "thread/list":
            # Only a filter there.
            return None
        if name in _FILE_RULES and self._method.startswith(("fs/", "fuzzyFileSearch")):
            return _FILE_RULES[name]
        return _RULES.get(name)

    def _leave_out_project(self, params: dict[str, Any]) -> None:
        """Last, because a client may not give what is filled in here."""
        if self._method in thread_records.LOADS_THREAD:
            params["config"] = {**(params.get("config") or {}), **self._untrusting(params)}
        for name, instead in WITHOUT.get(self._method, {}).items():
            params.pop(name, None)
            if instead is not None:
                params[name] = instead

    def _untrusting(self, params: dict[str, Any]) -> dict[str, Any]:
        """Settings for the directory of the thread, which is named in the request from here on."""
        if params.get("cwd") is None:
            known = self._record.cwd if self._record is not None else None
            if self._method == "thread/start":
                known = self._realpath(self._default_cwd)
            if known is None:
                self._refuse("cwd", "the directory of the thread is not known", f"give {self._instead()}")
            params["cwd"] = known
        cwd = params["cwd"]
        return trust.untrusting(cwd, _sendable(self._realpath(cwd)) or cwd)

    def _fill(self, params: dict[str, Any]) -> None:
        if self._full:
            return
        if self._method in thread_records.LOADS_THREAD:
            if params.get("sandbox") is None:
                params["sandbox"] = self._identity.sandbox
            if params.get("approvalPolicy") is None:
                params["approvalPolicy"] = "never"
        elif self._method == "command/exec" and params.get("sandboxPolicy") is None:
            params["sandboxPolicy"] = {"type": _POLICY_OF[self._identity.sandbox]}

    def _refuse(self, what: str, problem: str, remedy: str) -> NoReturn:
        raise AccessDenied(what, f"{self._method}: {problem}; {remedy}")

    def _needs(self, what: str, value: Any, needed: str) -> NoReturn:
        self._refuse(
            what,
            f"{what} {short(value)} needs a key with --sandbox {needed}, that of {self._identity.name} allows "
            f"{self._identity.sandbox}",
            f"leave it out, or give sandbox {self._identity.sandbox}",
        )

    def _mode(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in LEVEL:
            self._refuse(name, f"{name} is {short(value)}", f"expected one of {', '.join(SANDBOX_MODES)}")
        elif LEVEL[value] > LEVEL[self._identity.sandbox]:
            self._needs(name, value, value)

    def _policy(self, name: str, value: Any) -> None:
        if self._full:
            return
        kind = value.get("type") if isinstance(value, dict) else None
        members = _POLICY_MEMBERS.get(kind) if isinstance(kind, str) else None
        if members is None or not isinstance(value, dict):
            self._needs(name, kind if kind is not None else value, "danger-full-access")
        if kind == "workspaceWrite" and self._identity.sandbox == "read-only":
            self._needs(name, kind, "workspace-write")
        unknown = sorted(set(value) - members)
        if unknown:
            self._refuse(
                name, f"{name} has {short(unknown[0])}, which is not a member that the pool can judge", "leave it out"
            )
        if value.get("networkAccess", False) is not False:
            self._needs(f"{name}.networkAccess", value["networkAccess"], "danger-full-access")
        if value.get("writableRoots") is not None:
            self._directories(f"{name}.writableRoots", value["writableRoots"])

    def _approval(self, name: str, value: Any) -> None:
        if not self._full and value != "never":
            self._refuse(
                name,
                f"{name} is {short(value)}, which lets a client approve what the sandbox denies, and the key of "
                f"{self._identity.name} allows {self._identity.sandbox} at most",
                'leave it out, or give "never"',
            )

    def _reviewer(self, name: str, value: Any) -> None:
        if not self._full and value != "user":
            self._refuse(name, f"{name} is {short(value)}", 'leave it out, or give "user"')

    def _config(self, name: str, value: Any) -> None:
        if self._full:
            return
        if not isinstance(value, dict):
            self._refuse(name, f"{name} is {short(value)}", "expected an object")
        for key, setting in value.items():
            is_harmless = key in _HARMLESS_CONFIG and isinstance(setting, str)
            if not is_harmless and not trust.narrows(key, setting):
                self._refuse(
                    name,
                    f"{name} sets {short(key)}, which could widen what the key of {self._identity.name} allows",
                    f"it may set {', '.join(sorted(_HARMLESS_CONFIG))}",
                )

    def _input(self, name: str, value: Any) -> None:
        """Check files that the app-server reads for a turn: it reads them outside of the sandbox."""
        if self._full:
            return
        if not isinstance(value, list):
            self._refuse(name, f"{name} is {short(value)}", "expected a list")
        for item in value:
            kind = item.get("type") if isinstance(item, dict) else None
            if kind in ("localImage", "localAudio", "skill"):
                self._directory(f"{name}.path", item.get("path"))
            elif not isinstance(kind, str) or kind not in _HARMLESS_INPUT:
                self._refuse(name, f"{name} has an item of type {short(kind)}", "leave it out")

    def _only_full(self, name: str, value: Any) -> None:
        if not self._full and value != []:
            self._needs(name, value, "danger-full-access")

    def _check_output(self, params: dict[str, Any]) -> None:
        """Check how much output the app-server is to keep for the answer; what it streams, the worker bounds."""
        if params.get("tty") is True or params.get("streamStdoutStderr") is True:
            return
        cap = params.get("outputBytesCap")
        is_bounded = cap is None or (isinstance(cap, int) and cap <= MAX_OUTPUT_BYTES)
        if params.get("disableOutputCap", False) is not False or not is_bounded:
            self._refuse(
                "outputBytesCap",
                f"the output that is kept for the answer is not bounded by {MAX_OUTPUT_BYTES} bytes",
                "give a lower outputBytesCap, or set streamStdoutStderr",
            )

    def _environment(self, name: str, value: Any) -> None:
        if not self._full:
            problem = f"{name} would reach the programs that make the sandbox"
            self._refuse(name, problem, "leave it out, and have the command set its variables")

    def _path(self, name: str, value: Any) -> None:
        if self._method.startswith("thread/"):
            # It names a thread by its file, whatever its owner.
            self._refuse(name, f"{name} is not for clients with a key", "leave it out and name the thread by its id")
        self._directory(name, value)

    def _directories(self, name: str, value: Any) -> None:
        if not isinstance(value, list):
            self._refuse(name, f"{name} is {short(value)}", "expected a list of directories")
        for each in value:
            self._directory(name, each)

    def _directory(self, name: str, value: Any) -> str:
        real = self._inside(value)
        if real is None:
            self._refuse(name, f"{name} is {short(value)}, which is {self._outside()}", f"give {self._instead()}")
        return real

    def _cwd(self, name: str, value: Any) -> None:
        # Sent as what it was when it was looked at: a link may point elsewhere by the time it is used.
        real = self._directory(name, value)
        if not self._full and real.count("/") > trust.MAX_LEVELS:
            self._refuse(
                name, f"{name} is {short(value)}, more than {trust.MAX_LEVELS} levels deep", "give a shorter path"
            )
        self._params[name] = real

    def _inside(self, path: Any) -> str | None:
        """Real path of what lies in a directory that the key allows."""
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path or ".." in path.split("/"):
            return None
        real = _sendable(self._realpath(path))
        roots = (self._realpath(root) for root in self._identity.cwd_roots)
        is_inside = real is not None and any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots)
        return real if is_inside else None

    def _outside(self) -> str:
        return f"not an absolute path in a directory that the key of {self._identity.name} allows"

    def _instead(self) -> str:
        return (
            f"one in or below {', '.join(self._identity.cwd_roots)}"
            if self._identity.cwd_roots
            else "none: it has none"
        )

    def _check_default_cwd(self) -> None:
        if self._inside(self._default_cwd) is None:
            problem = f"without cwd it works in {self._default_cwd}, which is {self._outside()}"
            self._refuse("cwd", problem, f"give {self._instead()}")

    def _check_record(self, record: ThreadRecord, params: dict[str, Any]) -> None:
        """A thread may be older than what its owner's key allows today."""
        if params.get("cwd") is None and record.cwd is not None:
            self._directory("the thread's cwd", record.cwd)
        if self._full:
            return
        if params.get("sandboxPolicy") is None:
            kind = thread_records.sandbox_type(record.sandbox)
            mode = thread_records.SANDBOX_MODES.get(kind)
            if mode is None or LEVEL[mode] > LEVEL[self._identity.sandbox]:
                self._needs("the thread's sandbox", kind or "(not known)", "danger-full-access")
        if params.get("approvalPolicy") is None and record.approval_policy != '"never"':
            self._approval("the thread's approvalPolicy", record.approval_policy or "(not known)")


_Rule = Callable[[ParameterRules, str, Any], None]

# By the name of the parameter; null is never judged, it means the same as leaving it out. Functions, not bound methods:
# an object that refers to itself, and to a request of megabytes, would wait for the garbage collector.
_RULES: dict[str, _Rule] = {
    "sandbox": ParameterRules._mode,
    "sandboxPolicy": ParameterRules._policy,
    "approvalPolicy": ParameterRules._approval,
    "approvalsReviewer": ParameterRules._reviewer,
    "config": ParameterRules._config,
    "input": ParameterRules._input,
    "cwd": ParameterRules._cwd,
    "cwds": ParameterRules._directories,
    "runtimeWorkspaceRoots": ParameterRules._directories,
    "permissions": ParameterRules._only_full,
    "env": ParameterRules._environment,
    "permissionProfile": ParameterRules._only_full,
    "history": ParameterRules._only_full,
    "environments": ParameterRules._only_full,
    "selectedCapabilityRoots": ParameterRules._only_full,
    "projectId": ParameterRules._only_full,
    "path": ParameterRules._path,
}
_FILE_RULES: dict[str, _Rule] = {
    "sourcePath": ParameterRules._path,
    "destinationPath": ParameterRules._path,
    "roots": ParameterRules._directories,
}


def _sendable(path: str) -> str | None:
    """A path as JSON can carry it; None for one that is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return None
    return path


def short(value: Any) -> str:
    return cut(jsonrpc.encode(value).decode("utf-8", "replace"), 80)
