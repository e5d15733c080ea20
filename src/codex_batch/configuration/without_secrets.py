"""Configuration without its secrets: of environments and headers the names, of credentials nothing. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "..."
# Tables whose values may be anything.
_NAMES_ONLY = frozenset({"env", "set", "headers", "http_headers", "env_http_headers", "query_params"})
_CREDENTIALS = frozenset({"auth", "aws", "gateway_oauth", "oauth", "oauth_client_id", "idp"})
_SECRET = re.compile(r"token|secret|passw|credential|bearer|api_?key|authorization|cookie|private_?key", re.IGNORECASE)
# Names of variables, not their values.
_OF_VARIABLES = re.compile(r"_env_var$|^env_key$|^env_vars$")
_URL = re.compile(r"^([a-z][a-z0-9+.-]*://)(?:[^/?#@]*@)?([^?#]*)", re.IGNORECASE)
# Options of a command whose value may be a secret: the next argument, or what follows an equals sign.
_OPTION = re.compile(
    r"^--?[\w-]*(?:token|key|secret|passw|auth|header|env|bearer|credential|cookie)[\w-]*$", re.IGNORECASE
)
# Those of curl whose value is a secret if it is of the form NAME:VALUE.
_PAIRED = frozenset({"-H", "-u", "--user"})
# A variable of an environment.
_ASSIGNED = re.compile(r"^([A-Z_][A-Z0-9_]*)=")
_TOKEN = re.compile(
    r"\b(?:sk-[\w-]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|xox[a-z]-[\w-]{10,}|AKIA\w{12,}|eyJ[\w-]{8,}\.[\w.-]+)"
    r"|(?i:\b(?:bearer|basic)\s+[\w+/=.~-]{12,})"
)


def without_secrets(value: Any, key: str = "") -> Any:
    """A value of the configuration as it may be stored; None where nothing of it may be."""
    if key in _CREDENTIALS:
        return None
    if isinstance(value, Mapping):
        if key in _NAMES_ONLY:
            return sorted(value)
        inner = {name: without_secrets(each, name) for name, each in value.items()}
        return {name: each for name, each in inner.items() if each is not None}
    if isinstance(value, list):
        if key in ("args", "command"):
            return _arguments([str(each) for each in value])
        return [without_secrets(each, key) for each in value]
    if not isinstance(value, str):
        return value
    if _SECRET.search(key) and not _OF_VARIABLES.search(key):
        return None
    if key == "command":
        return _TOKEN.sub(HIDDEN, " ".join(_arguments(value.split(" "))))
    return _text(value)


def _arguments(arguments: list[str]) -> list[str]:
    """The arguments of a command; values that may be secrets are hidden."""
    shown = []
    for place, argument in enumerate(arguments):
        name, equals, _ = argument.partition("=")
        before = arguments[place - 1] if place else ""
        if equals and (_OPTION.match(name) or _ASSIGNED.match(argument)):
            shown.append(f"{name}={HIDDEN}")
        elif _OPTION.match(before) or (before in _PAIRED and ":" in argument):
            shown.append(HIDDEN)
        else:
            shown.append(_text(argument))
    return shown


def _text(value: str) -> str:
    """Text without what a URL carries beside host and path, and without what looks like a token."""
    url = _URL.match(value)
    return _TOKEN.sub(HIDDEN, url[1] + url[2] if url else value)
