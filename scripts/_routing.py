"""Emits `generated/routing.py`: every method with its types, its scope, and where its thread and turn ids live."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from _schema import Protocol, SchemaError, pascal, reference

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCOPES = ("owner", "any", "all", "account", "renewing", "reloading", "merged", "session", "refused")
THREAD_KEYS = ("threadId", "conversationId")
TURN_KEYS = ("turnId", "expectedTurnId")
# The schema does not name results. Most are called like the params or the method; these are not.
RESULTS = {
    "account/gatewayOAuth/cancel": "GatewayOAuthCancelResponse",
    "account/gatewayOAuth/login": "GatewayOAuthLoginResponse",
    "account/gatewayOAuth/read": "GatewayOAuthReadResponse",
    "account/logout": "LogoutAccountResponse",
    "account/workspaceMessages/read": "GetWorkspaceMessagesResponse",
    "config/batchWrite": "ConfigWriteResponse",
    "config/mcpServer/reload": "McpServerRefreshResponse",
    "config/value/write": "ConfigWriteResponse",
    "externalAgentConfig/import/readHistories": "ExternalAgentConfigImportHistoriesReadResponse",
}

PRELUDE = '''
"""Where each method of the protocol goes: its types by name, its scope, and where its thread and turn ids live.

Imports nothing but `typing`: processes that only route must not load pydantic.
"""

from __future__ import annotations

from typing import NamedTuple

RUNTIME_VERSION = {version!r}


class Request(NamedTuple):
    """One method that a client calls."""

    params: str | None
    """Name of the params in `models`; None when the method has none."""
    result: str
    """Name of the result in `models`."""
    scope: str
    """One of the lists in scripts/scopes.toml, or owner; "unassigned" until a person has decided."""
    thread: str | None
    """Path of the thread id in the params (it may be optional there); None when they have none."""
    turn: str | None
    """Path of the turn id in the params."""
    result_thread: bool
    """The result carries `thread.id`."""
    result_turn: bool
    """The result carries `turn.id`: the request starts or joins a turn."""
    experimental: bool


class Notification(NamedTuple):
    """One method that the runtime tells."""

    payload: str
    """Name of the payload in `models`."""
    thread: str | None
    """Path of the thread id in the payload."""
    turn: str | None
    """Path of the turn id in the payload."""
    droppable: bool
    """A piece of something that comes again whole: a slow reader may lose it."""
    experimental: bool


class ServerRequest(NamedTuple):
    """One method that the runtime calls and a client answers."""

    params: str
    result: str
    thread: str | None
    turn: str | None


'''


def read_scopes(path: Path) -> dict[str, str]:
    """Reads the hand-kept table, `scope = [methods]`, as method -> scope."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    scopes: dict[str, str] = {}
    for scope, methods in table.items():
        if scope not in SCOPES:
            raise SchemaError(f"{path.name}: unknown scope {scope!r}; expected one of {', '.join(SCOPES)}")
        for method in methods:
            if method in scopes:
                raise SchemaError(f"{path.name}: {method} is in {scopes[method]} and in {scope}; keep one")
            scopes[method] = scope
    return scopes


def emit_routing(protocol: Protocol, scopes: dict[str, str]) -> str:
    """The text of routing.py. Raises SchemaError for a method in `scopes` or a type that is not in the schema."""
    stale = sorted(scopes.keys() - protocol.requests.keys())
    if stale:
        raise SchemaError(f"scopes.toml names methods that the schema does not have: {', '.join(stale)}; remove them")
    return PRELUDE.format(version=protocol.version).lstrip("\n") + "\n\n".join(
        [
            _table("REQUESTS", "Request", _requests(protocol, scopes)),
            _table("NOTIFICATIONS", "Notification", _notifications(protocol)),
            _table("SERVER_REQUESTS", "ServerRequest", _server_requests(protocol)),
            _methods(methods_of_params(protocol)),
        ]
    )


