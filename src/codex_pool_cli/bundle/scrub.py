"""Takes out of texts and settings what nobody else should read. Pure.

Two ways, one behind the other. Settings are kept by name: of a config.toml only numbers, booleans and strings of
settings that hold no secret and no text of a person. All text then loses the secrets that are known by value (the
Redactor), and what has the shape of one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

REMOVED = "[removed]"
# Variables whose values are shown; of all others the name is.
SHOWN_VARIABLES = frozenset(
    {
        "CODEX_HOME",
        "CODEX_POOL_KEYS",
        "CODEX_SQLITE_HOME",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LOG_FORMAT",
        "NO_COLOR",
        "PATH",
        "RUST_LOG",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TERM",
        "TMPDIR",
        "TZ",
        "VIRTUAL_ENV",
        "XDG_CONFIG_HOME",
        "XDG_RUNTIME_DIR",
        "XDG_STATE_HOME",
    }
)
# Settings of codex whose strings are words of codex, names of models and of providers, or paths.
_SHOWN_SETTINGS = frozenset(
    {
        "approval_policy",
        "cli_auth_credentials_store",
        "env_key",
        "file_opener",
        "forced_login_method",
        "history.persistence",
        "inherit",
        "model",
        "model_provider",
        "model_reasoning_effort",
        "model_reasoning_summary",
        "model_verbosity",
        "name",
        "persistence",
        "personality",
        "profile",
        "review_model",
        "sandbox_mode",
        "service_tier",
        "trust_level",
        "web_search",
        "wire_api",
    }
)
_URLS = frozenset({"base_url", "url", "chatgpt_base_url", "endpoint"})
# Tables whose names, too, may tell something.
_CLOSED = frozenset({"query_params"})
_SECRET_NAME = (
    r"[\w.-]*(?:token|secret|passw\w*|passphrase|api[-_]?key|access[-_]?key|authorization|credential|cookie)[\w.-]*"
)
_SHAPES = (
    re.compile(r"(?i)\b(?:bearer|basic)\s+[^\s\"',;]+"),
    re.compile(r"(?<=://)[^/\s@\"']+(?=@)"),
    re.compile(r"\beyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"),
    re.compile(r"\b(?:sk|rk|pk|ghp|gho|ghs|github_pat|glpat|xox[a-z]|hf)[-_][-_A-Za-z0-9]{12,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"),
    re.compile(rf"(?i)(?<![\w.-])(?P<keep>{_SECRET_NAME}[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+"),
    re.compile(r"(?i)(?P<keep>[?&](?:key|sig|signature|code|auth)=)[^\s\"'&]+"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
)

Redact = Callable[[str], str]


def shapeless(text: str) -> str:
    """The text without what has the shape of a secret: headers, passwords in URLs, tokens, values of secret names."""
    for shape in _SHAPES:
        keep = r"\g<keep>" if "keep" in shape.groupindex else ""
        text = shape.sub(f"{keep}{REMOVED}", text)
    return text


def plain_value(value: Any, redact: Redact) -> Any:
    """A value of JSON with all its strings and names redacted; numbers, and so the JSON, stay as they are."""
    if isinstance(value, Mapping):
        return {redact(str(name)): plain_value(below, redact) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(below, redact) for below in value]
    return redact(value) if isinstance(value, str) else value


def settings(value: Any, name: str = "") -> Any:
    """The settings of a config.toml that may be shown; a string that may not is replaced by its length."""
    if isinstance(value, Mapping):
        if name in _CLOSED:
            return {REMOVED: len(value)}
        return {str(key): settings(below, str(key)) for key, below in value.items()}
    if isinstance(value, list):
        return [settings(below, name) for below in value]
    if not isinstance(value, str):
        return value if isinstance(value, bool | int | float) else str(value)
    if name in _SHOWN_SETTINGS:
        return value
    return _host(value) if name in _URLS else f"[string of {len(value)} characters]"


def environment(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Names of all variables, with the values of those that hold no secret; of others None."""
    return {name: value if name in SHOWN_VARIABLES else None for name, value in sorted(environ.items())}


def _host(url: str) -> str:
    """A URL without user, path and query, each of which may be a secret."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return REMOVED
    return f"{parts.scheme}://{parts.hostname}{port}" if parts.hostname else REMOVED


def as_json(value: Any, redact: Redact) -> bytes:
    """A value as redacted JSON."""
    return (json.dumps(plain_value(value, redact), indent=1, default=str) + "\n").encode("utf-8", "backslashreplace")


def as_text(text: str, redact: Redact) -> bytes:
    """A redacted text."""
    return redact(text).encode("utf-8", "backslashreplace")
