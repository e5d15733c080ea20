"""Input of a turn: text, images, skills, mentions, or a message from outside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class TextInput:
    """Text of the user."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image by URL (a data URL works offline)."""

    url: str


@dataclass(frozen=True, slots=True)
class LocalImageInput:
    """An image file; the path is read by the app-server, on its machine."""

    path: str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class SkillInput:
    """A skill by name and path of its SKILL.md."""

    name: str
    path: str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class MentionInput:
    """A named resource."""

    name: str
    path: str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ExternalMessage:
    """A message of a tool, another agent or a program: it has a tool's authority, not the user's.

    It is the whole input of its turn. `content` is text, or a list of function-output content items.
    """

    tool_name: str
    content: str | Sequence[dict[str, Any]]
    namespace: str | None = None


InputItem = TextInput | ImageInput | LocalImageInput | SkillInput | MentionInput
Input = str | InputItem | Sequence[str | InputItem]
RunInput = Input | ExternalMessage


def to_wire_turn(value: RunInput) -> dict[str, Any]:
    """The fields of turn/start that carry its input. Raises InvalidInputError as `to_wire_input`."""
    if not isinstance(value, ExternalMessage):
        return {"input": to_wire_input(value)}
    output = value.content if isinstance(value.content, str) else list(value.content)
    if isinstance(output, str):
        _checked(output)
    return {
        "input": [],
        "tool_output": {"name": _checked(value.tool_name), "namespace": value.namespace, "output": output},
    }


def to_wire_input(value: Input) -> list[dict[str, Any]]:
    """The `input` list of turn/start and turn/steer.

    Raises InvalidInputError for empty input, for text with lone surrogates (the app-server would never answer it),
    for what is no URL of an image and for anything that is not an input item.
    """
    items: Sequence[Any] = [value] if isinstance(value, str | InputItem) else value
    if not isinstance(items, list | tuple):
        hint = "; the text of a file is its read_text()" if isinstance(value, os.PathLike) else ""
        raise InvalidInputError(
            f"input is {type(value).__name__}; expected text, an input item such as TextInput or LocalImageInput, "
            f"or a list of them{hint}"
        )
    if not items:
        raise InvalidInputError("input is empty; give at least one item")
    return [_to_wire_item(item) for item in items]


def _to_wire_item(item: Any) -> dict[str, Any]:
    match item:
        case str() | TextInput():
            text = item if isinstance(item, str) else item.text
            return {"type": "text", "text": _checked(text)}
        case ImageInput():
            # The app-server leaves out what it cannot fetch, without a word.
            if not _checked(item.url).lower().startswith(("data:", "http://", "https://")):
                raise InvalidInputError(
                    f"image url is {item.url[:80]!r}; expected a data, http or https URL; a file is a LocalImageInput"
                )
            return {"type": "image", "url": item.url}
        case LocalImageInput():
            return {"type": "localImage", "path": _checked(_path(item.path))}
        case SkillInput():
            return {"type": "skill", "name": _checked(item.name), "path": _checked(_path(item.path))}
        case MentionInput():
            return {"type": "mention", "name": _checked(item.name), "path": _checked(_path(item.path))}
    raise InvalidInputError(f"input item is {type(item).__name__}; expected text or one of the *Input classes")


def _path(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _checked(text: Any) -> str:
    if not isinstance(text, str) or not text:
        raise InvalidInputError(f"input text is {text!r}; expected a non-empty string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"input text has a lone surrogate at position {error.start}, which UTF-8 cannot carry; remove it"
        ) from None
    return text
