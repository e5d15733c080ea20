"""The low-level AsyncCodexClient of `openai_codex.async_client` is left out; its name says what to use instead."""

from codex_app_server.compat.openai_codex._names import lazy_module

__getattr__, __dir__ = lazy_module(__name__, "async_client")
