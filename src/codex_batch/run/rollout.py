"""Calls of tools in the stored thread of codex, its rollout: also those that no notification speaks of.

codex (0.163.0) sends no item for a command whose output looks to it as if the sandbox had denied something, nor for a
call of a tool that does not exist. The file has both: lines with a `type`, and for `response_item` the item as the
model's service has it as `payload`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from ..rules.validity import HiddenCall

# Of longer ones the end is read.
READ_LIMIT_BYTES = 64 * 2**20
_LINE_LIMIT_BYTES = 4 * 2**20
# Of a text the beginning is kept: why a call was not run stands there.
_TEXT_LIMIT = 16 * 1024
_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


class _Item(msgspec.Struct):
    type: str = ""
    call_id: str = ""
    name: str = ""
    arguments: Any = None
    input: Any = None
    output: Any = None


class _Line(msgspec.Struct):
    type: str = ""
    payload: _Item | None = None


_decode = msgspec.json.Decoder(_Line).decode


def hidden_calls(path: str, seen: Collection[str]) -> list[HiddenCall]:
    """The calls of a thread that are not among those `seen`, by their ids, in order.

    None is found if the file is not on this machine, or cannot be read.
    """
    try:
        return _calls(Path(path), seen)
    except OSError:
        return []


def _calls(path: Path, seen: Collection[str]) -> list[HiddenCall]:
    found, names = [], {}
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - READ_LIMIT_BYTES))
        while line := file.readline(_LINE_LIMIT_BYTES):
            if b"_call" not in line:
                continue
            try:
                item = _decode(line).payload
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if item is None or not item.call_id or item.call_id in seen:
                continue
            if item.type in _CALLS:
                names[item.call_id] = (item.name, _text(item.arguments if item.input is None else item.input))
            elif item.type in _OUTPUTS:
                found.append(HiddenCall(*names.get(item.call_id, ("", "")), _text(item.output)))
    return found


def _text(value: Any) -> str:
    """The text of an output: a string, an object with `content`, or a list of parts."""
    if isinstance(value, dict):
        value = value.get("content", value.get("text", ""))
    if isinstance(value, list):
        return "\n".join(_text(part) for part in value)
    return value[:_TEXT_LIMIT] if isinstance(value, str) else ""
