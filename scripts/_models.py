"""Emits the package `generated/models/`: pydantic types of all definitions, in modules that are loaded when first used.

datamodel-code-generator writes the classes. What it cannot know is added here: open enums, unions with a branch for
what is not known yet, and the division into modules. A definition lives at the deepest common prefix of the methods
that use it (`thread/realtime/start` and `thread/realtime/stop` -> `thread/realtime`); what it refers to is used by the
same methods, so it lives there or further up, and imports between modules can only go up. What a first turn needs is
kept apart from the rest, so that a start pays for nothing else.

There are no postponed annotations in them: pydantic would compile each one at import, which takes 40 % longer.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from _history import may_be_null
from _routing import methods_of_params, result_name
from _schema import Protocol, Schema, SchemaError, Union, pascal, reference

ROOT = "ProtocolRoot"  # what the generator calls the schema as a whole
GENERATOR = (
    *("-m", "datamodel_code_generator", "--input-file-type", "jsonschema"),
    *("--output-model-type", "pydantic_v2.BaseModel", "--target-python-version", "3.10"),
    *("--snake-case-field", "--remove-special-field-name-prefix", "--alias-generator", "to_camel"),
    *("--use-type-alias", "--use-subclass-enum", "--use-typed-nullable-map-values"),
    *(
        "--strict-nullable",
        "--use-default-kwarg",
        "--use-one-literal-as-default",
        "--deserialize-default-values",
        "enum",
    ),
    *("--no-formatters", "--disable-timestamp", "--disable-future-imports", "--class-name", ROOT),
)
# Limits are the runtime's to check, and the next one may draw them elsewhere.
LIMITS = frozenset({"format", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern"})
LEFT_TO_RIGHT = 'Field(union_mode="left_to_right")'
SPLIT_ABOVE = 60  # definitions in a module, before its larger branches become modules of their own
SMALL = 12  # definitions below which a branch is not worth a module
# What a client needs up to the end of its first turn; with all they refer to, a module of its own.
FIRST_TURN = "_first_turn"
FIRST_TURN_ROOTS = (
    "InitializeResponse",
    "ThreadStartParams",
    "ThreadStartResponse",
    "TurnStartParams",
    "TurnStartResponse",
    "ItemCompletedNotification",
    "ThreadTokenUsageUpdatedNotification",
    "TurnCompletedNotification",
)

PACKAGE = '''# ruff: noqa: F403
"""Wire types of the protocol: `models.Turn`, `models.ThreadItem`, ...

Fields are snake_case here and camelCase on the wire; dump with `by_alias=True`. What a newer runtime adds is kept:
unknown fields as extras, unknown enum values as pseudo members, unknown union branches as `Unrecognized...`.
Importing this package loads nothing: a name brings in its module when it is first used.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter

{imports}

MODULES: dict[str, str] = {{
{table}
}}
"""Which module a name is in."""

FIRST_TURN = ({first_turn})
"""What a first turn needs. Built in this order, each finds its parts built, where more than one has the same."""


@cache
def adapter(name: str) -> TypeAdapter[Any]:
    """Adapter that validates and dumps a type by its name; also for unions. KeyError if unknown."""
    from pydantic import BaseModel, TypeAdapter

    kind = getattr(import_module(f"{{__name__}}.{{MODULES[name]}}"), name)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        kind.model_rebuild()  # or adapters of what it is a part of would build it again
    made: TypeAdapter[Any] = TypeAdapter(kind)
    made.rebuild()
    return made


if not TYPE_CHECKING:  # or a type checker would take any name

    def __getattr__(name: str) -> Any:
        module = MODULES.get(name)
        if module is None:
            raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
        value = getattr(import_module(f"{{__name__}}.{{module}}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({{*globals(), *MODULES}})
'''
BASE = '''"""Base of all wire types."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Wire(BaseModel):
    """An object of the protocol."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        alias_generator=to_camel,
        # Texts differ, and what is remembered of each is looked for in vain; the names of fields do not.
        cache_strings="keys",
        defer_build=True,
        extra="allow",
        populate_by_name=True,
        protected_namespaces=(),
    )

    if not TYPE_CHECKING:  # or a type checker would take any attribute

        def __getattr__(self, name: str) -> Any:
            """`root`: the object itself, for code that expects variants to be held in a pydantic RootModel."""
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name == "root":
                    return self
                raise


T_co = TypeVar("T_co", covariant=True)


class RequestParams(Protocol[T_co]):
    """Params, to type checkers, of a request that is answered with a `T_co`."""

    def _answered_with(self) -> T_co: ...


class OpenEnum(str, Enum):
    """A string of a known set, or one that a newer runtime has added: equal to its string, its name is the value."""

    @classmethod
    def _missing_(cls, value: object) -> OpenEnum | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        return member

    @property
    def root(self) -> OpenEnum:
        """The member itself, as of the objects."""
        return self

    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self, format_spec)


