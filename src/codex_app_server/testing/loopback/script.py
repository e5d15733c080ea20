"""Scripts, which choose the answer to a request: an ordered list of rules, a default, and their JSON form. Pure.

A script file is one JSON object, or the same as TOML (FILE.toml); `rules` are tried in order, and the first that
matches answers:

    {
      "rules": [
        {"contains": "2 + 2", "answer": {"type": "text", "text": "4"}},
        {"regex": "^list .* files",
         "answer": {"type": "tool_call", "cmd": "ls", "then": {"type": "text", "text": "Here they are: {output}"}}},
        {"contains": "flaky", "attempt": 1, "answer": {"type": "drop", "after_deltas": 3}}
      ],
      "default": {"type": "text", "deltas": 40, "pace_ms": 5}
    }

A rule looks at the last user text (`"any_text": true`: at all of them) for the substring `contains` or the `regex`;
with neither it matches everything. `model` and `effort` restrict it to requests with them, `instructions` to those with
that substring in their instructions, `attempt` to the n-th request for that prompt of one model and effort, on any
thread. The answers are the classes below: `type` is their tag, the other members their fields. When no rule matches,
directives in the prompt apply (directives.py), then `default`, then a minimal instance of the request's output schema,
then a short text made of the prompt.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from ..._runtime.files import read_file
from .directives import DirectiveError, find_directives
from .request import ModelRequest
from .schema import minimal_instance

PACE_LIMIT_MS = 600_000


class ScriptError(ValueError):
    """A script, rule or answer is not as documented; names the file, the rule and the field."""


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Text(_Answer, frozen=True, tag="text"):
    """A message. `{output}` in the text becomes the output of the tool calls of this turn, `{prompt}` the prompt.

    Without `text` it is made of the prompt; with `chars` it is filler of so many characters (for volume).
    """

    text: str | None = None
    deltas: int | None = None
    """Number of deltas; 20 (or fewer for a very short text) when neither this nor `chunk_chars` is given."""
    chunk_chars: int | None = None
    """Characters of one delta, instead of `deltas`."""
    pace_ms: float = 0
    """Wait before each delta; 0 sends the whole answer in one write."""
    phase: Literal["final_answer", "commentary"] | None = None
    chars: int | None = None
    model: str | None = None
    """Model that the service says has answered: with another than was asked, codex says `model/rerouted`."""
    stamped: bool = False
    """Each delta is the time when it is written, in seconds of the Unix epoch, instead of a piece of the text."""

    def __post_init__(self) -> None:
        _check_stream(self)
        if self.text is not None and self.chars is not None:
            raise ValueError("text and chars exclude each other: give the text, or how long a filler shall be")
        if self.chunk_chars is not None and self.deltas is not None:
            raise ValueError("deltas and chunk_chars exclude each other: give one of them")
        if self.chunk_chars is not None and self.chunk_chars < 1:
            raise ValueError(f"chunk_chars is {self.chunk_chars}, expected 1 or more")
        length = self.chars if self.text is None else len(self.text)
        if self.deltas and length is not None and length < self.deltas and "{" not in (self.text or ""):
            raise ValueError(
                f"{length} characters of text cannot make {self.deltas} deltas: lengthen it or ask for fewer"
            )


class Json(_Answer, frozen=True, tag="json"):
    """A message whose text is `value` as JSON."""

    value: Any
    deltas: int | None = None
    pace_ms: float = 0

    def __post_init__(self) -> None:
        _check_stream(self)


class ToolCall(_Answer, frozen=True, tag="tool_call"):
    """codex runs each of `cmd` in its sandbox, one request after the other; then comes the answer `then`."""

    cmd: str | tuple[str, ...]
    then: Answer | None = None
    """Any answer but a tool call; None is a text made of the prompt."""
    escalate: bool = False
    """Ask to run outside the sandbox: with approval policy on-request the client is asked for its approval."""
    tool: str | None = None
    """Another tool than the one for commands, `name` or `namespace.name`; `cmd` is then its arguments, as JSON."""

    def __post_init__(self) -> None:
        if not self.commands:
            raise ValueError("cmd is an empty list, expected a command or some")
        inner = self.then.answers if isinstance(self.then, Attempts) else (self.then,)
        if any(isinstance(answer, ToolCall) for answer in inner):
            raise ValueError("then is a tool call; for several commands give cmd a list")

    @property
    def commands(self) -> tuple[str, ...]:
        return (self.cmd,) if isinstance(self.cmd, str) else self.cmd


class HttpError(_Answer, frozen=True, tag="http_error"):
    """No stream: an HTTP error with a JSON body."""

    status: int
    message: str = "scripted error"
    retry_after_s: float | None = None
    """Sent as the Retry-After header, in whole seconds rounded up."""
    code: str | None = None
    """`error.type` and `error.code` of the body, such as usage_limit_reached."""
    resets_at: int | None = None
    """`error.resets_at` of the body, in Unix seconds: when codex says that a usage limit is over."""

    def __post_init__(self) -> None:
        if not 400 <= self.status <= 599:
            raise ValueError(f"status is {self.status}, expected 400 to 599")


class Failed(_Answer, frozen=True, tag="failed"):
    """The stream ends with `response.failed`."""

    code: str = "server_error"
    """Codes that codex tells apart: server_is_overloaded, rate_limit_exceeded, context_length_exceeded,
    insufficient_quota, invalid_prompt; any other is a cut stream to it."""
    message: str = "scripted failure"
    after_deltas: int = 0


class Drop(_Answer, frozen=True, tag="drop"):
    """The TCP connection closes in mid-stream."""

    after_deltas: int | None = 0
    """Deltas sent before; None closes before the first byte of the answer."""
    pace_ms: float = 0

    def __post_init__(self) -> None:
        _check_stream(self)


class Hang(_Answer, frozen=True, tag="hang"):
    """The stream never ends: silence until the client disconnects."""

    after_deltas: int | None = 0
    """Deltas sent before; None withholds even the response headers."""
    pace_ms: float = 0

    def __post_init__(self) -> None:
        _check_stream(self)


class Messages(_Answer, frozen=True, tag="messages"):
    """Several messages in one response, such as commentary and then the final answer."""

    messages: tuple[Text | Json, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("messages is empty, expected one or more texts or JSON values")


class Attempts(_Answer, frozen=True, tag="attempts"):
    """The first answer for the first request with that prompt, and so on; the last one repeats."""

    answers: tuple[Answer, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError("answers is empty, expected one or more answers")
        if any(isinstance(answer, Attempts) for answer in self.answers):
            raise ValueError("attempts inside attempts mean nothing: make it one list")

    @classmethod
    def of(cls, *answers: Answer) -> Attempts:
        """`Attempts.of(Drop(), Text("recovered"))`."""
        return cls(answers)


Answer: TypeAlias = Text | Json | ToolCall | HttpError | Failed | Drop | Hang | Messages | Attempts


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`answer`, for requests that match; see the module's text."""

    answer: Answer
    contains: str | None = None
    regex: str | None = None
    any_text: bool = False
    attempt: int | None = None
    model: str | None = None
    effort: str | None = None
    instructions: str | None = None
    """A substring of the developer and system messages; a run passes AGENTS.md in them."""

    def __post_init__(self) -> None:
        if self.contains is not None and self.regex is not None:
            raise ValueError("contains and regex exclude each other: give one of them")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"regex {self.regex!r} does not compile: {error}") from None
        if self.attempt is not None and self.attempt < 1:
            raise ValueError(f"attempt is {self.attempt}, expected 1 or more")

    def matches(self, request: ModelRequest, attempt: int) -> bool:
        if self.attempt is not None and self.attempt != attempt:
            return False
        if self.model not in (None, request.model) or self.effort not in (None, request.effort):
            return False
        if self.instructions is not None and self.instructions not in request.instructions:
            return False
        texts = request.user_texts if self.any_text else (request.prompt,)
        if self.contains is not None:
            return any(self.contains in text for text in texts)
        if self.regex is not None:
            return any(re.search(self.regex, text) for text in texts)
        return True