def methods_of_params(protocol: Protocol) -> dict[str, str]:
    """The classes that are the params of one method and of no other - of a union, its branches - with that method."""
    methods: dict[str, list[str]] = {}
    for method, params in protocol.requests.items():
        for name in _classes(protocol, params):
            methods.setdefault(name, []).append(method)
    return {name: found[0] for name, found in sorted(methods.items()) if len(found) == 1}


def _classes(protocol: Protocol, name: str | None) -> list[str]:
    if name is None:
        return []
    if name not in protocol.unions:
        return [name]
    union = protocol.unions[name]
    return [part for b in union.branches for part in _classes(protocol, reference(b))] + _classes(
        protocol, union.fallback
    )


def result_name(protocol: Protocol, method: str, params: str | None) -> str:
    """The name of a method's result; raises SchemaError naming the candidates when the schema has none of them."""
    candidates = [RESULTS[method]] if method in RESULTS else []
    if params is not None:
        candidates.append(re.sub(r"(Params)?$", "Response", params, count=1))
    candidates.append(f"{pascal(method)}Response")
    for name in candidates:
        if name in protocol:
            return name
    raise SchemaError(f"{method}: none of {', '.join(candidates)} is in the schema; add its result to RESULTS")


def _requests(protocol: Protocol, scopes: dict[str, str]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for method, params in protocol.requests.items():
        result = result_name(protocol, method, params)
        thread = _path(protocol, params, THREAD_KEYS, "thread")
        by_rule = "owner" if thread in protocol.required(params) else "unassigned"
        rows[method] = {
            "params": params,
            "result": result,
            "scope": scopes.get(method, by_rule),
            "thread": thread,
            "turn": _path(protocol, params, TURN_KEYS, "turn"),
            "result_thread": _path(protocol, result, (), "thread") is not None,
            "result_turn": _path(protocol, result, (), "turn") is not None,
            "experimental": method in protocol.experimental,
        }
    return rows


def _notifications(protocol: Protocol) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for method, payload in protocol.notifications.items():
        thread = _path(protocol, payload, THREAD_KEYS, "thread")
        # Output of a bare process has no thread and no final item that repeats it: losing a piece would corrupt it.
        piece = re.search(r"([dD]elta|[pP]rogress)$", method) is not None
        rows[method] = {
            "payload": payload,
            "thread": thread,
            "turn": _path(protocol, payload, TURN_KEYS, "turn"),
            "droppable": piece and thread is not None,
            "experimental": method in protocol.experimental,
        }
    return rows


def _server_requests(protocol: Protocol) -> dict[str, dict[str, Any]]:
    return {
        method: {
            "params": params,
            "result": result_name(protocol, method, params),
            "thread": _path(protocol, params, THREAD_KEYS, "thread"),
            "turn": _path(protocol, params, TURN_KEYS, "turn"),
        }
        for method, params in protocol.server_requests.items()
    }


def _path(protocol: Protocol, name: str | None, keys: tuple[str, ...], nested: str) -> str | None:
    """Where the id is: directly under one of `keys`, or in the `id` of the object called `nested`."""
    properties = protocol.properties(name)
    for key in keys:
        if key in properties:
            return key
    if nested in properties and "id" in protocol.properties(reference(properties[nested])):
        return f"{nested}.id"
    return None


def _table(name: str, row: str, rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"{name}: dict[str, {row}] = {{"]
    for method, values in sorted(rows.items()):
        arguments = ", ".join(f"{key}={_literal(value)}" for key, value in values.items())
        lines.append(f"    {_literal(method)}: {row}({arguments}),")
    return "\n".join([*lines, "}"]) + "\n"


def _methods(methods: dict[str, str]) -> str:
    lines = [f'    "{name}": "{method}",' for name, method in methods.items()]
    about = '"""The one method that a class of params in `models` belongs to."""'
    return "\n".join(["METHODS: dict[str, str] = {", *lines, "}", about]) + "\n"


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
