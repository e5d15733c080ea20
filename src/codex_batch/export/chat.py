"""A run as chats for fine-tuning: JSON lines with `messages` as OpenAI's API has them, tool calls included.

A line is one context that a model was shown, up to its last answer: a thread whose context was compacted has several,
and each sub-agent's thread has its own. Only what is whole is written; `metadata` says which sample it is of, and how
that was scored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

from ..store import RunStore, SampleRow
from ..store.export import encode
from .conversation import Call, Conversation, Part, Step, Window, text_of
from .recorded import Missing, is_whole, recorded
from .table import finished

# As codex answers the model for a call that has no output.
NO_OUTPUT = "aborted"
_NAME = re.compile(r"[^A-Za-z0-9_-]")
_NAME_CHARACTERS = 64

Message = dict[str, Any]


def write_chat(store: RunStore, file: IO[bytes], variant: str | None = None) -> None:
    """Write the chats of each finished sample. The samples that are left out are named in the log."""
    missing = Missing(
        "left out, because their session files are not kept as a whole",
        "run them again without --no-rollouts, or use --format atif, which has what is there",
    )
    for row in finished(store, variant):
        assert row.record is not None
        rollouts = store.rollouts(row.n, row.record.attempts)
        found = recorded(store, row) if is_whole(rollouts) else None
        if found is None or found.own is None:
            missing.add(row)
            continue
        for thread_id, thread in {str(found.own_id): found.own, **found.sub_agents}.items():
            for number, chat in chats(thread):
                about = {**_about(row), "thread_id": thread_id, "context": number}
                file.write(encode({"messages": chat, "metadata": about}))
    missing.report()


def chats(thread: Conversation) -> Iterator[tuple[int, list[Message]]]:
    """Yield the number and the messages of each context of a thread in which the model has answered."""
    first = [] if thread.instructions is None else [{"role": "system", "content": thread.instructions}]
    for number, window in enumerate(thread.windows, 1):
        if not any(step.role == "assistant" and not step.is_compaction for step in window.steps):
            continue
        messages = [*first, *_messages(window)]
        # There is nothing to be learned of what follows the last answer.
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        if messages and window.is_readable:
            yield number, messages


def _about(row: SampleRow) -> dict[str, Any]:
    record = row.record
    assert record is not None
    is_known = bool(row.scores) and all(score.error is None and score.passed is not None for score in row.scores)
    return {
        "sample": row.id,
        "epoch": row.epoch,
        "variant": row.variant or None,
        "status": record.status,
        "passed": all(score.passed for score in row.scores) if is_known else None,
        "model": record.model,
    }


def _messages(window: Window) -> Iterator[Message]:
    for step in [*window.initial, *window.steps]:
        if step.is_compaction:
            # What it answers was never shown to the model as a message of this conversation.
            continue
        if step.role == "assistant":
            yield from _answer(step)
        else:
            yield {"role": "user" if step.role == "user" else "system", "content": _content(step.parts)}


def _answer(step: Step) -> Iterator[Message]:
    text = text_of(step.parts)
    if not text and not step.calls:
        return
    message: Message = {"role": "assistant", "content": text or None}
    if step.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": _name(call), "arguments": _arguments(call)}}
            for call in step.calls
        ]
    yield message
    for call in step.calls:
        content = NO_OUTPUT if call.output is None else text_of(call.output)
        yield {"role": "tool", "tool_call_id": call.id, "content": content}


def _name(call: Call) -> str:
    name = call.name if call.namespace is None else f"{call.namespace}__{call.name}"
    return _NAME.sub("_", name)[:_NAME_CHARACTERS]


def _arguments(call: Call) -> str:
    """The arguments as the model wrote them; a text that is no object is made one."""
    return call.raw if call.raw.lstrip().startswith("{") else encode(call.arguments).decode().strip()


def _content(parts: Sequence[Part]) -> str | list[Message]:
    if all(part.image is None for part in parts):
        return text_of(parts)
    return [
        {"type": "text", "text": part.text}
        if part.image is None
        else {"type": "image_url", "image_url": {"url": part.image}}
        for part in parts
    ]
