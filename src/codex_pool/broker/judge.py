"""What the parameters of a request would widen. Pure, but for real paths, by a function passed in.

Each parameter that says where a thread works, in which sandbox, or who may leave it, has a rule here; those that say
nothing of the kind are listed; what is neither is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from codex_app_server.generated.routing import REQUESTS
from codex_pool import rpc, trust
from codex_pool.broker.identity import DEFAULT_METHODS, FULL, LEVEL, SANDBOX_MODES, Identity
from codex_pool.broker.projects import WITHOUT
from codex_pool.wire import ThreadRecord

# They start a turn, or change what the next one is.
STARTS_TURN = frozenset(
    {method for method, entry in REQUESTS.items() if entry.result_turn}
    | {"thread/compact/start", "thread/goal/set", "thread/queue/add", "thread/queue/start"}
)

# Parameters that widen nothing. One that stands neither here nor in `Judge` is refused to whom has a ceiling.
_HARMLESS_WORDS = """
    additionalContext allowProviderModelFallback ancestorThreadId archived attachmentType baseInstructions
    beforeTurnId capabilities clientInfo clientUserMessageId collaborationMode cursor cyberAccessProgram
    daybreakEnabled deferGoalContinuation delivery developerInstructions disabledPluginIds dynamicTools effort
    ephemeral excludeTurns excludedThreadIds expectedRevision expectedTurnId experimentalPredictionMode
    experimentalRawEvents forceReload gitInfo historyMode identityKey includeHidden includeTurns initialTurnsPage
    interest itemIds itemsView lastTurnId limit mockExperimentalField model modelProvider modelProviders
    multiAgentMode name objective operation origin originators outputSchema parentThreadId parentTurnId payload
    personality processId queuedSubmissionId queuedSubmissionIds requestId responsesapiClientMetadata rootTurnId
    searchTerm sectionId serviceName serviceTier serviceTierForTurn sessionStartSource sortDirection sortKey
    sourceKinds sourceTurnId status summary target threadId threadSource tokenBudget toolOutput turnId turnTrigger
    useStateDbOnly