def unlisted(tag: str | None, *known: str | int) -> AfterValidator:
    """Check the fallback branch of a union: refuse what is a known branch, so that a mistake in one stays an error."""

    def check(value: Any) -> Any:
        if tag is None:
            wrong = next((key for key in known if key in (value.model_extra or {})), None)
        else:
            wrong = getattr(value, tag) if getattr(value, tag) in known else None
        if wrong is not None:
            raise ValueError(f"{wrong!r} is a known branch, but the rest does not fit it")
        return value

    return AfterValidator(check)
'''
MODULE = """from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from ._base import OpenEnum, Wire, unlisted, {bases}"""
ANSWER = """
    if TYPE_CHECKING:

        def _answered_with(self) -> "{result}": ...
"""
TAGGED = '''

class {name}(Wire):
    """A branch told apart by its `{field}`, which has a default but is always sent."""

    def model_post_init(self, context: Any, /) -> None:
        self.model_fields_set.add("{field}")
'''


def emit_models(protocol: Protocol, lenient: Mapping[str, Collection[str]]) -> dict[str, str]:
    """The files of the package by path. Raises SchemaError when a class comes out under another name.

    The fields in `lenient`, by type, are None where the runtime does not send them.
    """
    aliases = {name: _alias(union) for name, union in protocol.unions.items()}
    aliases |= {name: f"Literal{protocol.definitions[name]['enum']!r}" for name in closed_enums(protocol)}
    statements = _statements(protocol, _generate(_feed(protocol, aliases, lenient)), aliases)
    uses = {name: _names(text) & statements.keys() - {name} for name, text in statements.items()}
    for name, method in methods_of_params(protocol).items():
        result = result_name(protocol, method, protocol.requests[method])
        statements[name] += ANSWER.format(result=result)
        uses[name].add(result)
    modules = _modules(protocol, uses)
    members: dict[str, list[str]] = {}
    for name in statements:  # in the generator's order: a name comes after what it needs
        members.setdefault(modules[name], []).append(name)
    first_turn = _build_order(members[FIRST_TURN], statements, uses)
    files = {"__init__.py": _package(modules, first_turn), "_base.py": BASE + "".join(_tagged_bases(protocol).values())}
    bases = ", ".join(_tagged_bases(protocol))
    for module, names in members.items():
        needed = sorted({use for name in names for use in uses[name] if modules[use] != module})
        imports = [f"from .{modules[use]} import {use}" for use in needed]
        body = "\n\n".join(statements[name] for name in names)
        excuse = "# ruff: noqa: RUF012\n" if " = [" in body else ""  # pydantic copies mutable defaults
        files[f"{module}.py"] = "\n".join([excuse + MODULE.format(bases=bases), *imports, "", body])
    return {f"models/{path}": text for path, text in files.items()}


def plain_values(protocol: Protocol) -> dict[str, str]:
    """Definitions that are nothing but a string or a number under another name, with which of them."""
    return {
        name: schema["type"]
        for name, schema in protocol.definitions.items()
        if schema.get("type") in ("integer", "number") or (schema.get("type") == "string" and "enum" not in schema)
    }


def closed_enums(protocol: Protocol) -> set[str]:
    """Enums that tell apart the objects of a union of references: were they open, the first branch would take all."""
    branches = {reference(branch) for union in protocol.unions.values() if not union.known for branch in union.branches}
    kinds = {reference(protocol.properties(branch).get("type", {})) for branch in branches}
    return {kind for kind in kinds if kind is not None and "enum" in protocol.definitions.get(kind, {})}


def _feed(protocol: Protocol, aliases: dict[str, str], lenient: Mapping[str, Collection[str]]) -> Schema:
    """The schema as datamodel-code-generator gets it. Aliases are there for their names only."""
    plain = plain_values(protocol)

    def clean(schema: Any, inside: bool = True) -> Any:
        if isinstance(schema, list):
            return [clean(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        if (named := schema.get("$ref", "").rsplit("/", 1)[-1]) in plain:
            return {"type": plain[named]}
        if inside and schema.get("type") == "string" and len(schema.get("enum", ())) == 1:
            return {"const": schema["enum"][0]}
        cleaned = {k: clean(v) for k, v in schema.items() if k not in LIMITS and k != "properties"}
        if cleaned.get("type") in ("integer", "number", "boolean"):
            cleaned.pop("enum", None)
        if cleaned.get("allOf") == [{"type": "string"}]:
            cleaned = {**cleaned, "type": "string"}
            del cleaned["allOf"]
        if cleaned.get("additionalProperties") is False:
            del cleaned["additionalProperties"]
        if "properties" in schema:
            cleaned["properties"] = {key: clean(value) for key, value in schema["properties"].items()}
        return cleaned

    definitions = {
        n: clean(_without(d, lenient.get(n, ())), inside=False)
        for n, d in protocol.definitions.items()
        if n not in plain
    }
    for name, union in protocol.unions.items():
        fallback = [{"$ref": f"#/definitions/{union.fallback}"}] if union.fallback else []
        definitions[name] = {"anyOf": clean([*union.branches, *fallback])}
    definitions |= {name: {"type": ["string", "integer"]} for name in aliases.keys() - protocol.unions.keys()}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": definitions}


def _without(schema: Schema, fields: Collection[str]) -> Schema:
    """The schema of an object with these fields optional, and null when they are missing."""
    if not fields:
        return schema
    properties = dict(schema["properties"])
    for name in fields:
        if not may_be_null(properties[name]):
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    return {**schema, "properties": properties, "required": [each for each in schema["required"] if each not in fields]}


def _generate(feed: Schema) -> str:
    with tempfile.TemporaryDirectory(prefix="codex-models-") as scratch:
        source, target = Path(scratch, "schema.json"), Path(scratch, "models.py")
        source.write_text(json.dumps(feed), encoding="utf-8")
        command = [sys.executable, *GENERATOR, "--input", str(source), "--output", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SchemaError(f"datamodel-code-generator ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        return target.read_text(encoding="utf-8")


def _statements(protocol: Protocol, source: str, aliases: dict[str, str]) -> dict[str, str]:
    """The text of each definition, by name, in the order of the source."""
    tags = {
        reference(branch): union.tag for union in protocol.unions.values() if union.tag for branch in union.branches
    }
    found: dict[str, str] = {}
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _class(lines, node, tags.get(node.name))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            found[name] = f"{name}: TypeAlias = {aliases.get(name)}\n"
    del found[ROOT]
    expected = protocol.definitions.keys() - plain_values(protocol).keys() | protocol.unions.keys()
    if found.keys() != expected:
        lost, made = sorted(expected - found.keys()), sorted(found.keys() - expected)
        raise SchemaError(
            f"datamodel-code-generator lost {lost} and made {made}; "
            "two definitions want one name, or one has an inline part that _schema.py should name"
        )
    return found


def _class(source: list[str], node: ast.ClassDef, tag: str | None) -> str:
    base = ast.unparse(node.bases[-1])
    if base == "BaseModel":
        base = "Wire" if tag is None else f"{pascal(tag)}Tagged"
    elif base == "Enum":
        base = "OpenEnum"
    lines = [f"class {node.name}({base}):"]
    for part in node.body:
        if not (isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "model_config"):
            lines += [_field_line(line) for line in source[part.lineno - 1 : part.end_lineno]]
    return "\n".join([*lines, *(["    pass"] if len(lines) == 1 else [])]) + "\n"


def _field_line(line: str) -> str:
    """A line of a field. To type checkers `alias` is the name in the constructor; that has to stay the Python name."""
    # A default that can change is copied for each object, at several times the cost of making a new one.
    line = re.sub(r" = \[\]$", " = Field(default_factory=list)", line)
    found = re.fullmatch(r"( *)(\w+)(:.*)\balias='(\S+)'(.*)", line)
    if found is None or found[2] == found[4]:
        return line
    indent, name, before, alias, after = found.groups()
    return f'{indent}{name}{before}validation_alias="{alias}", serialization_alias="{alias}"{after}'


def _alias(union: Union) -> str:
    """The union as an expression: the known branches first, then what takes anything else."""
    known = " | ".join(_expression(branch) for branch in union.branches)
    if union.fallback is None:
        return known
    if not union.known:
        return f'Annotated[Annotated[{known}, Field(union_mode="smart")] | {union.fallback}, {LEFT_TO_RIGHT}]'
    if union.tag is not None and len(union.branches) > 1:
        known = f'Annotated[{known}, Field(discriminator="{_field(union.tag)}")]'
    tag = _field(union.tag) if union.tag is not None else None
    guard = ", ".join("None" if argument is None else json.dumps(argument) for argument in (tag, *union.known))
    return f"Annotated[{known} | Annotated[{union.fallback}, unlisted({guard})], {LEFT_TO_RIGHT}]"


def _field(tag: str) -> str:
    return re.sub(r"([A-Z])", r"_\1", tag).lower()


def _expression(schema: Schema) -> str:
    """A branch that is not a definition of its own, as Python."""
    name = reference(schema)
    if name is not None:
        return name
    if schema.get("type") == "array":
        return f"list[{_expression(schema['items'])}]"
    return {"string": "str", "integer": "int"}[schema["type"]]


def _names(text: str) -> set[str]:
    return {
        node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def _tagged_bases(protocol: Protocol) -> dict[str, str]:
    """The base classes of tagged branches, by name."""
    tags = sorted({union.tag for union in protocol.unions.values() if union.tag is not None})
    names = {f"{pascal(tag)}Tagged": tag for tag in tags}
    return {name: TAGGED.format(name=name, field=_field(tag)) for name, tag in names.items()}


def _build_order(names: list[str], statements: dict[str, str], uses: dict[str, set[str]]) -> list[str]:
    """The roots among these names and the models that are a part of several others, after their own parts."""
    models = [n for n in names if re.match(r"class \w+\((?!OpenEnum\))", statements[n])]
    users = Counter(part for name in models for part in _parts(name, set(models), uses))
    return [name for name in models if name in FIRST_TURN_ROOTS or users[name] > 1]


def _parts(name: str, models: set[str], uses: dict[str, set[str]]) -> set[str]:
    """The models that a definition refers to, by itself or through aliases."""
    return {part for used in uses[name] for part in ({used} if used in models else _parts(used, models, uses))}


def _package(modules: dict[str, str], first_turn: list[str]) -> str:
    imports = "\n".join(f"    from .{module} import *" for module in sorted(set(modules.values())))
    table = "\n".join(f'    "{name}": "{modules[name]}",' for name in sorted(modules))
    return PACKAGE.format(imports=imports, table=table, first_turn=", ".join(map(json.dumps, first_turn)))


def _modules(protocol: Protocol, uses: dict[str, set[str]]) -> dict[str, str]:
    """The module of every definition."""
    paths = _paths(protocol, uses)
    if lost := set(FIRST_TURN_ROOTS) - uses.keys():
        raise SchemaError(f"a first turn needs {sorted(lost)}, which are no definitions; correct FIRST_TURN_ROOTS")
    first_turn = _reachable(uses, list(FIRST_TURN_ROOTS))
    for name in first_turn:
        del paths[name]
    sizes = Counter(path[:depth] for path in paths.values() for depth in range(1, len(path) + 1))

    def module(path: tuple[str, ...]) -> str:
        if not path:
            return "_shared"
        if sizes[path[:1]] < SMALL:
            return "_other"
        if len(path) == 1 or sizes[path[:1]] <= SPLIT_ABOVE:
            return _module_name(path[:1])
        return _module_name(path[:2]) if sizes[path[:2]] >= SMALL else _module_name((path[0], "other"))

    return dict.fromkeys(first_turn, FIRST_TURN) | {name: module(path) for name, path in paths.items()}


def _module_name(path: tuple[str, ...]) -> str:
    return "_" + "_".join(_field(part) for part in path)


def _paths(protocol: Protocol, uses: dict[str, set[str]]) -> dict[str, tuple[str, ...]]:
    """The deepest common prefix of the methods that use each definition."""
    roots: dict[str, list[str | None]] = {}
    for method, params in protocol.requests.items():
        roots[method] = [params, result_name(protocol, method, params)]
    for method, payload in protocol.notifications.items():
        roots[method] = [payload]
    for method, params in protocol.server_requests.items():
        roots[f"server_request/{method}"] = [params, result_name(protocol, method, params)]
    paths: dict[str, tuple[str, ...]] = {}
    for method, names in roots.items():
        for name in _reachable(uses, [n for n in names if n is not None]):
            path = tuple(method.split("/"))
            paths[name] = _common(paths[name], path) if name in paths else path
    for name in sorted(uses.keys() - paths.keys()):  # what no method uses stays together
        for below in _reachable(uses, [name]):
            paths[below] = _common(paths[below], ("unused",)) if below in paths else ("unused",)
    return paths


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    depth = 0
    while depth < min(len(one), len(other)) and one[depth] == other[depth]:
        depth += 1
    return one[:depth]


def _reachable(uses: dict[str, set[str]], names: list[str]) -> set[str]:
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += uses[name]
    return seen
