"""AppServerConfig: the start of an app-server, and how a client introduces itself."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import home
from ._runtime.bundled_tools import with_tools
from ._runtime.client_name import CLIENT_NAME, CLIENT_TITLE
from ._runtime.paths import check_utf8, shown
from ._runtime.start_failures import directory_problem, file_problem
from .errors import BinaryNotFoundError, InvalidInputError, StartError
from .generated.routing import RUNTIME_VERSION

RUNTIME_PACKAGE = "openai-codex-cli-bin"

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY")
_EXEMPT = ("NO_PROXY", "no_proxy")
_LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")


@dataclass(slots=True, kw_only=True)
class AppServerConfig:
    """Configuration of one app-server process. Every field has a working default.

    `codex_bin`: path of the codex binary, where `~` is the home directory; a string without a separator, such as
    `codex`, is looked for on PATH; by default the one in the pinned runtime package.
    `launch_args_override`: the whole command line instead of `codex ... app-server`; nothing is added to it.
    `config_overrides`: `key=value` strings, passed as `--config` (the value is parsed as TOML).
    `cwd`: working directory of the process, and so the default one of its threads.
    `env`: environment variables set on top of the current environment. Where that names a proxy, the hosts of loopback
    are exempt from it (see `environ`).
    `client_name`, `client_title`, `client_version`: what `initialize` reports of this client.
    `experimental_api`: whether methods and fields marked experimental may be used.
    """

    codex_bin: str | os.PathLike[str] | None = None
    launch_args_override: tuple[str, ...] | None = None
    config_overrides: tuple[str, ...] = ()
    cwd: str | os.PathLike[str] | None = None
    env: dict[str, str] = field(default_factory=dict)
    client_name: str = CLIENT_NAME
    client_title: str = CLIENT_TITLE
    client_version: str = RUNTIME_VERSION
    experimental_api: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.config_overrides, str | Mapping):
            raise InvalidInputError(
                f"config_overrides is {self.config_overrides!r}; give a tuple of strings 'key=value', values as TOML"
            )
        self.config_overrides = tuple(self.config_overrides)
        self.env = {name: _as_text(name, value) for name, value in dict(self.env or {}).items()}
        for override in self.config_overrides:
            if not re.match(r"[^=\s]+=", override):
                raise InvalidInputError(f"config override {override!r} is not of the form key=value")
        if self.launch_args_override is not None:
            if isinstance(self.launch_args_override, str) or not self.launch_args_override:
                value = self.launch_args_override
                raise InvalidInputError(f"launch_args_override is {value!r}; give the whole command line as a tuple")
            self.launch_args_override = tuple(self.launch_args_override)
        if self.cwd is not None:
            if (problem := directory_problem(self.cwd)) is not None:
                path = os.fspath(self.cwd)
                raise InvalidInputError(f"cwd {path!r} is not a directory that can be used: it {problem}; give another")
            check_utf8("cwd", self.cwd)

    def argv(self) -> list[str]:
        """The command line of the app-server. Raises BinaryNotFoundError, or StartError when it is not executable."""
        if self.launch_args_override is not None:
            return list(self.launch_args_override)
        argv = [str(find_codex(self.codex_bin, self.env.get("PATH")))]
        for override in self.config_overrides:
            argv += ["--config", override]
        return [*argv, "app-server", "--listen", "stdio://"]

    def environ(self) -> dict[str, str]:
        """The app-server's environment: ours, `env` on top, an absolute CODEX_HOME, the runtime's tools on PATH.

        Where a proxy is set, loopback is added to NO_PROXY and no_proxy: codex would ask the proxy for a model server
        on 127.0.0.1, too. What stands there is kept; with `*`, which codex does not heed for addresses, the proxies
        are left out instead.
        """
        environ = {**os.environ, **self.env}
        if environ.get(home.VARIABLE):
            # Relative to our working directory, not to that of the process.
            environ[home.VARIABLE] = str(home.codex_home(environ))
        if self.launch_args_override is None:
            environ["PATH"] = with_tools(environ.get("PATH", ""), packaged=self.codex_bin is None)
        return without_proxy_on_loopback(environ)


def _as_text(name: str, value: Any) -> str:
    """The value of an environment variable. Raises InvalidInputError."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise InvalidInputError(f"env: {name} is {value!r}; expected a string, such as {str(value)!r}")
    return value


