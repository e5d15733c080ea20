"""The bytes of an answer: server-sent events of the Responses API, cut where pauses may stand. Pure."""

from __future__ import annotations

import functools
import math
import zlib
from typing import Any, NamedTuple

import msgspec

from .request import ModelRequest
from .script import Answer, Drop, Failed, Hang, HttpError, Json, Messages, Text, ToolCall

DEFAULT_DELTAS = 20
_CACHE_CHARS = 10_000
_USAGE_LIMIT_TOKENS = 10_000
# Stands for the time of writing, in a delta that is stamped.
_STAMP = b"$NOW"
_FILLER = "Loopback text goes round and comes back the way it went. "


class Frame(NamedTuple):
    """Bytes to write, after waiting `wait_ms`, that carry `deltas` deltas. `stamped`: see `with_time`."""

    data: bytes
    wait_ms: float = 0
    deltas: int = 0
    stamped: bool = False

    def with_time(self, now: float) -> bytes:
        """Return the bytes with the time of writing, in seconds of the Unix epoch, where it belongs."""
        return self.data.replace(_STAMP, b"%.6f" % now) if self.stamped else self.data


class Plan(NamedTuple):
    """The actions of the server: status line and headers unless `silent`, the frames, then `end`."""

    kind: str
    """Tag of the answer: text, json, tool_call, ..."""
    frames: tuple[Frame, ...]
    end: str
    """completed, failed, http_error, dropped, or hanging."""
    status: int = 200
    retry_after_s: int | None = None
    silent: bool = False


def plan(answer: Answer, request: ModelRequest, response_id: str) -> Plan:
    """The events to send for `answer`; the ids of its items are made of `response_id`."""
    if isinstance(answer, HttpError):
        return plan_error(
            answer.status,
            answer.message,
            answer.code,
            answer.retry_after_s,
            kind="http_error",
            resets_at=answer.resets_at,
        )
    writer = _Writer(response_id, request, answer.model if isinstance(answer, Text) else None)
    if isinstance(answer, Text | Json):
        writer.message(answer)
    elif isinstance(answer, Messages):
        for message in answer.messages:
            writer.message(message)
    elif isinstance(answer, ToolCall):
        writer.tool_call(answer, len(request.tool_outputs))
    elif isinstance(answer, Failed):
        writer.cut_message(answer.after_deltas, 0)
        error = {"code": answer.code, "message": answer.message}
        writer.event("response.failed", response={"id": writer.id, "error": error})
        return Plan("failed", tuple(writer.frames), "failed")
    elif isinstance(answer, Drop | Hang):
        silent = answer.after_deltas is None
        if not silent:
            writer.cut_message(answer.after_deltas or 0, answer.pace_ms)
        kind, end = ("drop", "dropped") if isinstance(answer, Drop) else ("hang", "hanging")
        return Plan(kind, () if silent else tuple(writer.frames), end, silent=silent)
    else:
        raise TypeError(f"cannot send {answer!r}: expected one answer, got {type(answer).__name__}; see Script.answer")
    writer.completed()
    return Plan(str(type(answer).__struct_config__.tag), tuple(writer.frames), "completed")


def plan_error(
    status: int,
    message: str,
    code: str | None = None,
    retry_after_s: float | None = None,
    *,
    kind: str = "refused",
    resets_at: int | None = None,
) -> Plan:
    """An HTTP error with a JSON body; `refused` is the server's own, `http_error` a scripted one."""
    error: dict[str, Any] = {"message": message, "type": code or "loopback_error", "code": code}
    if resets_at is not None:
        error["resets_at"] = resets_at
    wait_s = None if retry_after_s is None else math.ceil(retry_after_s)
    return Plan(kind, (Frame(msgspec.json.encode({"error": error})),), "http_error", status, wait_s)


def words_of(prompt: str) -> str:
    """The default answer: short, the same for the same prompt, another for another."""
    opening = " ".join(prompt.split())[:80]
    checksum = zlib.crc32(prompt.encode(errors="replace"))
    return f'You said: "{opening}". This is the loopback model; checksum {checksum:08x}.'


def printed(tool_output: str) -> str:
    """The output of the command itself, without the head that codex puts before it."""
    head, found, rest = tool_output.partition("\nOutput:\n")
    return rest.rstrip("\n") if found and head.startswith("Chunk ID:") else tool_output


