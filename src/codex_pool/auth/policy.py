"""AccessPolicy: which requests a principal may send. Pure, but for real paths, by a function passed in.

A principal is the person or program behind a key, by its id; "" is the pool's owner, who connects over ipc and may do
everything. All others may do what is written here, as far as their entry on the allow-list permits; what cannot be
read is refused. Names are for texts only: a key that is made later under the same name is of another principal.

How the broker's core calls it, for a session of `principal`:

    on hello      text = policy.admit(principal, its_sessions)                  a text: Refused
    on a request  verdict = policy.check(principal, method, line, record, Counts(threads, turns))
                  a Refusal: answer with its code, message and data; else the line to go on with
    on an answer  line = policy.check_answer(principal, line)                   to a request of the app-server
    on a list     policy.may_touch(principal, record)                           leave out those for which it is false

`record` is that of the thread which the request names, None if the pool does not know it. What comes into being for a
principal carries its id in `ThreadRecord.owner`.

The line that goes on is encoded again from what was checked: of two members with one name a reader takes the one or the
other. Approvals: a key that may not leave the sandbox may not approve leaving it, so its threads never ask.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from codex_app_server.errors import SERVER_OVERLOADED
from codex_app_server.generated.routing import REQUESTS

from ..protocol import jsonrpc
from ..protocol.wire import ThreadRecord
from .parameters import STARTS_TURN, AccessDenied, ParameterRules, short
from .principal import FULL, LEVEL, NEEDS, Identity, granted, rule_of, size_problem
from .projects import treatment

NOT_ALLOWED = -32012
RETRY_TURN_MS = 1000


class Counts(NamedTuple):
    """Counts of a principal: its threads, its turns that run or wait."""

    threads: int = 0
    turns: int = 0


class Refusal(NamedTuple):
    """A JSON-RPC error."""

    code: int
    message: str
    data: dict[str, Any]


CLOSED = (
    "this pool cannot tell whose its threads are, and refuses all keys until its owner has put the ownership store "
    "back or accepted its loss (codex-pool keys reset-ownership)"
)
_UNKNOWN = (
    "the key of this client is not on the pool's allow-list any more; ask the pool's owner for a new one "
    "(codex-pool keys renew)"
)
NEW_THREAD = frozenset({"thread/start", "thread/fork", "review/start"})


class AccessPolicy:
    """See the module's docstring. `default_cwd` is where a thread works that names no directory."""

    def __init__(
        self,
        identities: Iterable[Identity] = (),
        *,
        default_cwd: str = "/",
        realpath: Callable[[str], str] = os.path.realpath,
    ) -> None:
        self._default_cwd = default_cwd
        self._realpath = realpath
        self._identities: Mapping[str, Identity] = {}
        self._closed = False
        self._in_use = False
        self.bounds_running = False
        """True if a key has a limit of turns that run."""
        if identities:
            self.replace(identities)

    def replace(self, identities: Iterable[Identity]) -> None:
        """Replace the allow-list. An entry without the id of its principal is ignored."""
        self._in_use = True
        self._identities = {identity.principal: identity for identity in identities if identity.principal}
        self.bounds_running = any(each.max_running_turns is not None for each in self._identities.values())

    def identity(self, principal: str) -> Identity | None:
        """Return what is known of a principal with a key on the allow-list."""
        return self._identities.get(principal)

    def name_of(self, principal: str) -> str:
        """Return the name of a principal, for people; its id if it is no longer on the list."""
        identity = self._identities.get(principal)
        return identity.name if identity is not None else principal

    def close(self, problem: str | None) -> None:
        """Refuse all clients with a key while the ownership store cannot be relied upon; None ends that."""
        self._closed = problem is not None

    def admit(self, principal: str, sessions: int) -> str | None:
        """Return why this principal, which has so many sessions, may have no further one; None when it may."""
        if principal == "":
            return None
        if self._closed:
            return CLOSED
        identity = self._identities.get(principal)
        if identity is None:
            return _UNKNOWN
        if sessions >= identity.max_sessions:
            return (
                f"{identity.name} has {sessions} sessions; its key allows {identity.max_sessions}: close one, "
                "or ask the pool's owner for a key with a higher --max-sessions"
            )
        return None

    def is_limited(self, principal: str) -> bool:
        """True for all but the pool's owner and clients with an admin key."""
        identity = self._identities.get(principal)
        return principal != "" and (identity is None or not identity.admin)

    def may_touch(self, principal: str, record: ThreadRecord | None) -> bool:
        """Return True if this principal may see and use this thread."""
        return not self.is_limited(principal) or (record is not None and record.owner == principal)

    @property
    def is_in_use(self) -> bool:
        """True once an allow-list has been read."""
        return self._in_use

    def is_known(self, principal: str) -> bool:
        """Return True for the pool's owner, and for a principal with a key on the allow-list."""
        return principal == "" or principal in self._identities

    def check_size(self, principal: str, line: bytes) -> Refusal | None:
        """Return why a line is more than this principal may send, before it is decoded; None if it is not."""
        identity = self._identities.get(principal)
        message = size_problem(identity, line) if identity is not None else _UNKNOWN
        if message is None:
            return None
        what = "identity" if identity is None else "message"
        return Refusal(NOT_ALLOWED, message, {"kind": "refused", "what": what})

    def check(
        self,
        principal: str,
        method: str,
        line: bytes,
        record: ThreadRecord | None,
        counts: Counts,
        *,
        own: str | None = None,
    ) -> bytes | Refusal:
        """Check a request; return the line to go on with, or why not.

        `own` is the thread that it names, if it is this principal's in the store; no worker may have it.
        """
        if principal == "":
            return line
        identity = self._identities.get(principal)
        try:
            if self._closed:
                raise AccessDenied("ownership", CLOSED)
            if identity is None:
                raise AccessDenied("identity", _UNKNOWN)
            if not granted(identity, method):
                shown = method if method in REQUESTS else short(method)
                remedy = f"ask the pool's owner for a key with --allow {shown}"
                if rule_of(method) == "refused":
                    remedy = "no key but an admin's may call it"
                raise AccessDenied("method", f"{shown} is not granted to {identity.name}: {remedy}")
            if identity.admin:
                bound = _check_bounds(identity, method, counts)
                return line if bound is None else bound
            self._check_level(identity, method)
            request, params = _read(line, method)
            self._check_thread(identity, method, params, record, own)
            ParameterRules(identity, method, record, self._default_cwd, self._realpath).apply(params)
            bound = _check_bounds(identity, method, counts)
            if bound is not None:
                return bound
        except AccessDenied as refused:
            return Refusal(NOT_ALLOWED, str(refused), {"kind": "refused", "what": refused.what})
        if params or "params" in request:
            request["params"] = params
        return jsonrpc.encode(request)

    def check_answer(self, principal: str, line: bytes) -> bytes:
        """A client's answer to a request of the app-server: as it came, or a refusal in its place."""
        identity = self._identities.get(principal)
        if principal == "" or (identity is not None and (identity.admin or identity.sandbox == FULL)):
            return line
        request_id = None
        try:
            answer = msgspec.json.decode(line)
            request_id, result = answer.get("id"), answer.get("result")
            if "error" in answer or _widens_nothing(result):
                kept = {"id": request_id, **({"error": answer["error"]} if "error" in answer else {"result": result})}
                return jsonrpc.encode(kept)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AttributeError):
            pass  # What cannot be read is no consent.
        sandbox = identity.sandbox if identity is not None else "none"
        message = f"{self.name_of(principal)} may not approve what its sandbox denies; its key allows {sandbox}"
        return jsonrpc.error_line(jsonrpc.encode(request_id), NOT_ALLOWED, message)

    def _check_level(self, identity: Identity, method: str) -> None:
        needed = NEEDS.get(method)
        if needed is not None and LEVEL[identity.sandbox] < LEVEL[needed]:
            raise AccessDenied(
                "sandbox",
                f"{method} acts outside of the sandbox and needs a key with --sandbox {needed}; that of "
                f"{identity.name} has {identity.sandbox}",
            )
        if identity.sandbox != FULL and treatment(method) is None:
            raise AccessDenied(
                "method",
                f"{method}: this pool does not know what it takes from the directory of a project; it needs a key "
                f"with --sandbox {FULL}",
            )

    def _check_thread(
        self, identity: Identity, method: str, params: dict[str, Any], record: ThreadRecord | None, own: str | None
    ) -> None:
        thread_id = params.get("threadId")
        if thread_id is None:
            if method in STARTS_TURN:
                raise AccessDenied(
                    "params", f"{method}: threadId is missing; name the thread on which the turn is to run"
                )
            return
        known = record is not None and record.thread_id == thread_id
        if thread_id != own and (not known or not self.may_touch(identity.principal, record)):
            # The same words for what is another's and what is not there: others would reveal which.
            raise AccessDenied(
                "thread",
                f"{method}: thread {short(thread_id)} is none of {identity.name}'s; use one that a client with "
                "this key has started",
            )
        if method in STARTS_TURN and record is None and identity.sandbox != FULL:
            raise AccessDenied(
                "thread", f"{method}: no app-server has thread {short(thread_id)}; resume it first (thread/resume)"
            )


