"""CodexConfig. The low-level CodexClient of `openai_codex.client` is left out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codex_app_server.config import AppServerConfig
from codex_app_server.generated.routing import RUNTIME_VERSION
from codex_app_server.home import codex_home

from ._names import lazy_module

__all__ = ["CodexConfig", "default_codex_home"]


@dataclass(slots=True)
class CodexConfig(AppServerConfig):
    """An AppServerConfig that takes its fields by position too, and introduces itself as the published SDK does."""

    codex_bin: str | os.PathLike[str] | None = None
    launch_args_override: tuple[str, ...] | None = None
    config_overrides: tuple[str, ...] = ()
    cwd: str | os.PathLike[str] | None = None
    env: dict[str, str] | None = None  # type: ignore[assignment]
    client_name: str = "codex_python_sdk"
    client_title: str = "Codex Python SDK"
    client_version: str = RUNTIME_VERSION
    experimental_api: bool = True


def default_codex_home() -> str:
    """The directory that codex keeps its state in: $CODEX_HOME, else ~/.codex."""
    return str(codex_home(dict(os.environ)))


if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_module(__name__, "client")
