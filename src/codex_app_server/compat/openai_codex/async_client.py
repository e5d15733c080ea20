"""The low-level AsyncCodexClient of `openai_codex.async_client` is left out; its error names the replacement."""

from ._names import lazy_module

__getattr__, __dir__ = lazy_module(__name__, "async_client")