def _read(line: bytes, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        request = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AccessDenied("message", f"{method}: this cannot be read: {error}; send one JSON object") from None
    if not isinstance(request, dict) or request.get("method") != method:
        raise AccessDenied("message", f"{method}: this is not one request of that method; send one JSON object")
    params = request.get("params")
    if params is None:
        return request, {}
    if not isinstance(params, dict):
        raise AccessDenied("params", f"{method}: params is {short(params)}; expected an object")
    return request, params


def _check_bounds(identity: Identity, method: str, counts: Counts) -> Refusal | None:
    if method in NEW_THREAD and counts.threads >= identity.max_threads:
        raise AccessDenied(
            "threads",
            f"{method}: {identity.name} has {counts.threads} threads; its key allows {identity.max_threads}: delete or "
            "archive some, or ask the pool's owner for a higher --max-threads",
        )
    if method in STARTS_TURN and counts.turns >= identity.max_turns:
        message = (
            f"{method}: {identity.name} has {counts.turns} turns running or waiting; its key allows "
            f"{identity.max_turns}: retry when one has ended, or ask the pool's owner for a higher --max-turns"
        )
        return Refusal(SERVER_OVERLOADED, message, {"retryAfterMs": RETRY_TURN_MS, "what": "turns"})
    return None


def _widens_nothing(result: Any) -> bool:
    """True if an answer declines, or only gives something to a tool that the client has brought itself."""
    if not isinstance(result, dict):
        return False
    members = set(result)
    if members <= {"answers"} or members <= {"contentItems", "success"}:
        return True
    if members == {"decision"}:
        return result["decision"] in ("decline", "cancel", "denied", "abort", "timed_out")
    return members <= {"action", "content", "_meta"} and result.get("action") in ("decline", "cancel")
