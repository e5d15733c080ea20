"""Parameters of requests as JSON, checked against their generated types."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .._runtime.paths import lone_surrogate
from ..errors import InvalidInputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def encode_plain(what: str, value: Any) -> bytes:
    """The JSON of plain values. Raises InvalidInputError."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError) as error:
        raise _unsendable(f"parameters of {what}", value, error) from None


def encode_params(type_name: str, fields: Mapping[str, Any]) -> bytes:
    """The JSON of a generated parameters type, without optional fields that are None. Raises InvalidInputError."""
    required = _required_of(type_name)
    sent = {
        name: field if type(field) in _PLAIN else _as_sent(name, field)
        for name, field in fields.items()
        if field is not None or name in required
    }
    try:
        value = adapter(type_name).validator.validate_python(sent)
    except ValueError as error:
        raise InvalidInputError(f"{type_name}: {_problems_of(error)}") from None
    return dump(type_name, value, sent)


# Values that are sent as they are; most are.
_PLAIN = frozenset({str, int, float, bool, dict, type(None)})


def _as_sent(name: str, field: Any) -> Any:
    """A field with its paths as text. Raises InvalidInputError for an object where its id is expected."""
    if isinstance(field, os.PathLike):
        return os.fspath(field)
    if isinstance(field, list | tuple):
        return [os.fspath(each) if isinstance(each, os.PathLike) else each for each in field]
    if name.endswith("_id") and isinstance(getattr(field, "id", None), str):
        raise InvalidInputError(f"{name} is a {type(field).__name__}; expected its id: give its .id")
    return field


def _problems_of(error: ValueError) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())


@functools.cache
def adapter(type_name: str) -> TypeAdapter[Any]:
    """The adapter of a type, cached here: an import in a function costs as much as a small payload."""
    from ..generated import models

    return models.adapter(type_name)


@functools.cache
def _required_of(type_name: str) -> frozenset[str]:
    from ..generated import models

    # A type that is a union has no fields of its own; what its branches require is never null.
    declared = getattr(getattr(models, type_name), "model_fields", {})
    return frozenset(name for name, field in declared.items() if field.is_required())


def dump(type_name: str, value: Any, fields: Mapping[str, Any] | None = None) -> bytes:
    try:
        return adapter(type_name).serializer.to_json(value, by_alias=True, exclude_unset=True)
    except ValueError as error:
        raise _unsendable(type_name, fields, error) from None


def _unsendable(what: str, value: Any, error: Exception) -> InvalidInputError:
    odd = lone_surrogate(value)
    reason = str(error) if odd is None else f"{odd!r} has bytes that are not UTF-8; use a name that is"
    return InvalidInputError(f"{what} cannot be sent as UTF-8 JSON: {reason}")
