"""Secrets that a run could come across: where their values are known from.

environment   values of variables whose names look secret, and passwords in the URLs of others
homes         strings of auth.json and .credentials.json; of config.toml and its like what is given to MCP servers and
              commands as environment, headers, tokens, keys, and the variables that it names for them; of .env
              as of the environment
options       the same of `-c` overrides; the key of `--connect`

Values that are paths which exist are none.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli

from codex_app_server._runtime.files import read_file

from .redactor import MIN_CHARACTERS

SYSTEM = Path("/etc/codex")
_SECRET = re.compile(r"token|key|secret|passw|passphrase|credential|auth|cookie|bearer|_pwd$|dsn$", re.IGNORECASE)
# Tables of config.toml all of whose values are taken for secret.
_TABLES = frozenset({"env", "headers", "http_headers", "query_params", "set"})
# Keys whose values name variables of the environment.
_NAMES = frozenset({"env_key", "bearer_token_env_var", "env_http_headers", "env_vars"})
_LOGINS = ("auth.json", ".credentials.json")
# Of a login: no secrets.
_PLAIN = frozenset({"auth_mode", "last_refresh"})
_SCHEME = re.compile(r"(?:bearer|basic|token)\s+(\S.*)", re.IGNORECASE)
_USERINFO = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:([^/\s@]+)@", re.IGNORECASE)
# Of a key file that is not JSON: what stands between quotes or spaces, or behind the first equals sign of a line.
_QUOTED = re.compile(r"\"([^\"]+)\"|'([^']+)'")
_MIN_KEY_CHARACTERS = 32
_LIMIT_BYTES = 4 << 20

Found = Iterator[tuple[str, str]]


def known_secrets(
    environ: Mapping[str, str], homes: Iterable[Path], overrides: Iterable[str] = (), key: str | None = None
) -> dict[str, str]:
    """Secrets by name: of the environment, of CODEX_HOMEs, of `-c` overrides, of a key file. Raises nothing."""
    found: dict[str, str] = {}
    taken: set[str] = set()

    def take(pairs: Found) -> None:
        for name, value in pairs:
            value = value.strip()
            if len(value) < MIN_CHARACTERS or value in taken or _is_place(value):
                continue
            taken.add(value)
            unique = name
            while unique in found:
                unique += "_"
            found[unique] = value

    take(_of_environment(environ))
    for home in homes:
        for name in _LOGINS:
            take(_strings(_json(home / name), name))
        for path in (*_tables(home), home / ".env"):
            take(_of_dotenv(path) if path.suffix != ".toml" else _of_config(_toml(path), environ))
    for path in _tables(SYSTEM):
        take(_of_config(_toml(path), environ))
    for override in overrides:
        take(_of_override(override, environ))
    if key is not None:
        take(_of_key_file(Path(key)))
    return found


def _of_environment(environ: Mapping[str, str]) -> Found:
    for name, value in environ.items():
        if _SECRET.search(name):
            yield name, value
        yield from _in_urls(value, name)


def _of_config(value: Any, environ: Mapping[str, str], name: str = "config") -> Found:
    """Secrets in a table of config.toml, as the module's docstring defines them."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            path = f"{name}.{key}"
            if key in _NAMES:
                for variable in _plain_strings(below):
                    if variable in environ:
                        yield variable, environ[variable]
            elif key in _TABLES or (_SECRET.search(key) and isinstance(below, str)):
                for text in _plain_strings(below):
                    yield from _with_parts(text, path)
            else:
                yield from _of_config(below, environ, path)
    elif isinstance(value, list):
        yield from _of_arguments(value, name)
        for below in value:
            yield from _of_config(below, environ, name)
    elif isinstance(value, str):
        yield from _in_urls(value, name)


def _of_arguments(arguments: list[Any], name: str) -> Found:
    """Values of options that look secret: `--api-key VALUE`, `--token=VALUE`."""
    for place, argument in enumerate(arguments):
        if not isinstance(argument, str) or not argument.startswith("-") or not _SECRET.search(argument):
            continue
        _, equals, value = argument.partition("=")
        following = arguments[place + 1] if place + 1 < len(arguments) else None
        if equals:
            yield name, value
        elif isinstance(following, str):
            yield name, following


def _of_override(override: str, environ: Mapping[str, str]) -> Found:
    key, _, text = override.partition("=")
    try:
        value: Any = tomli.loads(f"value = {text}")["value"]
    except (tomli.TOMLDecodeError, RecursionError):
        value = text.strip()
    for part in reversed(key.strip().split(".")):
        value = {part.strip("\"' "): value}
    yield from _of_config(value, environ, "-c")


def _of_dotenv(path: Path) -> Found:
    for line in _text(path).splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        value = value.strip().strip("\"'")
        if equals and _SECRET.search(name):
            yield name.strip(), value
        yield from _in_urls(value, name.strip())


def _of_key_file(path: Path) -> Found:
    """Keys and tokens of a key file, as JSON or in another form. A key may hold any character but quotes and spaces."""
    for line in _text(path).splitlines():
        quoted = [one or other for one, other in _QUOTED.findall(line)]
        for text in (*quoted, *line.split(), line.partition("=")[2]):
            text = text.strip().strip("\"'")
            if len(text) >= _MIN_KEY_CHARACTERS:
                yield "key", text


def _with_parts(text: str, name: str) -> Found:
    """A secret, and the part of it that is secret on its own: without the scheme of a header, the password of a URL."""
    yield name, text
    scheme = _SCHEME.fullmatch(text.strip())
    if scheme is not None:
        yield name, scheme[1]
        try:
            password = base64.b64decode(scheme[1], validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            password = ""
        yield name, password
    yield from _in_urls(text, name)


def _in_urls(text: str, name: str) -> Found:
    return ((name, password) for password in _USERINFO.findall(text))


def _strings(value: Any, name: str) -> Found:
    """Yield all strings of a login."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            if key not in _PLAIN:
                yield from _strings(below, f"{name}.{key}")
    elif isinstance(value, list):
        for below in value:
            yield from _strings(below, name)
    elif isinstance(value, str):
        yield name, value


def _plain_strings(value: Any) -> Iterator[str]:
    return (text for _, text in _strings({"": value}, ""))


def _is_place(value: str) -> bool:
    """True for a path, or several between colons, that are there: they are no secrets."""
    parts = value.split(":")
    return all(part.startswith("/") for part in parts) and any(os.path.exists(part) for part in parts if part != "/")


def _tables(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            return ""
        return read_file(path).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def _toml(path: Path) -> Any:
    try:
        return tomli.loads(_text(path))
    except (tomli.TOMLDecodeError, RecursionError):
        return {}


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path) or "null")
    except (ValueError, RecursionError):
        return None
