"""A minimal JSON instance of a JSON schema: the default answer when a request asks for structured output. Pure."""

from __future__ import annotations

from typing import Any

_DEPTH_LIMIT = 32


def minimal_instance(schema: Any) -> Any:
    """The smallest simple value that fits `schema` (the subset structured outputs allow); None without a constraint.

    References are followed inside the document; what nests deeper than 32 levels becomes None.
    """
    return _instance(schema, schema, 0)


def _instance(schema: Any, root: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _DEPTH_LIMIT:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "default" in schema:
        return schema["default"]
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, depth + 1)
    for word in ("anyOf", "oneOf"):
        if schema.get(word):
            # A recursive schema ends in the branch that is null: a linked list would never end otherwise.
            branches = schema[word]
            plain = [branch for branch in branches if isinstance(branch, dict) and branch.get("type") == "null"]
            return _instance((plain or branches)[0], root, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {"properties": {}, "required": []}
        for part in schema["allOf"]:
            part = _resolve(part["$ref"], root) if isinstance(part, dict) and "$ref" in part else part
            if isinstance(part, dict):
                both = {**merged["properties"], **part.get("properties", {})}
                required = [*merged["required"], *part.get("required", [])]
                merged = {**merged, **part, "properties": both, "required": required}
        return _instance(merged, root, depth + 1)
    kind = schema.get("type") or ("object" if "properties" in schema else "null")
    if isinstance(kind, list):
        kind = "null" if "null" in kind else kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _instance(properties.get(name), root, depth + 1) for name in schema.get("required", [])}
    if kind == "array":
        return [_instance(schema.get("items"), root, depth + 1) for _ in range(min(schema.get("minItems", 0), 100))]
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    if kind in ("integer", "number"):
        return _number(schema, kind)
    return False if kind == "boolean" else None


def _number(schema: dict[str, Any], kind: str) -> float:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    step = 1 if kind == "integer" else 0.5
    low = above + step if low is None and above is not None else low
    high = below - step if high is None and below is not None else high
    if low is not None and low > 0:
        return low  # type: ignore[no-any-return]
    return high if high is not None and high < 0 else 0


def _resolve(reference: Any, root: Any) -> Any:
    here = root
    for step in str(reference).removeprefix("#").split("/")[1:]:
        here = here.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(here, dict) else None
    return here
