"""`--prompt-template`: prompts made of the columns of a dataset by a Jinja template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codex_app_server._files import read_text_file

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
