"""How an app-server is started and how a client introduces itself."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from . import home
from ._tools import with_tools
from .errors import BinaryNotFoundError, InvalidInputError
from .generated.routing import RUNTIME_VERSION

RUNTIME_PACKAGE = "openai-codex-cli-bin"


@dataclass(slots=True, kw_only=True)
class AppServerConfig:
    """Configuration of one app-server process. Every field has a working default.

    `codex_bin`: path of the codex binary; by default the one in the pinned runtime package.
    `launch_args_override`: the whole command line instead of `codex ... app-server`; nothing is added to it.
    `config_overrides`: `key=value` strings, passed as `--config` (the value is parsed as TOML).
    `cwd`: working directory of the process, and so the default one of its threads.
    `env`: environment variables set on top of the current environment.
    `client_name`, `client_title`, `client_version`: what `initialize` says of this client.
    `experimental_api`: whether methods and fields marked experimental may be used.
    """

    codex_bin: str | os.PathLike[str] | None = None
    launch_args_override: tuple[str, ...] | None = None
    config_overrides: tuple[str, ...] = ()
    cwd: str | os.PathLike[str] | None = None
    env: dict[str, str] = field(default_factory=dict)
    client_name: str = "codex_app_server_python"
    client_title: str = "Codex app-server SDK for Python"
    client_version: str = RUNTIME_VERSION
    experimental_api: bool = True

    def __post_init__(self) -> None:
        self.config_overrides = tuple(self.config_overrides)
        self.env = dict(self.env or {})
        for override in self.config_overrides:
            if not re.match(r"[^=\s]+=", override):
                raise InvalidInputError(f"config override {override!r} is not of the form key=value")
        if self.launch_args_override is not None:
            if isinstance(self.launch_args_override, str) or not self.launch_args_override:
                value = self.launch_args_override
                raise InvalidInputError(f"launch_args_override is {value!r}; give the whole command line as a tuple")
            self.launch_args_override = tuple(self.launch_args_override)
        if self.cwd is not None and not os.path.isdir(self.cwd):
            raise InvalidInputError(f"cwd {os.fspath(self.cwd)!r} is not a directory")

    def argv(self) -> list[str]:
        """The command line of the app-server. Raises BinaryNotFoundError."""
        if self.launch_args_override is not None:
            return list(self.launch_args_override)
        argv = [str(find_codex(self.codex_bin))]
        for override in self.config_overrides:
            argv += ["--config", override]
        return [*argv, "app-server", "--listen", "stdio://"]

    def environ(self) -> dict[str, str]:
        """The app-server's environment: ours, `env` on top, an absolute CODEX_HOME, the runtime's tools on PATH."""
        environ = {**os.environ, **self.env}
        if environ.get(home.VARIABLE):
            # Relative to our working directory, not to that of the process.
            environ[home.VARIABLE] = str(home.codex_home(environ))
        if self.launch_args_override is None:
            environ["PATH"] = with_tools(environ.get("PATH", ""), packaged=self.codex_bin is None)
        return environ


def find_codex(codex_bin: str | os.PathLike[str] | None = None) -> Path:
    """The codex binary: `codex_bin` if given, else the one of the installed runtime package.

    Raises BinaryNotFoundError, which names the path or the package.
    """
    if codex_bin is not None:
        # Absolute: the process is started in a working directory of its own.
        path = Path(codex_bin).absolute()
        if not path.is_file():
            raise BinaryNotFoundError(f"codex binary not found at {path}; set codex_bin to an existing file")
        if not os.access(path, os.X_OK):
            raise BinaryNotFoundError(f"codex binary at {path} is not executable; chmod +x it or name another")
        return path
    try:
        from codex_cli_bin import bundled_codex_path
    except ImportError:
        raise BinaryNotFoundError(
            f"no codex runtime: install {RUNTIME_PACKAGE}=={RUNTIME_VERSION}, or set codex_bin to a codex binary"
        ) from None
    try:
        return Path(bundled_codex_path())
    except FileNotFoundError as error:
        raise BinaryNotFoundError(f"{error}; reinstall {RUNTIME_PACKAGE}=={RUNTIME_VERSION}") from None