class Script(msgspec.Struct, frozen=True, omit_defaults=True):
    """Ordered rules and what comes when none matches."""

    rules: tuple[Rule, ...] = ()
    default: Answer | None = None

    @classmethod
    def from_json(cls, data: bytes | str, *, name: str = "script") -> Script:
        """Read the JSON form. Raises ScriptError naming `name`, the rule (counted from 1) and the field."""
        try:
            file = msgspec.json.decode(data, type=_File)
        except msgspec.DecodeError as error:
            raise ScriptError(f"{name}: {error}; expected an object with 'rules' and maybe 'default'") from None
        rules = tuple(
            _decode(raw, Rule, f"{name}: rule {number} of {len(file.rules)}")
            for number, raw in enumerate(file.rules, start=1)
        )
        default = _decode(file.default, Answer | None, f"{name}: default")
        return cls(rules, default)

    @classmethod
    def load(cls, path: str | Path) -> Script:
        """Read a script file: JSON, or the same as TOML if its name ends so.

        Raises ScriptError also when the file cannot be read.
        """
        try:
            data = read_file(path)
        except OSError as error:
            raise ScriptError(f"{path}: cannot be read: {error.strerror}; expected a script file (JSON)") from None
        if Path(path).suffix == ".toml":
            try:
                data = msgspec.json.encode(msgspec.toml.decode(data))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ScriptError(f"{path}: {error}; expected a script file (TOML)") from None
        return cls.from_json(data, name=str(path))

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    def answer(self, request: ModelRequest, attempt: int = 1, tool_attempt: int = 1) -> Answer:
        """The answer to send now; never Attempts, and of a ToolCall its next command or its `then`.

        `attempt` counts the requests that opened this prompt, `tool_attempt` those with as many tool outputs.
        Raises DirectiveError or ScriptError when the prompt holds a directive that is none.
        """
        answer: Answer = self._choose(request, attempt)
        if isinstance(answer, Attempts):
            answer = answer.answers[min(attempt, len(answer.answers)) - 1]
        if isinstance(answer, ToolCall):
            done = len(request.tool_outputs)
            if done < len(answer.commands):
                return msgspec.structs.replace(answer, cmd=answer.commands[done], then=None)
            answer = Text() if answer.then is None else answer.then
            if isinstance(answer, Attempts):
                answer = answer.answers[min(tool_attempt, len(answer.answers)) - 1]
        return answer

    def _choose(self, request: ModelRequest, attempt: int) -> Answer:
        for rule in self.rules:
            if rule.matches(request, attempt):
                return rule.answer
        directed = answer_of_directives(request.prompt)
        if directed is not None:
            return directed
        if self.default is not None:
            return self.default
        if request.output_schema is not None:
            return Json(minimal_instance(request.output_schema))
        return Text()


