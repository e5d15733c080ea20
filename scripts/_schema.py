"""Reads the JSON schema that `codex app-server` prints about itself and puts it into one regular form.

The regular form (`Protocol`) has flat definitions, no prose, and no inline union branches: every branch of every union
is a named definition of its own, so that names are stable and the emitters have nothing left to decide.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

BUNDLE = "codex_app_server_protocol.schemas.json"
# What the JSON-RPC envelope looks like is the transport's business; ClientRequest and its like are read, not emitted.
ENVELOPES = frozenset(
    {
        "ClientNotification",
        "ClientRequest",
        "JSONRPCError",
        "JSONRPCErrorError",
        "JSONRPCMessage",
        "JSONRPCNotification",
        "JSONRPCRequest",
        "JSONRPCResponse",
        "ServerNotification",
        "ServerRequest",
    }
)
PROSE = frozenset({"$schema", "description", "title", "examples"})
# Branches whose literals give the same name: (union, literal) -> name.
BRANCH_NAMES = {
    ("McpServerElicitationRequestParams", "openaiForm"): "OpenaiFormCamelMcpServerElicitationRequestParams",
}

Schema = dict[str, Any]


class SchemaError(Exception):
    """The schema has a shape the generator does not know; the message says where, what, and what to change."""


@dataclass(frozen=True)
class Union:
    """A definition that is one of several branches."""

    branches: list[Schema]
    tag: str | None = None  # wire name of the literal property that tells the branches apart, if they have one
    known: tuple[str | int, ...] = ()  # the literals of the tag; without one, the key that only this or that branch has
    fallback: str | None = None  # the branch for what a newer runtime may send


@dataclass
class Protocol:
    """The whole protocol: definitions by name, methods by kind."""

    version: str
    definitions: dict[str, Schema] = field(default_factory=dict)  # objects, enums and plain aliases
    unions: dict[str, Union] = field(default_factory=dict)
    requests: dict[str, str | None] = field(default_factory=dict)  # method -> name of its params
    notifications: dict[str, str] = field(default_factory=dict)
    server_requests: dict[str, str] = field(default_factory=dict)
    experimental: frozenset[str] = frozenset()  # methods (of any kind) that stable does not have

    def properties(self, name: str | None) -> Schema:
        """The properties of a definition by wire name; of a union, those that all its branches share."""
        if name is None:
            return {}
        if name in self.unions:
            branches = [self.properties(reference(branch)) for branch in self.unions[name].branches]
            shared = set(branches[0]).intersection(*branches[1:])
            return {key: branches[0][key] for key in branches[0] if key in shared}
        properties: Schema = self.definitions.get(name, {}).get("properties", {})
        return properties

    def required(self, name: str | None) -> frozenset[str]:
        """The wire names of the properties that must be there."""
        if name is None:
            return frozenset()
        if name in self.unions:
            return frozenset.intersection(*(self.required(reference(b)) for b in self.unions[name].branches))
        return frozenset(self.definitions.get(name, {}).get("required", ()))

    def __contains__(self, name: str) -> bool:
        return name in self.definitions or name in self.unions


def reference(schema: Schema) -> str | None:
    """The name a schema refers to, also through a nullable or single-branch wrapper; None when it is none."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    for key in ("anyOf", "allOf", "oneOf"):
        branches = [b for b in schema.get(key, ()) if b.get("type") != "null"]
        if len(branches) == 1:
            return reference(branches[0])
    return None


