"""The public names of the SDK as their signatures say them, for the documentation's tests."""

from __future__ import annotations

import dataclasses
import inspect
from enum import Enum
from typing import Any

import codex_app_server


def members(cls: type) -> list[str]:
    """List what a class offers, one line each: constructor, fields, properties, methods, members of an enumeration."""
    if issubclass(cls, Enum):
        return [f"{member.name} = {_text(member.value)}" for member in cls]
    lines = [] if _made_for_the_user(cls) else [signature(cls.__name__, cls.__init__)]
    if dataclasses.is_dataclass(cls) and not lines:
        lines += [f"{field.name}: {field.type}" for field in dataclasses.fields(cls) if field.name[0] != "_"]
    for base in reversed([base for base in cls.__mro__ if base.__module__.startswith(codex_app_server.__name__)]):
        for name, member in vars(base).items():
            if name.startswith("_"):
                continue
            if isinstance(member, property):
                lines.append(f"{name}: {inspect.signature(member.fget).return_annotation}")
            elif inspect.isfunction(member):
                lines.append(signature(name, member))
    return lines


def signature(name: str, function: Any) -> str:
    """A function as it is called: without self, annotations as they are written, `async` if it is awaited."""
    parts = []
    star = False
    # As it is written, with **options: `inspect.signature` shows each of them.
    found = getattr(function, "__written_signature__", None) or inspect.signature(function)
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f"{' = ' if annotation else '='}"
        if default:
            default += _default(parameter.default)
        parts.append(f"{stars}{parameter.name}{annotation}{default}")
    returns = "" if found.return_annotation in (found.empty, None, "None") else f" -> {found.return_annotation}"
    is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
    return f"{'async ' if is_async else ''}{name}({', '.join(parts)}){returns}"


def _made_for_the_user(cls: type) -> bool:
    """Return whether the SDK makes the objects of a class, and users get them."""
    names = {"Thread", "TurnHandle", "TurnStream", "TurnText", "ChatgptLoginHandle", "DeviceCodeLoginHandle"}
    made = {*names, *(f"Async{name}" for name in names), "Notification", "UnknownNotification", "TurnResult"}
    return cls.__name__ in made or getattr(cls, "_is_protocol", False)


def _default(value: Any) -> str:
    if value == codex_app_server.__version__:
        return "__version__"
    return "..." if value is ... or type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS" else _text(value)


def _text(value: Any) -> str:
    return '"' + value + '"' if isinstance(value, str) else repr(value)
