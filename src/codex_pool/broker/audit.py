"""Records of the audit log: decisions about requests, sessions, answers and keys. Pure.

    event      decision            a client
    session    allowed, refused    connects, or comes back
    request    allowed, refused    sends a request; refused also when it is, after it was allowed, before it begins
    answer     allowed, refused    answers a request of an app-server, such as one for an approval
    refused    refused             was refused in the ingress or the gateway: counted there, by reason
    key        added, changed,     (the allow-list was read again; a key that has expired is removed)
               removed

No record has a text of a prompt, an answer, a command or a secret: of parameters only known words and ids are taken,
bounded in length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..auth.principal import Identity
from ..sandbox_modes import SANDBOX_MODES
from .counts import OWNER
from .entities import Session
from .request import Request

MAX_CHARS = 128
KEY_CHARS = 12
OTHER = "other"
_POLICIES = frozenset({"untrusted", "on-failure", "on-request", "never"})
_SANDBOX_POLICIES = {
    "dangerFullAccess": "danger-full-access",
    "readOnly": "read-only",
    "workspaceWrite": "workspace-write",
    "externalSandbox": "external-sandbox",
}
_DECISIONS = frozenset(
    {
        "accept",
        "acceptForSession",
        "acceptWithExecpolicyAmendment",
        "applyNetworkPolicyAmendment",
        "approved",
        "approved_for_session",
        "decline",
        "cancel",
        "denied",
        "abort",
        "timed_out",
    }
)

Record = dict[str, Any]


def key_id(public_key: str) -> str | None:
    """The id of a key: the beginning of its public key; None for a session of this user, which has none."""
    return public_key[:KEY_CHARS] or None


def of_session(principal: str, name: str, key: str, session: str, client: str, refused: str | None) -> Record:
    """The record of a client that connects; `refused`: for which reason it may not."""
    who = _who(principal, name, key)
    return {"event": "session", **who, "session": _cut(session), "client": _cut(client), **_decision(refused)}


def of_request(session: Session, name: str, request: Request, refused: str | None) -> Record:
    """The record of a request; `refused`: for which reason it may not be carried out."""
    record: Record = {"event": "request", **_of_session(session, name), "method": _cut(request.method)}
    if request.thread_id:
        record["threadId"] = _cut(request.thread_id)
    if request.turn_id:
        record["turnId"] = _cut(request.turn_id)
    return record | _settings(request) | _operands(request) | _decision(refused)


def of_line(session: Session, name: str, refused: str) -> Record:
    """The record of a line that is refused before it is decoded."""
    return {"event": "request", **_of_session(session, name), **_decision(refused)}


def of_answer(session: Session, name: str, worker: str, line: bytes, refused: str | None) -> Record:
    """The record of an answer to a request of an app-server."""
    return {
        "event": "answer",
        **_of_session(session, name),
        "worker": _cut(worker),
        "answer": _answer_in(line),
        **_decision(refused),
    }


def of_refusals(counts: Mapping[str, int]) -> Iterator[Record]:
    """The records of what another process has refused, by reason."""
    for reason, count in counts.items():
        yield {"event": "refused", "count": count, **_decision(reason)}


def of_keys(before: Mapping[str, Identity], after: Mapping[str, Identity]) -> Iterator[Record]:
    """The records of what has changed on the allow-list; both by public key."""
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        identity = new or old
        if old == new or identity is None:
            continue
        record: Record = {"event": "key", **_who(identity.principal, identity.name, key)}
        if old is None or new is None:
            yield {**record, "decision": "added" if old is None else "removed"}
            continue
        was, fields = msgspec.structs.asdict(old), msgspec.structs.asdict(new)
        now = {name: value for name, value in fields.items() if value != was[name]}
        yield {**record, "decision": "changed", "now": now}


def _who(principal: str, name: str, key: str) -> Record:
    return {"principal": principal or None, "name": name or OWNER, "key": key_id(key)}


def _of_session(session: Session, name: str) -> Record:
    who = _who(session.principal, name, session.key)
    return {**who, "session": _cut(session.id.session), "client": _cut(session.client)}


def _decision(refused: str | None) -> Record:
    return {"decision": "allowed"} if refused is None else {"decision": "refused", "reason": refused}


def _settings(request: Request) -> Record:
    """The sandbox and the approval policy that a request names."""
    found: Record = {}
    sandbox = request.param("sandbox", Any)
    if sandbox is not None:
        found["sandbox"] = sandbox if sandbox in SANDBOX_MODES else OTHER
    policy = request.param("sandboxPolicy", Any)
    if policy is not None:
        kind = policy.get("type") if isinstance(policy, dict) else None
        found["sandbox"] = _SANDBOX_POLICIES.get(kind, OTHER) if isinstance(kind, str) else OTHER
    approval = request.param("approvalPolicy", Any)
    if approval is not None:
        found["approvalPolicy"] = approval if isinstance(approval, str) and approval in _POLICIES else OTHER
    return found


def _operands(request: Request) -> Record:
    """Subject of a command of an operator."""
    if not request.method.startswith("pool/"):
        return {}
    names = ("worker", "session", "workers", "now", "approvalGraceS")
    found = {name: request.param(name, str | int | float) for name in names}
    operands = {name: _cut(value) if isinstance(value, str) else value for name, value in found.items()}
    found = {name: value for name, value in operands.items() if value is not None}
    return {"parameters": found} if found else {}


def _answer_in(line: bytes) -> str:
    try:
        message = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return OTHER
    result = message.get("result") if isinstance(message, dict) else None
    if not isinstance(result, dict):
        return "error"
    decision = result.get("decision", result.get("action"))
    if isinstance(decision, dict) and len(decision) == 1:
        (decision,) = decision
    return decision if isinstance(decision, str) and decision in _DECISIONS else OTHER


def _cut(text: str) -> str:
    return text[:MAX_CHARS]
