"""Session files of codex to conversations: what was said, which tools were called, and what each request used. Pure.

A file has lines of JSON with a `type` and a `payload`. Those of the type `response_item` are the items that the model
is sent and answers with; `session_meta`, `turn_context`, `token_usage_record`, `token_count` and `compacted` say more
about them. One answer of the model is one step, its calls of tools with their outputs are in it.

A conversation has a window for each context that the model was shown: a compaction begins a new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..store.rollouts import CUT

# Beginnings of messages that codex writes as the user's, in files of versions that do not say so.
_OF_CODEX = ("<environment_context>", "<user_instructions>", "<turn_aborted>", "<subagent_notification>", "# AGENTS.md")
_TEXTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")

Lines = Callable[[], Iterable[bytes]]


class Part(msgspec.Struct, frozen=True):
    """A part of a message: a text, or an image by its URL."""

    text: str = ""
    image: str | None = None


@dataclass(slots=True)
class Call:
    """A call of a tool. `raw` are its arguments as the model wrote them; `output` is None without one."""

    id: str
    name: str
    namespace: str | None
    raw: str
    output: list[Part] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as an object; a text that is none is its `input`."""
        try:
            value = json.loads(self.raw)
        except (ValueError, RecursionError):
            value = None
        return value if isinstance(value, dict) else {"input": self.raw}


@dataclass(slots=True)
class Step:
    """A message of the system or the user, or an answer of the model. `role` is the one that the model was sent."""

    role: str
    is_of_codex: bool = False
    parts: list[Part] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    timestamp: str | None = None
    model: str | None = None
    effort: str | None = None
    is_compaction: bool = False
    """True for a summary that the model was asked for, to go on with instead of what was said."""
    is_copied: bool = False
    """True for one of the thread that a sub-agent was forked from."""

    @property
    def text(self) -> str:
        """The texts of the message."""
        return text_of(self.parts)


@dataclass(slots=True)
class Window:
    """Steps in one context. `initial` is what the model was shown in place of all before; empty in the first one."""

    initial: list[Step] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    message: str | None = None
    """The summary that replaced what was before."""
    is_readable: bool = True
    """False if what replaced it is known to the service of the model alone."""


@dataclass(slots=True)
class Conversation:
    """The conversation of one thread."""

    meta: Mapping[str, Any] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=lambda: [Window()])
    cut_bytes: int = 0
    """Bytes that are missing of its file."""

    @property
    def steps(self) -> list[Step]:
        """All steps, in order."""
        return [step for window in self.windows for step in window.steps]

    @property
    def instructions(self) -> str | None:
        """The base instructions, which the model is sent before all else."""
        text = (self.meta.get("base_instructions") or {}).get("text")
        return text if isinstance(text, str) else None

    @property
    def parent_id(self) -> str | None:
        """The thread whose sub-agent this is."""
        source = self.meta.get("source")
        spawn = _object(_object(_object(source).get("subagent")).get("thread_spawn"))
        found = self.meta.get("parent_thread_id") or spawn.get("parent_thread_id")
        return found if isinstance(found, str) else None


def conversation(thread_id: str, files: Mapping[str, Lines]) -> Conversation:
    """Return the conversation of a thread. `files` has the lines of its file and of those that it was forked from."""
    reader = _Reader()
    for is_copied, line in _lines(thread_id, files, frozenset()):
        reader.read(line, is_copied)
    return reader.conversation


def text_of(parts: Iterable[Part]) -> str:
    """The texts of a message; an image is named by its place alone."""
    return "\n\n".join(part.text if part.image is None else "[image]" for part in parts)


def _lines(
    thread_id: str, files: Mapping[str, Lines], before: frozenset[str]
) -> Iterator[tuple[bool, Mapping[str, Any]]]:
    """Yield the lines of a thread, and before them those of its origin that it has not copied; True: of another agent.

    A file names its origin and the number of the first line there that is not of this thread. An origin without such a
    number stands in the file itself.
    """
    is_first = True
    for line in files[thread_id]() if thread_id in files else ():
        value = _decoded(line)
        if value is None:
            continue
        if is_first:
            is_first = False
            meta = _object(value.get("payload"))
            origin, end = meta.get("forked_from_id"), meta.get("forked_from_ordinal_exclusive")
            if isinstance(origin, str) and isinstance(end, int) and origin not in before:
                for is_copied, inner in _lines(origin, files, before | {thread_id}):
                    if inner.get("ordinal", 0) < end:
                        yield is_copied or "subagent" in _object(meta.get("source")), inner
        yield False, value