def pascal(text: str) -> str:
    """`on-request` or `agentMessage` -> `OnRequest`, `AgentMessage`."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^0-9A-Za-z]+", text) if part)


def dump_schema(codex: Path, out: Path, *, experimental: bool) -> None:
    """Lets the binary write its schema into `out`. Raises SchemaError with its stderr when it fails."""
    command = [str(codex), "app-server", "generate-json-schema", *(["--experimental"] if experimental else [])]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SchemaError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")


def binary_version(codex: Path) -> str:
    """The version the binary gives itself: `codex-cli 0.163.0` -> `0.163.0`."""
    try:
        done = subprocess.run([str(codex), "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise SchemaError(f"{codex} cannot be run: {error}; give the path of a codex binary") from None
    found = re.search(r"\d+\.\d+\.\d+\S*", done.stdout)
    if done.returncode != 0 or found is None:
        raise SchemaError(f"{codex} --version gave {done.stdout.strip()!r}; expected a line like 'codex-cli 0.163.0'")
    return found.group()


def load(version: str, stable: Path, experimental: Path) -> Protocol:
    """Reads both dumps and merges them: everything experimental knows, marked where stable does not know it."""
    raw_stable, raw = _definitions(stable), _definitions(experimental)
    for name in sorted(raw_stable.keys() - raw.keys()):
        raw[name] = raw_stable[name]
    for name, schema in raw_stable.items():
        missing = schema.get("properties", {}).keys() - raw[name].get("properties", {}).keys()
        if missing:
            raise SchemaError(f"{name}: stable has {sorted(missing)}, experimental has not; expected a superset")
        if "required" in raw[name]:
            # What only experimental knows cannot be required of those who did not ask for it.
            raw[name]["required"] = [field for field in raw[name]["required"] if field in schema.get("required", ())]
    protocol = Protocol(version)
    known_to_stable: set[str] = set()
    for kind in ("ClientRequest", "ServerNotification", "ServerRequest"):
        known_to_stable |= _methods(raw_stable, kind).keys()
    requests = _methods(raw, "ClientRequest")
    notifications, server_requests = _methods(raw, "ServerNotification"), _methods(raw, "ServerRequest")
    methods = requests.keys() | notifications.keys() | server_requests.keys()
    protocol.experimental = frozenset(methods - known_to_stable)
    protocol.requests = requests
    protocol.notifications = {method: _some(method, params) for method, params in notifications.items()}
    protocol.server_requests = {method: _some(method, params) for method, params in server_requests.items()}
    _Regular(protocol).add_all({name: raw[name] for name in sorted(raw.keys() - ENVELOPES)})
    return protocol


def _some(method: str, params: str | None) -> str:
    if params is None:
        raise SchemaError(f"{method}: no params in the schema; expected a reference to a definition")
    return params


def _definitions(directory: Path) -> dict[str, Schema]:
    """The flat definitions of one dump: the v2 namespace laid over the top one."""
    path = directory / BUNDLE
    if not path.is_file():
        raise SchemaError(f"{path} does not exist; expected what `codex app-server generate-json-schema` writes")
    top: dict[str, Schema] = json.loads(path.read_text(encoding="utf-8"))["definitions"]
    inner: dict[str, Schema] = top.pop("v2", {})
    for name in top.keys() & inner.keys():
        if _bare(top[name]) != _bare(inner[name]):
            raise SchemaError(f"{name} means two things, inside and outside of v2; give one of them another name here")
    return top | inner


def _bare(schema: Any) -> Any:
    """A copy without prose, so that no wording of the schema gets into our files."""
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    bare = {key: _bare(value) for key, value in schema.items() if key not in PROSE and key != "properties"}
    if "properties" in schema:  # below it keys are names of fields, one of which may be `title`
        bare["properties"] = {name: _bare(value) for name, value in schema["properties"].items()}
    if "$ref" in bare:
        bare["$ref"] = "#/definitions/" + bare["$ref"].rsplit("/", 1)[-1]
    return bare


def _methods(raw: dict[str, Schema], kind: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for branch in raw[kind]["oneOf"]:
        (method,) = branch["properties"]["method"]["enum"]
        found[method] = reference(branch["properties"].get("params", {}))
    return found


class _Regular:
    """Puts raw definitions into regular form, adding a definition for every inline branch or object."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._origin: dict[str, str] = {}

    def add_all(self, raw: dict[str, Schema]) -> None:
        for name, schema in raw.items():
            if any(branch.get("type") == "null" for branch in schema.get("anyOf", ())):
                continue  # `X or null` under a name of its own: methods refer to X itself
            self._add(name, _bare(schema), origin=f"definition {name}")
        unions = self._protocol.unions
        below = {reference(branch) for union in unions.values() for branch in union.branches}
        for name in sorted(unions.keys() - below):
            union = unions[name]
            if union.fallback is None and all("$ref" in branch for branch in union.branches):
                unions[name] = replace(union, fallback=self._fallback(name, None, {}))

    def _claim(self, name: str, origin: str) -> str:
        if name in self._origin:
            raise SchemaError(f"name {name} comes from {self._origin[name]} and from {origin}; add to BRANCH_NAMES")
        if not name.isidentifier():
            raise SchemaError(f"{origin} gives the name {name!r}; expected a Python identifier")
        self._origin[name] = origin
        return name

    def _add(self, name: str, schema: Schema, origin: str) -> None:
        self._claim(name, origin)
        branches = schema.get("oneOf") or schema.get("anyOf")
        if branches is None:
            self._protocol.definitions[name] = self._named_parts(name, schema)
            return
        values = _flat_enum(branches)
        if values is not None:
            self._protocol.definitions[name] = {"type": "string", "enum": values}
        elif "properties" in schema and _tag(branches) is None:
            self._protocol.definitions[name] = self._named_parts(name, _merged(schema, branches))
        else:
            self._add_union(name, schema, branches)

    def _add_union(self, name: str, schema: Schema, branches: list[Schema]) -> None:
        common: Schema = {key: schema[key] for key in ("properties", "required") if key in schema}
        tag = _tag(branches)
        objects = [_with_common(branch, common) for branch in branches if _is_object(branch)]
        values = [value for branch in branches for value in branch.get("enum", ())]
        others = [branch for branch in branches if not _is_object(branch) and "enum" not in branch]
        labels = [_label(branch, tag) for branch in objects]
        known = tuple(labels if tag is None else [_literals(branch)[tag] for branch in objects])
        objects = [_with_constant(branch, tag) for branch in objects]
        parts: list[Schema] = []
        if values:
            self._add(f"{name}Value", {"type": "string", "enum": values}, f"the plain strings of {name}")
            parts.append(_ref(f"{name}Value"))
        for label, branch in zip(labels, objects, strict=True):
            part = BRANCH_NAMES.get((name, label), pascal(label) + name)
            self._add(part, branch, f"branch {label!r} of {name}")
            parts.append(_ref(part))
        if objects:  # the open enum and the fallback take the place of what the schema says about anything else
            others = [branch for branch in others if "$ref" in branch]
        parts += [self._named_parts(name, branch) for branch in others]
        kind = "integer" if known and isinstance(known[0], int) else "string"
        fallback = self._fallback(name, tag, common, kind) if objects else None
        self._protocol.unions[name] = Union(parts, tag, known, fallback)

    def _fallback(self, union: str, tag: str | None, common: Schema, kind: str = "string") -> str:
        name = self._claim(f"Unrecognized{union}", f"the fallback of {union}")
        body = {} if tag is None else {"properties": {tag: {"type": kind}}, "required": [tag]}
        self._protocol.definitions[name] = {"type": "object", **_with_common(body, common)}
        return name

    def _named_parts(self, owner: str, schema: Schema) -> Schema:
        """Gives inline objects, enums and unions below a definition names made of where they are."""

        def part(name: str, inner: Schema) -> Schema:
            choices = inner.get("oneOf") or inner.get("anyOf") or ()
            real = [choice for choice in choices if choice.get("type") != "null"]
            inline = "properties" in inner or (len(inner.get("enum", ())) > 1 and not _is_number(inner))
            if inline or (len(real) > 1 and any(_is_object(choice) for choice in real)):
                self._add(name, inner, f"inline part of {owner}")
                return _ref(name)
            return _map_parts(inner, lambda key, below: part(name + pascal(key), below))

        def name_of(key: str) -> str:  # what is in the branch {"granular": ...} of X is GranularXBody
            return f"{owner}Body" if owner.startswith(pascal(key)) and key else owner + pascal(key)

        return _map_parts(schema, lambda key, below: part(name_of(key), below))


