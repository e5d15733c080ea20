"""Emits `generated/routing.py`: every method with its types, its scope, and where its thread and turn ids live."""

from __future__ import annotations

import functools
import itertools
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
RESULTS = Path(__file__).resolve().parent / "results.toml"
THREAD_KEYS = ("threadId", "conversationId")
TURN_KEYS = ("turnId", "expectedTurnId")
PRELUDE = '''
"""The routing of each method of the protocol: its types by name, its scope, and where its thread and turn ids live.

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


@functools.cache
def read_results(path: Path) -> dict[str, str]:
    """Reads the hand-kept table of the types of results that are not called like their methods."""
    table: dict[str, str] = tomllib.loads(path.read_text(encoding="utf-8"))
    return table


def read_scopes(path: Path) -> dict[str, str]:
    """Reads the hand-kept table, `scope = [methods]` or a table of such lists, as method -> scope."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    scopes: dict[str, str] = {}
    for scope, listed in table.items():
        if scope not in SCOPES:
            raise SchemaError(f"{path.name}: unknown scope {scope!r}; expected one of {', '.join(SCOPES)}")
        # Those that are refused are listed by the reason.
        for method in listed if isinstance(listed, list) else itertools.chain(*listed.values()):
            if method in scopes:
                raise SchemaError(f"{path.name}: {method} is in {scopes[method]} and in {scope}; keep one")
            scopes[method] = scope
    return scopes


def read_reasons(path: Path) -> dict[str, str]:
    """Reads why each method is refused through a pool."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return {method: reason for reason, methods in table.get("refused", {}).items() for method in methods}


def emit_routing(protocol: Protocol, scopes: dict[str, str], reasons: dict[str, str] | None = None) -> str:
    """The text of routing.py. Raises SchemaError for a method in `scopes` or a type that is not in the schema."""
    stale = sorted(scopes.keys() - protocol.requests.keys())
    if stale:
        raise SchemaError(f"scopes.toml names methods that the schema does not have: {', '.join(stale)}; remove them")
    return PRELUDE.format(version=protocol.version).lstrip("\n") + "\n\n".join(
        [
            _table("REQUESTS", "Request", _requests(protocol, scopes)),
            _table("NOTIFICATIONS", "Notification", _notifications(protocol)),
            _table("SERVER_REQUESTS", "ServerRequest", _server_requests(protocol)),
            _refused(reasons or {}),
            _methods(methods_of_params(protocol)),
        ]
    )


def _refused(reasons: dict[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for method, reason in sorted(reasons.items()):
        by_reason.setdefault(reason, []).append(method)
    rows = "".join(f"    **dict.fromkeys({methods!r}, {reason!r}),\n" for reason, methods in by_reason.items())
    return f"# Why methods are refused through a pool.\nREFUSED: dict[str, str] = {{\n{rows}}}"


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
    named = read_results(RESULTS)
    candidates = [named[method]] if method in named else []
    if params is not None:
        candidates.append(re.sub(r"(Params)?$", "Response", params, count=1))
    candidates.append(f"{pascal(method)}Response")
    for name in candidates:
        if name in protocol:
            return name
    tried = ", ".join(candidates)
    raise SchemaError(f"{method}: none of {tried} is in the schema; add its result to scripts/results.toml")


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
    """The place of an id: directly under one of `keys`, or in the `id` of the object called `nested`."""
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