def filler(chars: int) -> str:
    """Return `chars` characters of plain text."""
    return (_FILLER * (chars // len(_FILLER) + 1))[:chars]


def split_text(text: str, deltas: int | None, chunk_chars: int | None = None) -> list[str]:
    """Cut into `deltas` nearly equal pieces, fewer when the text is too short, or into pieces of `chunk_chars`."""
    if chunk_chars is None:
        count = min(DEFAULT_DELTAS if deltas is None else deltas, len(text))
        return [text[len(text) * i // count : len(text) * (i + 1) // count] for i in range(count)]
    return [text[i : i + chunk_chars] for i in range(0, len(text), chunk_chars)]


def _encoded_deltas(text: str, deltas: int | None, chunk_chars: int | None) -> tuple[bytes, ...]:
    return tuple(msgspec.json.encode(piece) for piece in split_text(text, deltas, chunk_chars))


_cached_deltas = functools.lru_cache(maxsize=256)(_encoded_deltas)


class _Writer:
    """Collects the events of one response."""

    def __init__(self, response_id: str, request: ModelRequest, model: str | None = None) -> None:
        self.id = response_id
        self.frames: list[Frame] = []
        self._request = request
        self._items = 0
        self._output_chars = 0
        headers = {} if model is None else {"headers": {"openai-model": model}}
        self.event("response.created", response={"id": response_id, **headers})

    def event(self, kind: str, **members: Any) -> None:
        self.frames.append(Frame(_sse(kind, members)))

    def message(self, answer: Text | Json) -> None:
        """Yield the start of a message, its deltas, and its end; the text depends on prompt and tool outputs."""
        text = self._text_of(answer)
        phase = {"phase": answer.phase} if isinstance(answer, Text) and answer.phase else {}
        item = {"type": "message", "role": "assistant", "id": f"msg_{self.id}_{self._items}", **phase}
        chunk_chars = answer.chunk_chars if isinstance(answer, Text) else None
        self._open(item)
        stamped = isinstance(answer, Text) and answer.stamped
        self._deltas(text, answer.deltas, chunk_chars, answer.pace_ms, stamped=stamped)
        self.event(
            "response.output_item.done",
            output_index=self._items,
            item={**item, "content": [{"type": "output_text", "text": text}]},
        )
        self._items += 1

    def cut_message(self, deltas: int, pace_ms: float) -> None:
        """A message that is opened and never done; nothing at all for 0 deltas."""
        if deltas:
            self._open({"type": "message", "role": "assistant", "id": f"msg_{self.id}_0"})
            self._deltas(filler(max(deltas * 8, deltas)), deltas, None, pace_ms)

    def tool_call(self, answer: ToolCall, index: int) -> None:
        item = {"type": "function_call", "id": f"fc_{self.id}", "call_id": f"call_{self.id}_{index}"}
        if answer.tool is None:
            # No login shell: what a user's profile prints is not the script's. The wait is the longest codex allows.
            arguments = {"cmd": answer.commands[0], "login": False, "yield_time_ms": 30_000}
            if answer.escalate:
                arguments |= {"sandbox_permissions": "require_escalated", "justification": "The script asks for it."}
            item |= {"name": "exec_command", "arguments": msgspec.json.encode(arguments).decode()}
        else:
            namespace, dot, name = answer.tool.rpartition(".")
            item |= {"name": name, "arguments": answer.commands[0], **({"namespace": namespace} if dot else {})}
        self.event("response.output_item.done", output_index=0, item=item)
        self._output_chars += len(answer.commands[0])

    def completed(self) -> None:
        # Bounded: counts past the model's context window would make codex compact the conversation unasked.
        given = min(sum(map(len, self._request.user_texts)) // 4 + 1, _USAGE_LIMIT_TOKENS)
        made = min(self._output_chars // 4 + 1, _USAGE_LIMIT_TOKENS)
        usage = {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given + made,
        }
        self.event("response.completed", response={"id": self.id, "usage": usage})

    def _open(self, item: dict[str, Any]) -> None:
        self.event("response.output_item.added", output_index=self._items, item={**item, "content": []})

    def _deltas(
        self, text: str, deltas: int | None, chunk_chars: int | None, pace_ms: float, *, stamped: bool = False
    ) -> None:
        encode = _cached_deltas if len(text) <= _CACHE_CHARS else _encoded_deltas
        head = (
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"msg_%s_%d",'
            b'"output_index":%d,"content_index":0,"delta":' % (self.id.encode(), self._items, self._items)
        )
        pieces = encode(text, deltas, chunk_chars)
        if stamped:
            pieces = (b'"%s"' % _STAMP,) * len(pieces)
        self.frames += [Frame(head + piece + b"}\n\n", pace_ms, 1, stamped) for piece in pieces]
        self._output_chars += len(text)

    def _text_of(self, answer: Text | Json) -> str:
        if isinstance(answer, Json):
            return msgspec.json.encode(answer.value).decode()
        if answer.chars is not None:
            return filler(answer.chars)
        if answer.text is None:
            text = words_of(self._request.prompt)
            return text + " " + filler(max(0, (answer.deltas or 0) - len(text)))
        text = answer.text.replace("{prompt}", self._request.prompt)
        return text.replace("{output}", "\n".join(map(printed, self._request.tool_outputs)))


def _sse(kind: str, members: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **members}))
