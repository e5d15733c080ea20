"""The JSON schema of an answer that is to be of a type, and the answer as that type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError, OutputTypeError

if TYPE_CHECKING:
    from ..results import TurnResult


def schema_of(output_type: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic model, dataclass or other type, as strict as structured output wants it.

    Raises InvalidInputError for what has no schema.
    """
    from pydantic import PydanticUserError, TypeAdapter

    try:
        schema: dict[str, Any] = _closed(TypeAdapter(output_type).json_schema())
        return schema
    except (PydanticUserError, TypeError) as error:
        raise InvalidInputError(f"output_type {output_type!r} has no JSON schema: {error}") from None


def _closed(schema: Any) -> Any:
    """Objects take no other properties than the named ones, and all of those: strict mode accepts nothing else."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items() if key != "default"}
    if isinstance(closed.get("properties"), dict) and schema.get("type") == "object":
        closed["additionalProperties"] = False
        closed["required"] = list(closed["properties"])
    return closed


def parse_output(output_type: Any, result: TurnResult) -> Any:
    """The final response as `output_type`. Raises OutputTypeError."""
    from pydantic import TypeAdapter, ValidationError

    if result.final_response is None:
        why = f" that can be read (undecoded: {', '.join(result.undecoded)})" if result.undecoded else ""
        message = f"turn {result.id} ended without a final response{why}; expected {output_type!r}"
        raise OutputTypeError(message, result)
    try:
        return TypeAdapter(output_type).validate_json(result.final_response)
    except ValidationError as error:
        raise OutputTypeError(f"the final response of turn {result.id} does not fit: {error}", result) from None
