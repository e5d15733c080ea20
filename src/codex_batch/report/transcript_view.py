"""A transcript out of an attempt's notifications: one entry an item, texts bounded. Pure.

An entry has a `kind`, the way to show it: user, agent, reasoning, plan, command, files, tool, search, note, error,
turn. Its other members are those the page shows; an unknown item is a note that holds the item as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

TEXT_CHARACTERS = 200_000
OUTPUT_CHARACTERS = 30_000
ENTRIES = 5_000

Entry = dict[str, Any]


def transcript(events: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The entries of an attempt, in order. What was started and never completed is marked as `open`."""
    entries: list[Entry] = []
    started: dict[str, int] = {}
    dropped = 0
    for event in events:
        method, params = event.get("method"), event.get("params")
        if not isinstance(method, str) or not isinstance(params, Mapping):
            continue
        item = params.get("item")
        if method in ("item/started", "item/completed") and isinstance(item, Mapping):
            key = str(item.get("id"))
            entry = _entry(item)
            if method == "item/started":
                entry["open"] = True
                if key not in started and len(entries) < ENTRIES:
                    started[key] = len(entries)
                    entries.append(entry)
            elif key in started:
                entries[started.pop(key)] = entry
            elif len(entries) < ENTRIES:
                entries.append(entry)
            else:
                dropped += 1
            continue
        other = _other(method, params)
        if other is not None and len(entries) < ENTRIES:
            entries.append(other)
    if dropped:
        entries.append({"kind": "note", "title": f"{dropped:,} more items stand in the run directory only"})
    return [_tidy(entry) for entry in entries]


def cut_middle(text: str, characters: int) -> str:
    """Shorten a text to its head and tail, of `characters` in all, with the number left out between them."""
    if len(text) <= characters:
        return text
    head = characters * 2 // 3
    tail = characters - head
    return f"{text[:head]}\n\n[... {len(text) - head - tail:,} characters left out ...]\n\n{text[-tail:]}"


def _tidy(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if value is not None and value != "" and value != []}


def _entry(item: Mapping[str, Any]) -> Entry:
    read = _ITEMS.get(str(item.get("type")), _unknown)
    try:
        return read(item)
    except (KeyError, TypeError, ValueError, AttributeError):
        return _unknown(item)


def _user(item: Mapping[str, Any]) -> Entry:
    texts = [
        str(part["text"])
        if part.get("type") == "text"
        else f"[{part.get('type')}: {part.get('path') or part.get('url') or part.get('name')}]"
        for part in item["content"]
    ]
    return {"kind": "user", "text": cut_middle("\n".join(texts), TEXT_CHARACTERS)}


def _agent(item: Mapping[str, Any]) -> Entry:
    return {"kind": "agent", "text": cut_middle(item["text"], TEXT_CHARACTERS), "phase": item.get("phase")}


def _reasoning(item: Mapping[str, Any]) -> Entry:
    text = "\n\n".join([*item.get("summary", ()), *item.get("content", ())])
    return {"kind": "reasoning", "text": cut_middle(text, TEXT_CHARACTERS)}


def _plan(item: Mapping[str, Any]) -> Entry:
    return {"kind": "plan", "text": cut_middle(item["text"], TEXT_CHARACTERS)}


def _command(item: Mapping[str, Any]) -> Entry:
    return {
        "kind": "command",
        "text": cut_middle(item["command"], TEXT_CHARACTERS),
        "output": cut_middle(item.get("aggregatedOutput") or "", OUTPUT_CHARACTERS),
        "exit_code": item.get("exitCode"),
        "status": item.get("status"),
        "duration_ms": item.get("durationMs"),
        "cwd": item.get("cwd"),
    }


def _files(item: Mapping[str, Any]) -> Entry:
    return {
        "kind": "files",
        "status": item.get("status"),
        "changes": [
            {
                "path": change["path"],
                "change": (change.get("kind") or {}).get("type"),
                "diff": cut_middle(change.get("diff") or "", OUTPUT_CHARACTERS),
            }
            for change in item["changes"]
        ],
    }


def _tool(item: Mapping[str, Any]) -> Entry:
    names = [item.get("server") or item.get("namespace"), item["tool"]]
    result = item.get("error") or item.get("result") or item.get("contentItems")
    return {
        "kind": "tool",
        "title": ".".join(str(name) for name in names if name),
        "text": _json(item.get("arguments", item.get("prompt"))),
        "output": cut_middle(_json(result), OUTPUT_CHARACTERS),
        "status": item.get("status"),
        "duration_ms": item.get("durationMs"),
    }


def _search(item: Mapping[str, Any]) -> Entry:
    return {
        "kind": "search",
        "text": item["query"],
        "output": cut_middle(_json(item.get("results")), OUTPUT_CHARACTERS),
    }


def _unknown(item: Mapping[str, Any]) -> Entry:
    rest = {key: value for key, value in item.items() if key not in ("type", "id")}
    return {
        "kind": "note",
        "title": str(item.get("type") or "item"),
        "text": cut_middle(_json(rest), OUTPUT_CHARACTERS) if rest else None,
    }


def _json(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


_ITEMS: dict[str, Callable[[Mapping[str, Any]], Entry]] = {
    "userMessage": _user,
    "agentMessage": _agent,
    "reasoning": _reasoning,
    "plan": _plan,
    "commandExecution": _command,
    "fileChange": _files,
    "mcpToolCall": _tool,
    "dynamicToolCall": _tool,
    "collabAgentToolCall": _tool,
    "webSearch": _search,
}


def _other(method: str, params: Mapping[str, Any]) -> Entry | None:
    if method == "error":
        error = params.get("error") or {}
        return {
            "kind": "error",
            "title": "error, tried again" if params.get("willRetry") else "error",
            "text": _json(error.get("message") if isinstance(error, Mapping) else error),
        }
    if method == "turn/completed":
        turn = params.get("turn")
        if not isinstance(turn, Mapping):
            return None
        error = turn.get("error")
        message = error.get("message") if isinstance(error, Mapping) else None
        return {"kind": "turn", "title": f"turn {turn.get('status')}", "text": _json(message)}
    if method == "pool/turn/ended":
        return {"kind": "note", "title": method, "text": cut_middle(_json(dict(params)), OUTPUT_CHARACTERS)}
    return None
