"""The difference between the protocols of two codex versions, as a report for maintainers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from _history import all_properties, reachable, received_types
from _schema import Protocol, Schema, reference


def report(old: Protocol, new: Protocol) -> str:
    """The report in Markdown: methods, types, fields and values that were added, removed or changed."""
    lines = [f"# The protocol of codex {new.version} against {old.version}", ""]
    lines += _methods("Requests", old.requests, new.requests, old.experimental, new.experimental)
    lines += _methods("Notifications", old.notifications, new.notifications, old.experimental, new.experimental)
    lines += _methods("Requests of the app-server", old.server_requests, new.server_requests, frozenset(), frozenset())
    before, after = _types(old), _types(new)
    lines += _section("Types added", (f"`{name}`" for name in sorted(after - before)))
    lines += _section("Types removed", (f"`{name}`" for name in sorted(before - after)))
    received = reachable(old, received_types(old)) | reachable(new, received_types(new))
    fields, values = [], []
    for name in sorted(before & after):
        where = "received" if name in received else "sent"
        fields += _fields(name, where, old, new)
        values += _values(name, old, new)
    lines += _section("Fields", fields) + _section("Values and branches", values)
    return "\n".join(lines) + "\n"


def _section(title: str, rows: Iterable[str]) -> list[str]:
    found = list(rows)
    return [f"## {title} ({len(found)})", "", *(f"- {row}" for row in found), ""] if found else []


def _methods(
    title: str,
    old: dict[str, Any],
    new: dict[str, Any],
    was_experimental: frozenset[str],
    is_experimental: frozenset[str],
) -> list[str]:
    def named(method: str, experimental: frozenset[str]) -> str:
        return f"`{method}`" + (" (experimental)" if method in experimental else "")

    rows = [f"added: {named(method, is_experimental)}" for method in sorted(new.keys() - old.keys())]
    rows += [f"removed: {named(method, was_experimental)}" for method in sorted(old.keys() - new.keys())]
    for method in sorted(old.keys() & new.keys()):
        if old[method] != new[method]:
            rows.append(f"changed: `{method}`: {old[method]} -> {new[method]}")
        if (method in was_experimental) != (method in is_experimental):
            rows.append(f"changed: `{method}` is {'experimental' if method in is_experimental else 'stable'} now")
    return _section(title, rows)


def _types(protocol: Protocol) -> set[str]:
    return {name for name in (*protocol.definitions, *protocol.unions) if not name.startswith("Unrecognized")}


def _fields(name: str, where: str, old: Protocol, new: Protocol) -> list[str]:
    before, after = all_properties(old, name), all_properties(new, name)
    rows = [f"added: `{name}.{field}`: {_shape(after[field])} ({where})" for field in after if field not in before]
    rows += [f"removed: `{name}.{field}`: {_shape(before[field])} ({where})" for field in before if field not in after]
    for field in before.keys() & after.keys():
        one, other = _shape(before[field]), _shape(after[field])
        one += ", required" if field in old.required(name) else ""
        other += ", required" if field in new.required(name) else ""
        if one != other:
            rows.append(f"changed: `{name}.{field}`: {one} -> {other} ({where})")
    return sorted(rows)


def _values(name: str, old: Protocol, new: Protocol) -> list[str]:
    before, after = _known(name, old), _known(name, new)
    rows = [f"added: {value!r} of `{name}`" for value in after if value not in before]
    return rows + [f"removed: {value!r} of `{name}`" for value in before if value not in after]


def _known(name: str, protocol: Protocol) -> list[Any]:
    union = protocol.unions.get(name)
    return list(protocol.definitions.get(name, {}).get("enum", ())) if union is None else list(union.known)


def _shape(schema: Schema | bool) -> str:
    """A schema in a few words."""
    if not isinstance(schema, dict):
        return "anything"
    nullable = any(branch.get("type") == "null" for branch in schema.get("anyOf", ()))
    name = reference(schema)
    if name is not None:
        return name + (" or null" if nullable else "")
    if "const" in schema or len(schema.get("enum", ())) == 1:
        return repr(schema.get("const", schema.get("enum", [None])[0]))
    kinds = schema.get("type")
    if kinds is None:
        parts = [_shape(branch) for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ()))]
        return " or ".join(parts) or "anything"
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    words = {"array": f"list of {_shape(schema.get('items', {}))}", "object": "object"}
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        words["object"] = f"object of {_shape(values)}"
    return " or ".join(words.get(kind, kind) for kind in names)