def _decoded(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


class _Reader:
    """Reads lines in order."""

    def __init__(self) -> None:
        self.conversation = Conversation()
        self._context: Mapping[str, Any] = {}
        self._calls: dict[str, Call] = {}
        # The answer that further items of the model belong to.
        self._open: Step | None = None
        self._last: Step | None = None
        self._has_records = False
        self._total: Any = None

    def read(self, line: Mapping[str, Any], is_copied: bool) -> None:
        kind, payload = line.get("type"), _object(line.get("payload"))
        if kind == "session_meta":
            self.conversation.meta = payload
        elif kind == "turn_context":
            self._context = payload
        elif kind == "response_item":
            self._item(payload, line, is_copied)
        elif kind == "token_usage_record":
            self._has_records = True
            self._used(payload.get("usage"))
        elif kind == "event_msg" and payload.get("type") == "token_count" and not self._has_records:
            self._counted(_object(payload.get("info")))
        elif kind == "compacted":
            self._compacted(payload)
        elif kind == CUT:
            self.conversation.cut_bytes += payload.get("bytes") or 0

    def _item(self, item: Mapping[str, Any], line: Mapping[str, Any], is_copied: bool) -> None:
        kind = str(item.get("type"))
        if kind == "message" and item.get("role") != "assistant":
            self._open = None
            self._add(_message(item, line), is_copied)
        elif kind.endswith("_output"):
            self._output(item)
        elif kind in ("message", "reasoning") or kind.endswith("_call"):
            step = self._answer(line, is_copied)
            if kind == "message":
                step.parts += _parts(item.get("content"))
                step.is_compaction = bool(_object(line.get("metadata")).get("compaction_output"))
            elif kind == "reasoning":
                step.reasoning += [part.text for part in _parts(item.get("content")) or _parts(item.get("summary"))]
            else:
                call = _call(item, kind)
                step.calls.append(call)
                self._calls[call.id] = call

    def _answer(self, line: Mapping[str, Any], is_copied: bool) -> Step:
        """The step of an item of the model: the one that is open, or a new one."""
        step = self._open
        # What follows an output is the next answer, also in files without a record for each.
        if step is None or any(call.output is not None for call in step.calls):
            model, effort = self._context.get("model"), self._context.get("effort")
            step = self._open = self._last = Step("assistant", timestamp=line.get("timestamp"))
            step.model = model if isinstance(model, str) else None
            step.effort = effort if isinstance(effort, str) else None
            self._add(step, is_copied)
        return step

    def _add(self, step: Step, is_copied: bool) -> None:
        step.is_copied = is_copied
        self.conversation.windows[-1].steps.append(step)

    def _output(self, item: Mapping[str, Any]) -> None:
        call = self._calls.get(str(item.get("call_id")))
        if call is not None:
            output = item.get("output", item.get("tools"))
            if isinstance(output, dict):
                output = output.get("content", output.get("text", output))
            call.output = _parts(output)

    def _used(self, usage: Any) -> None:
        if self._last is not None and self._last.usage is None and isinstance(usage, dict):
            self._last.usage = usage
        self._open = None

    def _counted(self, info: Mapping[str, Any]) -> None:
        total = info.get("total_token_usage")
        if total != self._total:
            self._total = total
            self._used(info.get("last_token_usage"))

    def _compacted(self, payload: Mapping[str, Any]) -> None:
        message = payload.get("message")
        window = Window(message=message if isinstance(message, str) else "")
        history = payload.get("replacement_history")
        inner = _Reader()
        for item in history if isinstance(history, list) else ():
            inner._item(_object(item), {}, False)
            window.is_readable &= _object(item).get("type") in ("message", "reasoning")
        window.initial = inner.conversation.steps
        window.is_readable &= isinstance(history, list)
        self.conversation.windows.append(window)
        self._open = self._last = None


def _message(item: Mapping[str, Any], line: Mapping[str, Any]) -> Step:
    step = Step(str(item.get("role")), parts=_parts(item.get("content")), timestamp=line.get("timestamp"))
    kinds = _object(item.get("internal_chat_message_metadata_passthrough")).get("content_item_kinds")
    if step.role != "user":
        step.is_of_codex = True
    elif isinstance(kinds, list) and kinds:
        step.is_of_codex = not any(str(kind).startswith("user.") for kind in kinds)
    else:
        step.is_of_codex = step.text.lstrip().startswith(_OF_CODEX)
    return step


def _call(item: Mapping[str, Any], kind: str) -> Call:
    raw: Any = next((item[name] for name in ("arguments", "input", "action") if item.get(name) is not None), {})
    name = item.get("name") or kind.removesuffix("_call")
    space = item.get("namespace")
    return Call(
        str(item.get("call_id") or item.get("id")),
        str(name),
        space if isinstance(space, str) else None,
        raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False),
    )


def _parts(content: Any) -> list[Part]:
    """The parts of a message or an output: a text, or a list of parts."""
    if isinstance(content, str):
        return [Part(content)]
    if not isinstance(content, list):
        return [] if content is None else [Part(json.dumps(content, ensure_ascii=False))]
    found = []
    for part in map(_object, content):
        kind, text = part.get("type"), part.get("text")
        if isinstance(part.get("image_url"), str):
            found.append(Part(image=part["image_url"]))
        elif kind in _TEXTS and isinstance(text, str):
            found.append(Part(text))
        elif kind is not None:
            found.append(Part(f"[{kind}]"))
    return found
