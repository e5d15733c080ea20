"""The names of `openai_codex.api`."""

from codex_app_server.compat.openai_codex._names import lazy_module

__getattr__, __dir__ = lazy_module(__name__, "api")
