"""Requests of codex to the model: the few parts of a Responses API request that a script looks at. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

# codex itself speaks in the user's role: before the prompt (the environment, AGENTS.md) and after an interruption.
# None of that is what the user asked.
_NOT_THE_USER = (
    "<environment_context>",
    "<user_instructions>",
    "<turn_aborted>",
    "<user_shell_command>",
    "<subagent_notification>",
    "<skill>",
    "<user_action>",
    "<codex_internal_context",
    "# AGENTS.md instructions",
)


class RequestError(ValueError):
    """The body is not a Responses API request; the text names what came and what was expected."""


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request to the model, as scripts see it."""

    prompt: str
    """Text of the last user message; after a steer, the steered text."""
    user_texts: tuple[str, ...] = ()
    """Text of every user message, oldest first; what codex adds in the user's role is left out."""
    tool_outputs: tuple[str, ...] = ()
    """Outputs of the tool calls made since the last user message; an image in them is its URL."""
    model: str = ""
    effort: str = ""
    """Reasoning effort; empty if the request names none."""
    tools: tuple[str, ...] = ()
    instructions: str = ""
    """Developer and system messages, joined by blank lines."""
    output_schema: dict[str, Any] | None = None


class _Item(msgspec.Struct):
    type: str = "message"
    role: str | None = None
    content: Any = None
    output: Any = None


class _Tool(msgspec.Struct):
    type: str = ""
    name: str | None = None


class _Format(msgspec.Struct):
    type: str = "text"
    schema: dict[str, Any] | None = None


class _TextOptions(msgspec.Struct):
    format: _Format | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None


class _Body(msgspec.Struct):
    input: str | list[_Item]
    model: str = ""
    reasoning: _Reasoning | None = None
    instructions: str | None = None
    tools: list[_Tool] | None = None
    text: _TextOptions | None = None


_decoder = msgspec.json.Decoder(_Body)


def read_request(body: bytes) -> ModelRequest:
    """Decode the body of `POST /v1/responses`; unknown fields are skipped without being built.

    Raises RequestError when the body is not JSON or lacks `input`.
    """
    try:
        decoded = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(
            f"body of {len(body)} bytes is not a Responses API request: {error}; expected a JSON object with 'input'"
        ) from None
    items = [_Item(role="user", content=decoded.input)] if isinstance(decoded.input, str) else decoded.input
    instructions = [decoded.instructions] if decoded.instructions else []
    user_texts: list[str] = []
    tool_outputs: list[str] = []
    for item in items:
        if item.type == "message":
            text = _text_of(item.content)
            if item.role in ("developer", "system"):
                instructions.append(text)
            elif item.role == "user" and not text.lstrip().startswith(_NOT_THE_USER):
                user_texts.append(text)
                tool_outputs.clear()
        elif item.type.endswith("_call_output"):
            tool_outputs.append(_text_of(item.output, ("text", "image_url")))
    return ModelRequest(
        prompt=user_texts[-1] if user_texts else "",
        user_texts=tuple(user_texts),
        tool_outputs=tuple(tool_outputs),
        model=decoded.model,
        effort=(decoded.reasoning and decoded.reasoning.effort) or "",
        tools=tuple(tool.name or tool.type for tool in decoded.tools or ()),
        instructions="\n\n".join(instructions),
        output_schema=decoded.text.format.schema if decoded.text and decoded.text.format else None,
    )


def _text_of(content: Any, members: tuple[str, ...] = ("text",)) -> str:
    """The text of a message's content or a tool's output: a string, or a list of parts that have it in `members`."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = (part.get(name) for part in content if isinstance(part, dict) for name in members)
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""