def _map_parts(schema: Schema, change: Callable[[str, Schema], Schema]) -> Schema:
    """A copy of a schema with every schema directly inside it changed; the callback gets a word for where too."""
    changed = dict(schema)
    if "properties" in schema:
        changed["properties"] = {key: _each(value, key, change) for key, value in schema["properties"].items()}
    for key, word in (("items", "item"), ("additionalProperties", "value")):
        if isinstance(schema.get(key), dict):
            changed[key] = change(word, schema[key])
    for key in ("oneOf", "anyOf", "allOf"):
        if key in schema:
            changed[key] = [change("", branch) for branch in schema[key]]
    return changed


def _each(value: Any, key: str, change: Callable[[str, Schema], Schema]) -> Any:
    return change(key, value) if isinstance(value, dict) else {}  # `true` is a schema too: anything


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _is_number(schema: Schema) -> bool:
    return schema.get("type") in ("integer", "number")


def _is_object(schema: Schema) -> bool:
    return "properties" in schema


def _label(branch: Schema, tag: str | None) -> str:
    """The name of a branch: the literal of its tag, or the first key that it cannot do without."""
    if tag is not None:
        value = branch["properties"][tag]["enum"][0]
        return str(value) if isinstance(value, str) else f"{tag}{value}"
    return str(next(key for key in [*branch.get("required", ()), *branch["properties"]] if key in branch["properties"]))


