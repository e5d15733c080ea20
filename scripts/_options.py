"""Emits `generated/options.py`: the keyword options of the calls that people make by hand, as TypedDicts."""

from __future__ import annotations

import keyword
import re
from typing import Any

from _schema import Protocol, Schema, SchemaError, reference

# Name of the TypedDict -> method, and the params that its caller passes by position.
OPTIONS: dict[str, tuple[str, frozenset[str]]] = {
    "ThreadForkOptions": ("thread/fork", frozenset({"threadId"})),
    "ThreadListOptions": ("thread/list", frozenset()),
    "ThreadResumeOptions": ("thread/resume", frozenset({"threadId"})),
    "ThreadStartOptions": ("thread/start", frozenset()),
    "TurnStartOptions": ("turn/start", frozenset({"threadId", "input"})),
    "TurnSteerOptions": ("turn/steer", frozenset({"threadId", "input", "expectedTurnId"})),
}
PRELUDE = '''
"""Keyword options of the calls that people make by hand, for `**options: Unpack[...]`.

Importing this costs nothing: the models behind the options are known to type checkers only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from os import PathLike
    from typing import Any, Literal

    from ..presets import Sandbox
    from .models import {models}

'''
# Options that are paths, or lists of them.
PATHS = frozenset({"cwd", "path", "runtime_workspace_roots"})
# A preset that people may give instead of a wire type.
PRESETS = {"SandboxMode": "Sandbox"}


def snake(name: str) -> str:
    """`clientUserMessageId` -> `client_user_message_id`, as datamodel-code-generator does it."""
    text = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    text = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", text).lower().replace("-", "_")
    return f"{text}_" if keyword.iskeyword(text) else text


def emit_options(protocol: Protocol) -> str:
    """The text of options.py. Raises SchemaError when a method or a positional param is no longer in the schema."""
    models: set[str] = set()
    blocks: list[str] = []
    names: list[str] = []
    for name, (method, positional) in OPTIONS.items():
        params = protocol.requests.get(method)
        properties = protocol.properties(params)
        missing = sorted(positional - properties.keys())
        if params is None or missing:
            raise SchemaError(f"{name}: the params of {method} have no {missing or 'definition'}; change OPTIONS")
        required = sorted(protocol.required(params) - positional)
        if required:
            raise SchemaError(f"{name}: {method} requires {required}, which an option cannot be; add it in OPTIONS")
        options = {snake(key): schema for key, schema in properties.items() if key not in positional}
        lines = [f"    {option}: {_option(option, schema, protocol, models)}" for option, schema in options.items()]
        blocks.append(
            "\n".join([f"class {name}(TypedDict, total=False):", f'    """Options of {method}."""', "", *lines])
        )
        names.append(f'    "{name}": frozenset({sorted(options)!r}),')
    table = "\n".join(["OPTION_NAMES: dict[str, frozenset[str]] = {", *names, "}"])
    prelude = PRELUDE.format(models="(" + ", ".join(sorted(models)) + ")").lstrip("\n")
    return prelude + "\n\n\n".join([*blocks, table]) + "\n"


def _option(option: str, schema: Schema, protocol: Protocol, models: set[str]) -> str:
    """The type of an option: a path may be given as such."""
    expression = _Expression(protocol, models).of(schema)
    return re.sub(r"\bstr\b", "str | PathLike[str]", expression) if option in PATHS else expression


class _Expression:
    """A schema as a type expression; notes the models it uses."""

    def __init__(self, protocol: Protocol, models: set[str]) -> None:
        self._protocol = protocol
        self._models = models

    def of(self, schema: Schema) -> str:
        nullable = any(branch.get("type") == "null" for branch in schema.get("anyOf", ()))
        name = reference(schema)
        if name is not None:
            return " | ".join([*self._named(name), *(["None"] if nullable else [])])
        kinds = schema.get("type")
        if kinds is None:
            return "Any"
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return " | ".join(self._plain(kind, schema) for kind in kinds)

    def _named(self, name: str) -> list[str]:
        definition = self._protocol.definitions.get(name, {})
        kind = definition.get("type")
        if kind in ("integer", "number") or (kind == "string" and "enum" not in definition):
            return [self._plain(kind, {})]
        values = self._protocol.definitions.get(f"{name}Value", {}) if name in self._protocol.unions else definition
        self._models.add(name)
        preset = [PRESETS[name]] if name in PRESETS else []
        return [*preset, name, *([f"Literal{values['enum']!r}"] if "enum" in values else [])]

    def _plain(self, kind: str, schema: dict[str, Any]) -> str:
        if kind == "array":
            return f"list[{self.of(schema.get('items', {}))}]"
        if kind == "object":
            values = schema.get("additionalProperties")
            return f"dict[str, {self.of(values) if isinstance(values, dict) else 'Any'}]"
        return {"string": "str", "boolean": "bool", "integer": "int", "number": "float", "null": "None"}[kind]
