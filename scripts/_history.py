"""The protocol of many codex versions in one file, `protocol_history.json`: what was there from when to when.

Each name has a span of versions, as text: `0.154.0-` is from that version to the newest one looked at,
`0.154.0-0.161.0` ends with the last version that has it, and spans are separated by a comma. Read are versions on the
package index and on npm, so that "first" is the first of these. A version may be added at any time, in any order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _routing import result_name
from _schema import Protocol, Schema, SchemaError, reference

PATH = Path(__file__).resolve().parent / "protocol_history.json"
# The parts of the file, in its order: what a name in it is.
KINDS = ("requests", "params", "notifications", "serverRequests", "types", "required")
# A field of the params of a method, and one of a type, is `OWNER FIELD`.
SEPARATOR = " "

Version = tuple[int, ...]


def number(version: str) -> Version:
    """The numbers of a version, by which versions are in order. Raises SchemaError."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        raise SchemaError(f"{version!r} is no version; expected one like 0.163.0")
    return tuple(map(int, found.groups()))


@dataclass
class History:
    """`versions` in order, and for each kind the versions that have a name."""

    versions: list[str] = field(default_factory=list)
    names: dict[str, dict[str, frozenset[str]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def add(self, protocol: Protocol) -> None:
        """Add a version, or replace what was known of it."""
        version = protocol.version
        self.versions = sorted({*self.versions, version}, key=number)
        for kind, present in _summary(protocol).items():
            names = self.names[kind]
            for name in names.keys() | present:
                names[name] = names.get(name, frozenset()) - {version} | ({version} if name in present else frozenset())

    def since(self, kind: str, name: str) -> str | None:
        """The first version that has a name; None if the oldest one has it, or none."""
        first = min(self.names[kind].get(name, ()), key=number, default=None)
        return None if first == self.versions[0] else first

    def gone(self, kind: str, name: str) -> str | None:
        """The first version that has a name no more; None if the newest one has it, or none."""
        having = self.names[kind].get(name)
        last = max(having, key=number) if having else self.versions[-1]
        return next((version for version in self.versions if number(version) > number(last)), None)

    def is_required_by_all(self, type_name: str, field_name: str) -> bool:
        """True if every version that has the type always sends the field."""
        having = self.names["types"].get(type_name, frozenset())
        return having <= self.names["required"].get(f"{type_name}{SEPARATOR}{field_name}", frozenset())

    def dump(self) -> str:
        """The text of the file."""
        parts = [f'  "versions": {json.dumps(self.versions)}']
        for kind in KINDS:
            # Of a type that has come and gone with all of its fields, one line says so.
            by_span: dict[str, dict[str, list[str]]] = {}
            for name, having in sorted(self.names[kind].items()):
                if having:
                    owner, _, own = name.partition(SEPARATOR)
                    by_span.setdefault(owner, {}).setdefault(self._span(having), []).append(own)
            rows = [f"    {json.dumps(owner)}: {json.dumps(spans)}" for owner, spans in by_span.items()]
            parts.append(f'  "{kind}": {{\n' + ",\n".join(rows) + "\n  }")
        return "{\n" + ",\n".join(parts) + "\n}\n"

    def _span(self, having: frozenset[str]) -> str:
        spans: list[list[str]] = []
        before = False
        for version in self.versions:
            if version in having:
                if before:
                    spans[-1][1] = version
                else:
                    spans.append([version, version])
            before = version in having
        return ",".join(f"{first}-{'' if last == self.versions[-1] else last}" for first, last in spans)


def read_history(path: Path = PATH) -> History:
    """The history in a file. Raises SchemaError for one that was not written by `History.dump`."""
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        history = History(versions=table["versions"])
        for kind in KINDS:
            for owner, spans in table[kind].items():
                for span, fields in spans.items():
                    having = _having(span, history.versions)
                    for own in fields:
                        history.names[kind][f"{owner}{SEPARATOR}{own}" if own else owner] = having
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise SchemaError(f"{path} cannot be read as the history of the protocol: {error!r}; restore it") from None
    return history


def _having(span: str, versions: list[str]) -> frozenset[str]:
    found: set[str] = set()
    for part in span.split(","):
        first, _, last = part.partition("-")
        found |= {v for v in versions if number(first) <= number(v) <= number(last or versions[-1])}
    return frozenset(found)


def _summary(protocol: Protocol) -> dict[str, set[str]]:
    """The names of each kind that a version has."""
    received = reachable(protocol, received_types(protocol))
    objects = [name for name in received if name in protocol.definitions]
    return {
        "requests": set(protocol.requests),
        "params": {
            f"{method}{SEPARATOR}{each}"
            for method, params in protocol.requests.items()
            for each in all_properties(protocol, params)
        },
        "notifications": set(protocol.notifications),
        "serverRequests": set(protocol.server_requests),
        "types": set(objects),
        "required": {f"{name}{SEPARATOR}{each}" for name in objects for each in protocol.required(name)},
    }


def all_properties(protocol: Protocol, name: str | None) -> Schema:
    """The properties of a definition; of a union, those that any of its branches has."""
    if name in protocol.unions:
        branches = [all_properties(protocol, reference(branch)) for branch in protocol.unions[name].branches]
        return {key: value for branch in branches for key, value in branch.items()}
    return protocol.properties(name)


def received_types(protocol: Protocol) -> list[str]:
    """The types that the runtime sends as a whole: results, payloads, and the params of its own requests."""
    found = [*protocol.notifications.values(), *protocol.server_requests.values()]
    for method, params in protocol.requests.items():
        try:
            found.append(result_name(protocol, method, params))
        except SchemaError:
            continue  # of an older version, which called it otherwise
    return found


def reachable(protocol: Protocol, names: Iterable[str]) -> set[str]:
    """These types and all that they refer to."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            union = protocol.unions.get(name)
            waiting += _references(protocol.definitions.get(name) if union is None else union.branches)
            waiting += [union.fallback] if union is not None and union.fallback else []
    return seen


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [name for part in schema for name in _references(part)]
    if not isinstance(schema, Mapping):
        return []
    own = [str(schema["$ref"]).rsplit("/", 1)[-1]] if isinstance(schema.get("$ref"), str) else []
    return own + [name for key, part in schema.items() if key != "$ref" for name in _references(part)]


# The handshake: nothing in its answer is worth a failed start.
_ALL_OF = frozenset({"InitializeResponse"})


def lenient_fields(protocol: Protocol, history: History) -> dict[str, frozenset[str]]:
    """The fields that are None where the runtime does not send them, though its schema requires them, by type.

    These are the fields that may be null anyway, and those that not every version of the history sends.
    """
    found: dict[str, frozenset[str]] = {}
    tags = {reference(branch): union.tag for union in protocol.unions.values() for branch in union.branches}
    for name in sorted(reachable(protocol, received_types(protocol)) & protocol.definitions.keys()):
        properties = protocol.properties(name)
        fields = frozenset(
            each
            for each in protocol.required(name)
            if each in properties
            and each != tags.get(name)
            and len(properties[each].get("enum", ())) != 1
            and (
                name in _ALL_OF
                or may_be_null(properties[each])
                or (history.versions and not history.is_required_by_all(name, each))
            )
        )
        if fields:
            found[name] = fields
    return found


def may_be_null(schema: Schema) -> bool:
    """True for a value that may be null; a schema that says nothing takes anything."""
    kinds = schema.get("type")
    if schema == {} or kinds == "null" or (isinstance(kinds, list) and "null" in kinds):
        return True
    return any(may_be_null(branch) for key in ("anyOf", "oneOf") for branch in schema.get(key, ()) if branch)
