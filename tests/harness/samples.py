"""Wire values made out of the schema that the runtime prints about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BUNDLE = "codex_app_server_protocol.schemas.json"
Schema = dict[str, Any]


def flat_definitions(dump: Path) -> Schema:
    """All definitions of a dump by name."""
    top: Schema = json.loads((dump / BUNDLE).read_text(encoding="utf-8"))["definitions"]
    return {**top, **top.pop("v2")}


class Samples:
    """Makes wire values out of a schema: small ones with what is required, full ones with all there is and more."""

    def __init__(self, definitions: Schema, *, full: bool) -> None:
        self._definitions = definitions
        self._full = full

    def of(self, schema: Any, depth: int = 0) -> list[Any]:
        """One value for every branch of the schema's union, or the only one."""
        if not isinstance(schema, dict):
            return [{"any": 1}]
        if "$ref" in schema:
            return self.of(self._definitions[schema["$ref"].rsplit("/", 1)[-1]], depth)
        if "allOf" in schema:
            return self.of(schema["allOf"][0], depth)
        choices: list[Schema] = schema.get("oneOf") or schema.get("anyOf") or []
        branches = [choice for choice in choices if choice.get("type") != "null"]
        if branches:
            common = self._object(schema, depth) if "properties" in schema else None
            found = [value for branch in branches for value in self.of(branch, depth)]
            return found if common is None else [{**common, **value} for value in found]
        if "enum" in schema:
            return list(schema["enum"])
        kinds = schema.get("type", "any")
        kind = kinds if isinstance(kinds, str) else next(k for k in kinds if k != "null")
        if kind == "object":
            return [self._object(schema, depth)]
        if kind == "array":
            return [self.of(schema.get("items", True), depth + 1) if self._full and depth < 5 else []]
        return [{"string": "text", "integer": 7, "number": 1.5, "boolean": True, "any": {"any": [1]}}[kind]]

    def _object(self, schema: Schema, depth: int) -> Schema:
        required = schema.get("required", ())
        value = {
            key: self.of(part, depth + 1)[0]
            for key, part in schema.get("properties", {}).items()
            if key in required or (self._full and depth < 5)
        }
        if self._full and schema.get("additionalProperties") is not False:
            extra = schema.get("additionalProperties", True)
            value["zz-added"] = self.of(extra, depth + 1)[0] if isinstance(extra, dict) else {"any": 1}
        return value
