"""The published SDK's shapes of wire types: unions as classes with `root`, paths and efforts as more than strings.

Objects and enumerations of `generated.models` have `root` themselves; here is what is a plain string or a union there.
"""

from __future__ import annotations

import typing
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel

from codex_app_server.generated.models._base import OpenEnum

T = TypeVar("T")


class Text(str):
    """A string with `root`."""

    __slots__ = ()

    @property
    def root(self) -> str:
        return str(self)


class Items(list[Any]):
    """A list with `root`."""

    @property
    def root(self) -> list[Any]:
        return list(self)


class Number(int):
    """An integer with `root`."""

    @property
    def root(self) -> int:
        return int(self)


class ReasoningEffort(OpenEnum):
    """Reasoning effort of a model."""

    none = "none"
    minimal = "minimal"
    low = "low"
    medium = "medium"
    high = "high"
    xhigh = "xhigh"
    max = "max"
    ultra = "ultra"


class ThreadSource(OpenEnum):
    """Source of a thread."""

    user = "user"
    subagent = "subagent"
    memory_consolidation = "memory_consolidation"


# By the name of the field, whatever the object: a string that needs no `root` is none the worse for it.
_PATHS = (
    "changed_paths",
    "composer_icon",
    "cwd",
    "dot_codex_folder",
    "file",
    "file_path",
    "files",
    "icon_large",
    "icon_small",
    "installed_root",
    "instruction_sources",
    "local_plugin_path",
    "logo",
    "logo_dark",
    "marketplace_path",
    "path",
    "plugin_path",
    "read",
    "runtime_workspace_roots",
    "saved_path",
    "screenshots",
    "source_path",
    "upgraded_roots",
    "writable_roots",
    "write",
)
_STRINGS_OR_LISTS = ("forced_chatgpt_workspace_id", "output")
_EFFORTS = ("default_reasoning_effort", "effort", "model_reasoning_effort", "reasoning_effort")
_STRINGS: dict[str, type[str]] = {
    **dict.fromkeys((*_PATHS, *_STRINGS_OR_LISTS, "request_id"), Text),
    **dict.fromkeys(_EFFORTS, ReasoningEffort),
    "thread_source": ThreadSource,
}
_NUMBERS = frozenset({"indices", "request_id"})


def shaped(value: T) -> T:
    """The same object, its strings and integers given the published shape, at any depth."""
    if isinstance(value, BaseModel):
        held = value.__dict__
        for name, field in held.items():
            held[name] = _shaped_field(name, field)
    elif isinstance(value, list):
        for each in value:
            shaped(each)
    elif isinstance(value, dict):
        for each in value.values():
            shaped(each)
    return value


def _shaped_field(name: str, value: Any) -> Any:
    kind = type(value)
    if kind is str:
        return _STRINGS[name](value) if name in _STRINGS else value
    if kind is int:
        return Number(value) if name in _NUMBERS else value
    if kind is list and (name in _STRINGS or name in _NUMBERS):
        items = [_shaped_field(name, each) for each in value]
        return Items(items) if name in _STRINGS_OR_LISTS else items
    return shaped(value)


class _UnionType(type):
    """The class of classes that stand for a union of `generated.models`."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _classes(cls.__name__))


class Union(metaclass=_UnionType):
    """A union as a class: `model_validate` and calling it make one of its variants, which has `root`."""

    def __new__(cls, root: Any) -> Any:
        return cls.model_validate(root)

    @classmethod
    def model_validate(cls, value: Any, **_: Any) -> Any:
        """The variant that `value` is. Raises pydantic.ValidationError."""
        return _rooted(_adapter(cls.__name__).validate_python(value))

    @classmethod
    def model_validate_json(cls, text: str | bytes, **_: Any) -> Any:
        """The variant that a JSON text is. Raises pydantic.ValidationError."""
        return _rooted(_adapter(cls.__name__).validate_json(text))

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """The JSON schema of the union."""
        schema: dict[str, Any] = _adapter(cls.__name__).json_schema()
        return schema

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return handler(_union(cls.__name__))


@cache
def union(name: str) -> type[Any]:
    """The class for a union of `generated.models`."""
    return _UnionType(name, (Union,), {"__doc__": f"The union {name} of generated.models.", "__module__": __name__})


def _union(name: str) -> Any:
    from codex_app_server.generated import models

    return getattr(models, name)


@cache
def _adapter(name: str) -> Any:
    from codex_app_server.generated import models

    return models.adapter(name)


@cache
def _classes(name: str) -> tuple[type[Any], ...]:
    if name == "Union":
        return ()
    found: list[type[Any]] = []

    def look(kind: Any) -> None:
        if isinstance(kind, type) and not typing.get_args(kind):
            found.append(kind)
        elif typing.get_origin(kind) is list:
            found.append(list)
        for part in typing.get_args(kind):
            if isinstance(part, type) or typing.get_args(part):
                look(part)

    look(_union(name))
    return tuple(found)


def _rooted(value: Any) -> Any:
    if type(value) is str:
        return Text(value)
    if type(value) is int:
        return Number(value)
    if type(value) is list:
        return Items(value)
    return shaped(value)
