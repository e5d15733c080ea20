"""Signatures and docstrings of functions with `**options` that show each option, with a line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ..generated.options import ThreadListOptions
from ..presets import ThreadForkKeywords, ThreadResumeKeywords, ThreadStartKeywords, TurnKeywords
from .option_help import line_of

F = TypeVar("F", bound=Callable[..., Any])

_KEYWORDS: dict[str, Any] = {
    "ThreadForkOptions": ThreadForkKeywords,
    "ThreadListOptions": ThreadListOptions,
    "ThreadResumeOptions": ThreadResumeKeywords,
    "ThreadStartOptions": ThreadStartKeywords,
    "TurnStartOptions": TurnKeywords,
}


def described(call: str, *, but: str = "") -> Callable[[F], F]:
    """Decorate a function whose `**options` are those of `call`, `but` one. What it does stays as it is."""

    def decorate(function: F) -> F:
        written = inspect.signature(function)
        given = [each for each in written.parameters.values() if each.kind is not each.VAR_KEYWORD]
        options = {
            name: getattr(annotation, "__forward_arg__", annotation)
            for name, annotation in sorted(_KEYWORDS[call].__annotations__.items())
            if name != but
        }
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in options.items()
        ]
        lines = "\n".join(f"    {name}: {line_of(call, name)}" for name in options)
        shown: Any = function
        shown.__written_signature__ = written
        shown.__signature__ = written.replace(parameters=[*given, *keywords])
        shown.__doc__ = f"{inspect.getdoc(function)}\n\nOptions; None is the same as leaving it out:\n{lines}\n"
        return function

    return decorate
