"""Keys of a task.toml of Harbor: what each must be, and those that are not supported, with the reason. Pure.

A key that is not supported is refused even where Harbor would ignore it, unless its value asks for nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from codex_app_server._runtime.text import cut

from .task import SCHEMAS

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SIZE = re.compile(r"\s*\d+(\.\d+)?\s*[GMK]\s*", re.IGNORECASE)
# What a directory of one name may be called on any host.
_NO_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|(COM|LPT)[1-9])", re.IGNORECASE)


class Problem(NamedTuple):
    """A problem with a key; `is_unsupported` if it has a meaning for Harbor that cannot be had here."""

    key: str
    message: str
    is_unsupported: bool = False


class Key(NamedTuple):
    """A key: what is expected, in words and as a check, or the keys of its table."""

    wanted: str
    is_right: Callable[[Any], bool]
    table: Mapping[str, Key | Unsupported] | None = None


class Unsupported(NamedTuple):
    """A key that is refused, for a reason, unless its value asks for nothing."""

    reason: str
    asks_nothing: Callable[[Any], bool] = lambda value: value in ([], {}, "", 0) and value is not False


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_user(value: Any) -> bool:
    is_id = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return is_id or (is_text(value) and not value.startswith("-"))


def _is_variables(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _VARIABLE.fullmatch(name) and isinstance(text, str) and "\0" not in text for name, text in value.items()
    )


def _is_least(value: Any) -> bool:
    return is_number(value) or (isinstance(value, dict) and bool(value) and all(map(is_number, value.values())))


def _is_step_name(value: Any) -> bool:
    return (
        is_text(value)
        and value not in (".", "..")
        and not value.endswith((".", " "))
        and not _NO_NAME.search(value)
        and not _DEVICE.fullmatch(value.partition(".")[0].rstrip())
        and len(value.encode("utf-8", "surrogatepass")) <= 255
    )


def _is_path(value: Any) -> bool:
    return is_text(value) and ".." not in value.split("/")


def _is_destination(value: Any) -> bool:
    return _is_path(value) and not value.startswith("/") and "\\" not in value and value.rstrip("/") != "manifest.json"


_TEXT = Key("a string", lambda value: isinstance(value, str))
_TEXTS = Key(
    "a list of strings", lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value)
)
_SECONDS = Key("a number of seconds above 0", _is_positive)
_NO_SECONDS = Key("a number of seconds, at least 0", lambda value: is_number(value) and value >= 0)
_USER = Key("the name or the number of a user", _is_user)
_VARIABLES = Key("a table of strings by the names of variables", _is_variables)
_SIZE_TEXT = Key("a size such as 2G or 512M", lambda value: isinstance(value, str) and bool(_SIZE.fullmatch(value)))


def _one_of(*known: str) -> Key:
    return Key(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


def _table(keys: Mapping[str, Key | Unsupported]) -> Key:
    return Key("a table", lambda value: isinstance(value, dict), keys)


def _tables(keys: Mapping[str, Key | Unsupported]) -> Key:
    return Key("a list of tables", lambda value: isinstance(value, list) and bool(value), keys)


_NO_HOSTS = Unsupported("a container has the network or has none; a list of hosts is not supported")
_NETWORK = Key(
    "no-network or public: an allowlist of hosts is not supported",
    lambda value: value in ("no-network", "public"),
)
_SEPARATE = Unsupported("the verifier runs in the container of the agent; one of its own is not supported")
_ARTIFACT_TABLE: dict[str, Key | Unsupported] = {
    "source": Key("a path without '..'", _is_path),
    "destination": Key("a relative path without '..', other than manifest.json", _is_destination),
    "exclude": Unsupported("patterns are not supported; name the files that are to be kept"),
    "service": Unsupported("a task has one container, main", lambda value: value == "main"),
}
_ARTIFACTS = Key(
    "a list of paths without '..', or tables with a source",
    lambda value: isinstance(value, list) and all(_is_path(each) or isinstance(each, dict) for each in value),
    _ARTIFACT_TABLE,
)
_HEALTHCHECK = _table(
    {
        "command": Key("a shell command", is_text),
        "interval_sec": _NO_SECONDS,
        "timeout_sec": _SECONDS,
        "start_period_sec": _NO_SECONDS,
        "start_interval_sec": _NO_SECONDS,
        "retries": Key("a whole number above 0", _is_count),
    }
)
_AGENT: dict[str, Key | Unsupported] = {
    "timeout_sec": _SECONDS,
    "user": _USER,
    "network_mode": _NETWORK,
    "allowed_hosts": _NO_HOSTS,
}
_VERIFIER: dict[str, Key | Unsupported] = {
    "timeout_sec": _SECONDS,
    "env": _VARIABLES,
    "user": _USER,
    "network_mode": _NETWORK,
    "allowed_hosts": _NO_HOSTS,
    "environment_mode": Unsupported(_SEPARATE.reason, lambda value: value == "shared"),
    "environment": Unsupported(_SEPARATE.reason, lambda value: False),
    "collect": Unsupported("commands between agent and verifier are not supported; do that in tests/test.sh"),
}
_ENVIRONMENT: dict[str, Key | Unsupported] = {
    "build_timeout_sec": _SECONDS,
    "docker_image": Key("the name of an image", is_text),
    "os": Unsupported("expected linux", lambda value: isinstance(value, str) and value.lower() == "linux"),
    "cpus": Key("a number above 0", _is_positive),
    "memory_mb": Key("a whole number above 0", _is_count),
    "memory": _SIZE_TEXT,
    "storage_mb": Unsupported("a limit of the disk is not enforced"),
    "storage": Unsupported("a limit of the disk is not enforced"),
    "gpus": Unsupported("GPUs are not supported"),
    "gpu_types": Unsupported("GPUs are not supported"),
    "tpu": Unsupported("TPUs are not supported"),
    "mcp_servers": Unsupported("MCP servers of a task are not supported; configure them in codex's config.toml"),
    "env": _VARIABLES,
    "skills_dir": Unsupported("skills of an image are not supported"),
    "healthcheck": _HEALTHCHECK,
    "workdir": Key("an absolute path", lambda value: is_text(value) and value.startswith("/")),
    "network_mode": _NETWORK,
    "allowed_hosts": _NO_HOSTS,
    "allow_internet": Key("true or false", lambda value: isinstance(value, bool)),
}
_PACKAGE: dict[str, Key | Unsupported] = {
    "name": Key("a name of the form ORG/NAME", lambda value: is_text(value) and value.count("/") == 1),
    "version": Key("a non-empty string", is_text),
    "description": _TEXT,
    "authors": Key(
        "a list of tables", lambda value: isinstance(value, list) and all(isinstance(a, dict) for a in value)
    ),
    "keywords": _TEXTS,
}
_STEP: dict[str, Key | Unsupported] = {
    "name": Key("the name of a directory below steps/", _is_step_name),
    "agent": _table(_AGENT),
    "verifier": _table(_VERIFIER),
    "min_reward": Key("a number, or a table of numbers by reward", _is_least),
    "healthcheck": _HEALTHCHECK,
    "artifacts": _ARTIFACTS,
}
_SCHEMA = _one_of(*SCHEMAS)
ROOT: dict[str, Key | Unsupported] = {
    "schema_version": _SCHEMA,
    "version": _SCHEMA,
    "task": _table(_PACKAGE),
    "metadata": Key("a table", lambda value: isinstance(value, dict)),
    "source": _TEXT,
    "agent": _table(_AGENT),
    "verifier": _table(_VERIFIER),
    "environment": _table(_ENVIRONMENT),
    "solution": _table({"env": _VARIABLES}),
    "multi_step_reward_strategy": _one_of("mean", "final"),
    "multi_step_reward_mode": Unsupported(
        "the key is multi_step_reward_strategy since schema 1.3", lambda value: False
    ),
    "steps": _tables(_STEP),
    "artifacts": _ARTIFACTS,
}


def check(value: Mapping[str, Any], keys: Mapping[str, Key | Unsupported] = ROOT, path: str = "") -> Iterator[Problem]:
    """Yield all that is wrong with the keys of a table and of those below it; `path` is that of the table."""
    for name, content in value.items():
        key, where = keys.get(name), f"{path}{name}"
        if key is None:
            known = ", ".join(name for name, each in keys.items() if isinstance(each, Key))
            yield Problem(where, f"is not a key that is known here; expected some of {known}", is_unsupported=True)
        elif isinstance(key, Unsupported):
            if not key.asks_nothing(content):
                yield Problem(where, f"is {_shown(content)}, which is not supported: {key.reason}", is_unsupported=True)
        elif not key.is_right(content):
            yield Problem(where, f"is {_shown(content)}; expected {key.wanted}")
        elif key.table is not None:
            yield from _below(content, key.table, where)


def _below(content: Any, keys: Mapping[str, Key | Unsupported], where: str) -> Iterator[Problem]:
    if isinstance(content, dict):
        yield from check(content, keys, f"{where}.")
        return
    for number, each in enumerate(content, 1):
        if isinstance(each, dict):
            yield from check(each, keys, f"{where}[{number}].")
        elif keys is not _ARTIFACT_TABLE:
            yield Problem(f"{where}[{number}]", f"is {_shown(each)}; expected a table")


def _shown(value: Any) -> str:
    return cut(repr(value) if not isinstance(value, bool) else str(value).lower(), 60)
