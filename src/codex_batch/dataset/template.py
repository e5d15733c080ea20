"""Texts made of the columns of a dataset by a Jinja template: prompts, and fields of `--field`.

Besides the filters of Jinja there are `letter`, the letter of a choice by its number from 0, and `fromjson`.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import read_text_file

from .fields import printable
from .sample import DatasetError


class Template:
    """A template; `columns` are those it may use. Raises DatasetError with file and line when it is none."""

    def __init__(self, text: str, name: str) -> None:
        import jinja2
        from jinja2 import meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.name = name
        self._wrong = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError)
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        environment.filters.update(letter=letter, fromjson=fromjson)
        try:
            self._template = environment.from_string(text)
            self.columns = frozenset(meta.find_undeclared_variables(environment.parse(text)))
        except jinja2.TemplateSyntaxError as error:
            raise DatasetError([f"{name}:{error.lineno}: not a template: {error.message}"]) from None
        if not text.strip():
            raise DatasetError([f"{name}: the template is empty; expected the text of a prompt"])

    @classmethod
    def read(cls, path: Path) -> Template:
        try:
            return cls(read_text_file(path), str(path))
        except UnicodeDecodeError:
            raise DatasetError([f"{path}: not UTF-8; expected a template in UTF-8"]) from None
        except OSError as error:
            raise DatasetError([f"{path}: cannot be read: {error.strerror}; expected a template"]) from None

    def render(self, columns: dict[str, Any]) -> str:
        """The prompt. Raises ValueError naming a variable that does not exist, and those there are."""
        missing = sorted(self.columns - columns.keys())
        try:
            return self._template.render(columns)
        except self._wrong as error:
            there = ", ".join(printable(name) for name in columns) or "none"
            names = f" (variables that do not exist: {', '.join(missing)}; there are {there})" if missing else ""
            raise ValueError(f"{self.name}: {error}{names}") from None


def letter(number: Any) -> str:
    """A for 0, B for 1. Raises ValueError for what is no number of a choice, as -1 where no answer is known."""
    if isinstance(number, str) and number.strip().isdecimal():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(string.ascii_uppercase):
        raise ValueError(f"letter: {number!r} is not the number of a choice; expected a whole number from 0 to 25")
    return string.ascii_uppercase[number]


def fromjson(text: str) -> Any:
    """The value of JSON text. Raises ValueError."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"fromjson: {error}; expected JSON text") from None
