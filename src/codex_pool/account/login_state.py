"""LoginState: the log-in in an auth.json as people may see it, without its secrets. Pure."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .auth_content import RUNTIME_WINDOW_S, parse_login, seconds_of

MAX_KIND_CHARS = 24


class LoginState(NamedTuple):
    """`kind`: "chatgpt", "apikey", or another word of codex; None for no log-in. Of the tokens of ChatGPT, None where
    it is not known: `access_expires_in_s`, negative for an access token that has expired, and `refreshed_ago_s`."""

    kind: str | None
    access_expires_in_s: float | None = None
    refreshed_ago_s: float | None = None


def login_state(content: bytes, now: float) -> LoginState:
    """Return the state of a log-in at `now`, seconds since the epoch. Raises ValueError for what is no JSON object."""
    try:
        record = json.loads(content)
    except RecursionError:
        record = None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    kind = _kind(record)
    if kind != "chatgpt":
        return LoginState(kind)
    login = parse_login(content)
    expires_in_s = None if login is None else login.refreshable_until + RUNTIME_WINDOW_S - now
    refreshed = seconds_of(record.get("last_refresh"))
    return LoginState(kind, expires_in_s, now - refreshed if refreshed else None)


def _kind(record: dict[str, Any]) -> str | None:
    mode = record.get("auth_mode")
    # A word of codex; anything else might be a secret in the wrong place.
    if isinstance(mode, str) and mode.isalpha() and len(mode) <= MAX_KIND_CHARS:
        return mode.lower()
    if record.get("OPENAI_API_KEY"):
        return "apikey"
    return "chatgpt" if isinstance(record.get("tokens"), dict) else None