def config_of(given: Any) -> AppServerConfig:
    """The configuration that was given, by default one with nothing set. Raises InvalidInputError for anything else."""
    if given is None:
        return AppServerConfig()
    if isinstance(given, AppServerConfig):
        return given
    remedy = "AppServerConfig(**config)" if isinstance(given, Mapping) else "AppServerConfig(codex_bin=..., cwd=...)"
    raise InvalidInputError(f"config is a {type(given).__name__}; expected an AppServerConfig: write {remedy}")


def without_proxy_on_loopback(environ: dict[str, str]) -> dict[str, str]:
    """The same environment, but loopback is never asked of a proxy that it names."""
    proxies = {name for name, value in environ.items() if value and name.upper() in _PROXIES}
    if not proxies:
        return environ
    exempt = {name: environ[name] for name in _EXEMPT if name in environ} or dict.fromkeys(_EXEMPT, "")
    hosts = {name: [host.strip() for host in value.split(",") if host.strip()] for name, value in exempt.items()}
    if any("*" in each for each in hosts.values()):
        return {name: value for name, value in environ.items() if name not in proxies}
    return {
        **environ,
        **{name: ",".join([*each, *(host for host in _LOOPBACK if host not in each)]) for name, each in hosts.items()},
    }


def find_codex(codex_bin: str | os.PathLike[str] | None = None, path: str | None = None) -> Path:
    """The codex binary, as an absolute path: `codex_bin` if given, else the one of the installed runtime package.

    A string without a separator is looked for in the absolute directories of `path`, by default $PATH. Links are not
    followed. Raises BinaryNotFoundError, which names the path or the package, and StartError for a file that cannot be
    executed.
    """
    if codex_bin is not None:
        name = os.fspath(codex_bin)
        if not name:
            raise BinaryNotFoundError("codex_bin is empty; set it to a codex binary, or leave it out")
        if isinstance(codex_bin, str) and not os.path.dirname(name):
            return _on_path(name, path)
        # Absolute: the process is started in a working directory of its own.
        found = os.path.expanduser(name)
        with contextlib.suppress(FileNotFoundError):
            # The working directory may be gone.
            found = os.path.join(os.getcwd(), found)
        problem = file_problem(found)
        if problem is None:
            return Path(found)
        words, missing = problem
        if missing:
            raise BinaryNotFoundError(f"codex binary not found at {shown(found)}; set codex_bin to an existing file")
        raise StartError(f"codex binary at {shown(found)} {words}", "not_executable")
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


def _on_path(name: str, path: str | None) -> Path:
    """The program `name` of the absolute directories of PATH: a checkout is not to choose what is started."""
    if path is None:
        path = os.environ.get("PATH", os.defpath)
    names = [name, f"{name}.exe"] if os.name == "nt" else [name]
    found = None
    for place in path.split(os.pathsep):
        for each in names:
            candidate = os.path.join(place, each)
            if os.path.isabs(place) and os.path.isfile(candidate):
                found = found or candidate
                if os.access(candidate, os.X_OK):
                    return Path(candidate)
    if found is not None:
        raise StartError(
            f"codex binary at {shown(found)} is not executable; chmod +x it or name another", "not_executable"
        )
    hint = f"; for the file in the working directory write {os.path.join('.', name)}" if os.path.isfile(name) else ""
    raise BinaryNotFoundError(f"no program {name!r} on PATH; install it, or set codex_bin to the path of a file{hint}")