"""
HARMLESS = frozenset(_HARMLESS_WORDS.split())
# What the pool keeps of each thread, or remembers of requests.
_KEPT = frozenset(
    {"name", "model", "modelProvider", "cwd", "clientUserMessageId", "threadId", "turnId", "expectedTurnId"}
)
MAX_KEPT_CHARS = 4096
_HARMLESS_CONFIG = frozenset({"model_reasoning_effort", "model_reasoning_summary", "model_verbosity"})
_HARMLESS_INPUT = frozenset({"text", "image", "audio", "mention"})
_POLICY_MEMBERS = {
    "readOnly": frozenset({"type", "networkAccess"}),
    "workspaceWrite": frozenset({"type", "networkAccess", "writableRoots", "excludeTmpdirEnvVar", "excludeSlashTmp"}),
}
_POLICY_OF = {mode: policy for policy, mode in rpc.SANDBOX_MODES.items()}


class Refused(Exception):
    """Carries what is wrong out of a judgement: what came, what is allowed, and the remedy."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class Judge:
    """Judges the parameters of one request, and fills in what must not be left to the pool's configuration."""

    def __init__(
        self,
        who: Identity,
        method: str,
        record: ThreadRecord | None,
        default_cwd: str,
        realpath: Callable[[str], str],
    ) -> None:
        self._who = who
        self._method = method
        self._record = record
        self._default_cwd = default_cwd
        self._realpath = realpath
        self._full = who.sandbox == FULL
        self._params: dict[str, Any] = {}
        # By the name of the parameter; null is never judged, it means the same as leaving it out.
        self._rules: dict[str, Callable[[str, Any], None]] = {
            "sandbox": self._mode,
            "sandboxPolicy": self._policy,
            "approvalPolicy": self._approval,
            "approvalsReviewer": self._reviewer,
            "config": self._config,
            "input": self._input,
            "cwd": self._cwd,
            "cwds": self._directories,
            "runtimeWorkspaceRoots": self._directories,
            "permissions": self._only_full,
            "permissionProfile": self._only_full,
            "history": self._only_full,
            "environments": self._only_full,
            "selectedCapabilityRoots": self._only_full,
            "projectId": self._only_full,
            "path": self._path,
        }
        if method == "thread/list":
            # Only a filter there.
            del self._rules["cwd"]
        if method.startswith(("fs/", "fuzzyFileSearch")):
            self._rules |= {
                "sourcePath": self._path,
                "destinationPath": self._path,
                "roots": self._directories,
            }

    def judge(self, params: dict[str, Any]) -> None:
        self._params = params
        self._fill(params)
        # An explicit grant is the owner's word on what only that method has.
        strict = not self._full and self._method in DEFAULT_METHODS
        for name, value in params.items():
            if name in _KEPT and isinstance(value, str) and len(value) > MAX_KEPT_CHARS:
                self._refuse("parameter", f"{name} has {len(value)} characters", f"give at most {MAX_KEPT_CHARS}")
            rule = self._rules.get(name)
            if rule is not None:
                if value is not None:
                    rule(name, value)
            elif strict and name not in HARMLESS and (self._method, name) != ("thread/list", "cwd"):
                self._refuse("parameter", f"{short(name)} is not a parameter that the pool can judge", "leave it out")
        if self._method in STARTS_TURN and self._record is not None:
            self._check_record(self._record, params)
        if self._method in ("thread/start", "command/exec") and params.get("cwd") is None:
            self._check_default_cwd()
        if not self._full:
            self._leave_out_project(params)

    def _leave_out_project(self, params: dict[str, Any]) -> None:
        """Last, because a client may not give what is filled in here."""
        if self._method in rpc.LOADS_THREAD:
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
        if self._method in rpc.LOADS_THREAD:
            if params.get("sandbox") is None:
                params["sandbox"] = self._who.sandbox
            if params.get("approvalPolicy") is None:
                params["approvalPolicy"] = "never"
        elif self._method == "command/exec" and params.get("sandboxPolicy") is None:
            params["sandboxPolicy"] = {"type": _POLICY_OF[self._who.sandbox]}

    def _refuse(self, what: str, problem: str, remedy: str) -> NoReturn:
        raise Refused(what, f"{self._method}: {problem}; {remedy}")

    def _needs(self, what: str, value: Any, needed: str) -> NoReturn:
        self._refuse(
            what,
            f"{what} {short(value)} needs a key with --sandbox {needed}, that of {self._who.name} allows "
            f"{self._who.sandbox}",
            f"leave it out, or give sandbox {self._who.sandbox}",
        )

    def _mode(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in LEVEL:
            self._refuse(name, f"{name} is {short(value)}", f"expected one of {', '.join(SANDBOX_MODES)}")
        elif LEVEL[value] > LEVEL[self._who.sandbox]:
            self._needs(name, value, value)

    def _policy(self, name: str, value: Any) -> None:
        if self._full:
            return
        kind = value.get("type") if isinstance(value, dict) else None
        members = _POLICY_MEMBERS.get(kind) if isinstance(kind, str) else None
        if members is None or not isinstance(value, dict):
            self._needs(name, kind if kind is not None else value, "danger-full-access")
        if kind == "workspaceWrite" and self._who.sandbox == "read-only":
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
                f"{self._who.name} allows {self._who.sandbox} at most",
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
                    f"{name} sets {short(key)}, which could widen what the key of {self._who.name} allows",
                    f"it may set {', '.join(sorted(_HARMLESS_CONFIG))}",
                )

    def _input(self, name: str, value: Any) -> None:
        """What the app-server reads for a turn, it reads outside of the sandbox."""
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

    def _path(self, name: str, value: Any) -> None:
        if self._method.startswith("thread/"):
            # It names a thread by its file, whosoever it is.
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
        roots = (self._realpath(root) for root in self._who.cwd_roots)
        is_inside = real is not None and any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots)
        return real if is_inside else None

    def _outside(self) -> str:
        return f"not an absolute path in a directory that the key of {self._who.name} allows"

    def _instead(self) -> str:
        return f"one in or below {', '.join(self._who.cwd_roots)}" if self._who.cwd_roots else "none: it has none"

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
            kind = rpc.sandbox_type(record.sandbox)
            mode = rpc.SANDBOX_MODES.get(kind)
            if mode is None or LEVEL[mode] > LEVEL[self._who.sandbox]:
                self._needs("the thread's sandbox", kind or "(not known)", "danger-full-access")
        if params.get("approvalPolicy") is None and record.approval_policy != '"never"':
            self._approval("the thread's approvalPolicy", record.approval_policy or "(not known)")


def _sendable(path: str) -> str | None:
    """A path as JSON can carry it; None for one that is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return None
    return path


def short(value: Any) -> str:
    text = rpc.encode(value).decode("utf-8", "replace")
    return text if len(text) <= 80 else text[:77] + "..."
