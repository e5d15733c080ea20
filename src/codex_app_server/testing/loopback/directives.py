"""Directives: how a prompt scripts its own answer, for tests without a script. Pure.

    [[NAME "main" key=value key="quoted value"]]

NAME is the type of an answer (script.py), a key is a field of it, and the bare value is its main field:

    [[text "The answer is 4." deltas=8 pace_ms=5]]      [[text deltas=40]]      [[text chars=1000000 deltas=100]]
    [[json '{"a": 1}']]                                 [[tool_call "echo hi > f"]] [[text "done: {output}"]]
    [[http_error 429 retry_after_s=1]]                  [[failed server_is_overloaded message="busy"]]
    [[drop 3]] [[text]]                                 [[hang]]     [[hang 5 pace_ms=10]]

Values with blanks or brackets stand in double or single quotes, with the usual escapes: \\" \\' \\\\ \\n \\t. The
word null is None. Several directives are the answers to successive attempts at that prompt; only after a tool_call the
next one is what follows it. Other text around them does not matter, and `[[anything else]]` is just text. A wrong field
or value is answered with HTTP 400 and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

# The names, and the field that a bare value fills.
MAIN_FIELDS = {
    "text": "text",
    "json": "value",
    "tool_call": "cmd",
    "http_error": "status",
    "failed": "code",
    "drop": "after_deltas",
    "hang": "after_deltas",
}
_VALUE = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s"'\[\]=]+)"""
_WORD = re.compile(rf"\s+(?:(?P<key>\w+)=)?(?P<value>{_VALUE})", re.DOTALL)
_DIRECTIVE = re.compile(rf"\[\[(?P<name>{'|'.join(MAIN_FIELDS)})(?P<words>(?:\s+(?:\w+=)?{_VALUE})*)\s*\]\]", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t"}


class DirectiveError(ValueError):
    """A directive has a field or a value its answer does not know; the text names the directive."""


class Directive(NamedTuple):
    source: str
    fields: dict[str, Any]
    """As a script file would have it, with `type`; every value is still a string (but of json)."""


def find_directives(prompt: str) -> Iterator[Directive]:
    """The directives of a prompt, in order. Raises DirectiveError."""
    if "[[" not in prompt:
        return
    for match in _DIRECTIVE.finditer(prompt):
        name, source = match["name"], match[0]
        fields: dict[str, Any] = {"type": name}
        for word in _WORD.finditer(match["words"]):
            key = word["key"] or MAIN_FIELDS[name]
            if key in fields:
                raise DirectiveError(f"directive {source}: {key} is given twice")
            fields[key] = _unquote(word["value"])
        if name == "json":
            try:
                fields["value"] = msgspec.json.decode(fields.get("value", ""))
            except msgspec.DecodeError as error:
                raise DirectiveError(f"directive {source}: value is not JSON: {error}") from None
        yield Directive(source, fields)


def _unquote(value: str) -> str:
    if value[0] not in "\"'":
        return value
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), value[1:-1], flags=re.DOTALL)
