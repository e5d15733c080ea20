"""Events of `codex-pool run --json`: those of `codex exec --json`, and what that does not report. Pure.

Where both report the same they use the same names, so that programs read either; measured on codex 0.163.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Event = dict[str, Any]

_DELTAS = {"item/agentMessage/delta", "item/commandExecution/outputDelta"}
_WARNINGS = {"warning", "configWarning", "guardianWarning", "deprecationNotice"}
# Of these only the end is reported, as `codex exec` does.
_WHOLE = {"agentMessage", "reasoning"}
# What the user has said is known.
_OWN = {"userMessage"}
# Members whose value is one of a list of words.
_WORDS = {"status", "tool", "kind"}
_USAGE = ("input_tokens", "cached_input_tokens", "cache_write_input_tokens", "output_tokens", "reasoning_output_tokens")
_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


class RunEvents:
    """Events made of the notifications of one turn."""

    def __init__(self) -> None:
        self._warnings = 0
        self._plan: list[Event] | None = None

    def of(self, method: str, params: dict[str, Any]) -> Iterator[Event]:
        """The events of a notification of the turn; none for what is not reported."""
        match method:
            case "turn/started":
                yield {"type": "turn.started", "turn_id": params["turn"]["id"]}
            case "item/started" | "item/completed":
                item = params.get("item") or {}
                is_end = method == "item/completed"
                if item.get("type") not in _OWN and (is_end or item.get("type") not in _WHOLE):
                    yield {"type": "item.completed" if is_end else "item.started", "item": item_of(item)}
            case "turn/plan/updated":
                kind = "item.started" if self._plan is None else "item.updated"
                steps = params.get("plan") or []
                self._plan = [
                    {"text": each.get("step"), "completed": each.get("status") == "completed"} for each in steps
                ]
                yield {"type": kind, "item": self._todo_list()}
            case "error":
                error = params.get("error") or {}
                yield {"type": "error", "message": error.get("message"), "will_retry": params.get("willRetry") is True}
            case _ if method in _DELTAS:
                yield {"type": "item.delta", "item_id": params.get("itemId"), "delta": params.get("delta")}

    def of_thread(self, method: str, params: dict[str, Any]) -> Iterator[Event]:
        """The events of a notification that belongs to no turn."""
        if method in _WARNINGS:
            parts = (params.get(name) for name in ("message", "summary", "details"))
            text = ": ".join(part for part in parts if isinstance(part, str) and part)
            self._warnings += 1
            item = {"id": f"warning_{self._warnings}", "type": "error", "message": text}
            yield {"type": "item.completed", "item": item}

    def end(self, usage: Mapping[str, int] | None, final_response: str | None, error: Event | None) -> Iterator[Event]:
        """The last events of a turn: `error` is that of one that has failed."""
        if self._plan is not None:
            yield {"type": "item.completed", "item": self._todo_list()}
        counts = None if usage is None else usage_of(usage)
        if error is None:
            yield {"type": "turn.completed", "usage": counts, "final_response": final_response}
        else:
            yield {"type": "turn.failed", "error": error, "usage": counts}

    def _todo_list(self) -> Event:
        return {"id": "plan", "type": "todo_list", "items": self._plan}


def thread_started(thread_id: str, codex_version: str | None) -> Event:
    """The first event. `codex_version` is that of the app-server, None if it is not known."""
    return {"type": "thread.started", "thread_id": thread_id, "codex_version": codex_version}


def queued(ahead: int | None) -> Event:
    """The turn, or its thread, waits in the pool behind `ahead` others; None: behind how many is not known."""
    return {"type": "turn.queued", "ahead": ahead}


def dequeued() -> Event:
    """The turn, or its thread, waits no longer."""
    return {"type": "turn.dequeued"}


def usage_of(usage: Mapping[str, int]) -> dict[str, int]:
    """Tokens by the names of `codex exec`."""
    by_name = {_snake(name): count for name, count in usage.items()}
    return {name: by_name.get(name, 0) for name in _USAGE}


def item_of(item: Mapping[str, Any]) -> Event:
    """An item with names in snake_case, at its top; what is inside of its members is as the app-server has it."""
    found = {_snake(name): value for name, value in item.items()}
    for name in ("type", *_WORDS):
        if isinstance(found.get(name), str):
            found[name] = _snake(found[name])
    if found.get("type") == "file_change":
        found["changes"] = [_change(change) for change in found.get("changes") or []]
    elif found.get("type") == "reasoning":
        found["text"] = "\n".join(part for part in found.get("summary") or [] if isinstance(part, str))
    return found


def _step(step: Mapping[str, Any]) -> Event:
    return {"text": step.get("step"), "completed": step.get("status") == "completed"}


def _change(change: Any) -> Any:
    kind = change.get("kind") if isinstance(change, dict) else None
    return {**change, "kind": kind["type"]} if isinstance(kind, dict) and "type" in kind else change


def _snake(name: str) -> str:
    return _CAPITAL.sub("_", name).lower()
