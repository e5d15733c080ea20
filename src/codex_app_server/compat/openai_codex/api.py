"""The names of `openai_codex.api`."""

from ._names import lazy_module

__getattr__, __dir__ = lazy_module(__name__, "api")
