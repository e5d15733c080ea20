"""Settings of threads that ask for nothing else, as the result of `config/read` has them. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec

from codex_app_server.errors import AppServerError, JsonRpcError

from ..sandbox_modes import FULL_ACCESS, READ_ONLY, WORKSPACE_WRITE

# Built-in permission profiles that give what a sandbox mode gives.
MODE_OF_PROFILE = {":read-only": READ_ONLY, ":workspace": WORKSPACE_WRITE, ":danger-full-access": FULL_ACCESS}
# How often a pool is asked for its configuration where the worker that was asked dies before it answers.
TRIES = 3
_MAX_EXTENDS = 32
_WRITES = ("write", "full")


class ConfigurationError(AppServerError):
    """The configuration cannot be used; the message tells where and why. It may be mended while a pool runs."""


class Configuration(msgspec.Struct, frozen=True):
    """Settings of threads that ask for nothing else.

    `sandbox`: a sandbox mode; None where a permission profile of the user's own is the default, which is `profile`, or
    where both are unknown: a pool does not show its configuration to a client with a key, and sends the sandbox of
    the key with each thread that names none.
    `writes_workspace`: whether that profile lets commands write in the directory of a thread.
    `granted`: the absolute paths that it lets commands write to; `~` is expanded, links are not followed.
    `developer_instructions`: those of the configuration; a thread that is given others has these no more.
    `names_default`: whether the configuration itself names a sandbox mode or a default profile.
    `profiles`: the names of all permission profiles of the configuration.
    """

    sandbox: str | None
    profile: str | None = None
    writes_workspace: bool = False
    names_default: bool = True
    approval_policy: Any = None
    granted: tuple[str, ...] = ()
    profiles: frozenset[str] = frozenset()
    developer_instructions: str | None = None

    @property
    def thread_options(self) -> dict[str, Any]:
        """Options of thread/start that ask for the configured sandbox explicitly."""
        if self.profile is not None:
            return {"permissions": self.profile}
        return {} if self.sandbox is None else {"sandbox": self.sandbox}


UNKNOWN = Configuration(None)


def configuration_of(config: dict[str, Any]) -> Configuration:
    """The part of a `config/read` result's `config` that decides on sandboxes.

    A default profile wins over a sandbox mode. Without either, codex takes read-only, or workspace-write where it
    trusts the directory of the thread (measured on codex 0.163.0); a pool takes read-only.
    """
    profile, mode = config.get("default_permissions"), config.get("sandbox_mode")
    profiles = config.get("permissions") or {}
    said: dict[str, Any] = {
        "approval_policy": config.get("approval_policy"),
        "developer_instructions": config.get("developer_instructions"),
        "profiles": frozenset(profiles),
    }
    if profile is None:
        return Configuration(mode or READ_ONLY, names_default=mode is not None, **said)
    if profile in MODE_OF_PROFILE:
        return Configuration(MODE_OF_PROFILE[profile], **said)
    writes, granted = _writes_workspace(profile, profiles), _granted(profile, profiles)
    return Configuration(None, profile, writes, granted=granted, **said)


def _extended(profile: str, profiles: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(name, file system rules) of a profile and those that it extends; None: the rules of a built-in profile."""
    name: Any = profile
    for _ in range(_MAX_EXTENDS):
        found = profiles.get(name)
        if not isinstance(found, dict):
            yield name, None
            return
        yield name, found.get("filesystem") or {}
        name = found.get("extends")


def _writes_workspace(profile: str, profiles: dict[str, Any]) -> bool:
    for name, filesystem in _extended(profile, profiles):
        if filesystem is None:
            return MODE_OF_PROFILE.get(name) == WORKSPACE_WRITE
        roots = filesystem.get(":workspace_roots")
        granted = roots.get(".") if isinstance(roots, dict) else roots
        granted = filesystem.get(":root") if granted is None else granted
        if granted is not None:
            return granted in _WRITES
    return False


def _granted(profile: str, profiles: dict[str, Any]) -> tuple[str, ...]:
    access: dict[str, Any] = {}
    for _, filesystem in _extended(profile, profiles):
        for path, given in (filesystem or {}).items():
            below = given if isinstance(given, dict) else {"": given}
            for name, value in below.items():
                # The rule of a profile wins over that of one it extends.
                access.setdefault(os.path.normpath(os.path.join(os.path.expanduser(path), name)), value)
    return tuple(path for path, value in access.items() if value in _WRITES and os.path.isabs(path))


def configuration_in(result: bytes) -> Configuration:
    """The configuration in the JSON of a `config/read` result. Raises ConfigurationError where there is none."""
    config = msgspec.json.decode(result, type=dict[str, Any]).get("config")
    if not isinstance(config, dict):
        raise ConfigurationError(
            f"the app-server answered config/read with {result[:200]!r}; expected an object `config`"
        )
    return configuration_of(config)


def unusable(error: JsonRpcError) -> ConfigurationError:
    """The ConfigurationError for the error that an app-server has answered."""
    return ConfigurationError(
        f"the configuration cannot be used: {' '.join(error.message.split())}; correct it and try again"
    )
