"""Notifications of an attempt to messages as Inspect AI knows them. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Message = dict[str, Any]


def messages(notifications: Iterable[Mapping[str, Any]]) -> Iterator[Message]:
    """Yield the completed items in their order, each as one message, a tool call as two."""
    for notification in notifications:
        item = notification.get("params", {}).get("item") if notification.get("method") == "item/completed" else None
        if not isinstance(item, Mapping):
            continue
        kind = item.get("type")
        if kind == "userMessage":
            yield user(_user_text(item), item.get("id"))
        elif kind == "agentMessage":
            yield {"role": "assistant", "content": str(item.get("text", "")), "id": item.get("id")}
        elif kind == "reasoning":
            text = "\n\n".join(str(part) for part in (item.get("summary") or item.get("content") or ()))
            if text:
                yield {"role": "assistant", "content": [{"type": "reasoning", "reasoning": text}], "id": item.get("id")}
        elif kind in _CALLS:
            function, arguments, result = _CALLS[kind](item)
            yield from _call(str(item.get("id", "")), function, arguments, result)


def user(text: str, identity: str | None = None) -> Message:
    return {"role": "user", "content": text, "id": identity}


def _call(identity: str, function: str, arguments: dict[str, Any], result: str) -> Iterator[Message]:
    call = {"id": identity, "function": function, "arguments": arguments, "type": "function"}
    yield {"role": "assistant", "content": "", "id": f"{identity}-call", "tool_calls": [call]}
    yield {
        "role": "tool",
        "content": result,
        "id": f"{identity}-result",
        "tool_call_id": identity,
        "function": function,
    }


def _user_text(item: Mapping[str, Any]) -> str:
    parts = item.get("content") or ()
    return "\n".join(
        str(part["text"]) if part.get("type") == "text" and "text" in part else f"[{part.get('type')}]"
        for part in parts
        if isinstance(part, Mapping)
    )


def _command(item: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    output = str(item.get("aggregatedOutput") or "")
    code = item.get("exitCode")
    how = str(item.get("status")) if code is None else f"exit code {code}"
    return "exec_command", {"cmd": item.get("command"), "cwd": item.get("cwd")}, f"{output}\n[{how}]".lstrip("\n")


def _file_change(item: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    return "apply_patch", {"changes": item.get("changes")}, str(item.get("status"))


def _mcp(item: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    result = item.get("error") or item.get("result")
    return f"{item.get('server')}.{item.get('tool')}", _arguments(item), _json(result)


def _dynamic(item: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    return str(item.get("tool")), _arguments(item), _json(item.get("contentItems"))


def _web_search(item: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    return "web_search", {"query": item.get("query")}, ""


_CALLS: dict[str, Callable[[Mapping[str, Any]], tuple[str, dict[str, Any], str]]] = {
    "commandExecution": _command,
    "fileChange": _file_change,
    "mcpToolCall": _mcp,
    "dynamicToolCall": _dynamic,
    "webSearch": _web_search,
}


def _arguments(item: Mapping[str, Any]) -> dict[str, Any]:
    arguments = item.get("arguments")
    return dict(arguments) if isinstance(arguments, Mapping) else {"arguments": arguments}


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