def _flat_enum(branches: list[Schema]) -> list[str] | None:
    """All values, when every branch is an enum of strings."""
    if not all(branch.get("type") == "string" and "enum" in branch for branch in branches):
        return None
    return [value for branch in branches for value in branch["enum"]]


def _literals(branch: Schema) -> dict[str, str | int]:
    parts = branch.get("properties", {}).items()
    values = {key: part.get("enum", ()) for key, part in parts if isinstance(part, dict)}
    return {key: found[0] for key, found in values.items() if len(found) == 1 and not isinstance(found[0], bool)}


def _tag(branches: list[Schema]) -> str | None:
    """The property that has another literal in every branch: one of strings, or else one of integers."""
    literals = [_literals(branch) for branch in branches]
    for kind in (str, int):
        for key in literals[0]:
            values = [found.get(key) for found in literals]
            if all(isinstance(value, kind) for value in values) and len(set(values)) == len(values):
                return key
    return None


def _with_constant(branch: Schema, tag: str | None) -> Schema:
    """The branch with an integer that is its tag as a constant; other integers are open to values not yet known."""
    value = _literals(branch).get(tag or "")
    if tag is None or not isinstance(value, int):
        return branch
    return {**branch, "properties": {**branch["properties"], tag: {"type": "integer", "const": value}}}


def _with_common(branch: Schema, common: Schema) -> Schema:
    if not common:
        return branch
    properties = common.get("properties", {}) | branch.get("properties", {})
    return {**branch, "properties": properties, "required": [*common.get("required", ()), *branch.get("required", ())]}


def _merged(schema: Schema, branches: list[Schema]) -> Schema:
    """One object for `these fields and one of those`: the fields of the branches become optional."""
    properties = dict(schema["properties"])
    for branch in branches:
        for key, part in branch.get("properties", {}).items():
            properties[key] = {"anyOf": [part, {"type": "null"}]}
    kept = {key: value for key, value in schema.items() if key not in ("oneOf", "anyOf")}
    return {**kept, "properties": properties}