class _File(msgspec.Struct, forbid_unknown_fields=True):
    rules: list[msgspec.Raw] = []
    default: msgspec.Raw = msgspec.Raw(b"null")


def answer_of_directives(prompt: str) -> Answer | None:
    """The answer that the directives in a prompt ask for, None without directives.

    Several directives are successive attempts; a tool_call takes the directive after it as its `then`.
    """
    answers: list[Answer] = []
    for found in find_directives(prompt):
        try:
            # Words of a directive are strings: non-strict conversion makes numbers of them where the field is one.
            answer: Answer = msgspec.convert(found.fields, Answer, strict=False)
        except msgspec.ValidationError as error:
            raise DirectiveError(f"directive {found.source}: {error}") from None
        if answers and isinstance(answers[-1], ToolCall) and answers[-1].then is None:
            try:
                answers[-1] = msgspec.structs.replace(answers[-1], then=answer)
            except ValueError as error:
                raise DirectiveError(f"directive {found.source}: {error}") from None
        else:
            answers.append(answer)
    if len(answers) > 1:
        return Attempts(tuple(answers))
    return answers[0] if answers else None


def _decode(raw: msgspec.Raw, kind: Any, where: str) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        # msgspec ends its text with "- at `$.answer.deltas`": the field.
        raise ScriptError(f"{where}: {error}".replace("`$.", "field `").replace("at `$`", "its top level")) from None


def _check_stream(answer: Text | Json | Drop | Hang) -> None:
    pace_ms = answer.pace_ms
    if not 0 <= pace_ms <= PACE_LIMIT_MS:
        raise ValueError(f"pace_ms is {pace_ms}, expected 0 to {PACE_LIMIT_MS}")
    count = answer.deltas if isinstance(answer, Text | Json) else answer.after_deltas
    if count is not None and count < 0:
        raise ValueError(f"deltas is {count}, expected 0 or more")
