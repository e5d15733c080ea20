"""The content of an auth.json, as far as a refresh needs it. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

# From codex 0.163: an app-server refreshes unasked once its access token expires within this time (measured), and a
# token that names no time when the last refresh is 8 days ago.
RUNTIME_WINDOW_S = 300.0
RUNTIME_MAX_AGE_S = 8 * 86400.0
MAX_TIME_S = 1e11
TOKEN_NAMES = ("id_token", "access_token", "refresh_token")


@dataclass(frozen=True, slots=True, repr=False)
class Login:
    """A ChatGPT login whose tokens can be refreshed. Times are seconds since the epoch.

    `account`: digest of account and user, to tell one login from another. `refreshable_until`: from then on app-servers
    refresh by themselves.
    """

    tokens: dict[str, str]
    account: str
    issued_at: float
    refreshable_until: float

    @property
    def refresh_token(self) -> str:
        return self.tokens["refresh_token"]

    def renewed(self, answer: bytes, now: float) -> Login | None:
        """The login after this answer of the issuer; None if it is not an answer with tokens."""
        tokens = tokens_in(answer)
        if "access_token" not in tokens:
            return None
        tokens = {**self.tokens, **tokens}
        return Login(tokens, self.account, *_times(claims(tokens["access_token"]), now))

    def fresh(self, now: float) -> bool:
        """True if an app-server that gets these tokens has no reason to refresh them soon.

        Of tokens so short-lived that an app-server always wants to refresh them, the first half of their life counts.
        """
        if self.refreshable_until > self.issued_at:
            return now < self.refreshable_until
        return now < self.issued_at + (self.refreshable_until + RUNTIME_WINDOW_S - self.issued_at) / 2


def tokens_in(answer: bytes) -> dict[str, str]:
    """The tokens in an answer of the issuer. What could not stand in an auth.json is left out: codex reads none of a
    file with an identity token that is no JWT."""
    try:
        found = json.loads(answer)
        tokens = {name: token for name in TOKEN_NAMES if isinstance(token := found.get(name), str) and token}
    except (ValueError, AttributeError, RecursionError):
        return {}
    if not claims(tokens.get("id_token", "")):
        tokens.pop("id_token", None)
    return tokens


def parse_login(content: bytes) -> Login | None:
    """The login in an auth.json; None if it holds no ChatGPT tokens of codex's own, or is not readable as JSON."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return _login(record) if isinstance(record, dict) else None


def _login(record: dict[str, Any]) -> Login | None:
    # Absent in files of older versions: a key then goes before tokens.
    mode = record.get("auth_mode") or ("apikey" if record.get("OPENAI_API_KEY") else "chatgpt")
    tokens = record.get("tokens")
    if mode != "chatgpt" or not isinstance(tokens, dict):
        return None
    strings = {name: value for name in TOKEN_NAMES if isinstance(value := tokens.get(name), str) and value}
    if "refresh_token" not in strings or "access_token" not in strings:
        return None
    identity, access = claims(strings.get("id_token", "")), claims(strings["access_token"])
    about = identity.get("https://api.openai.com/auth")
    about = about if isinstance(about, dict) else {}
    parts = [tokens.get("account_id"), about.get("chatgpt_user_id") or about.get("user_id") or identity.get("sub")]
    return Login(strings, digest(json.dumps(parts)), *_times(access, seconds_of(record.get("last_refresh"))))


def _times(access: dict[str, Any], last_refresh: float) -> tuple[float, float]:
    """Time at which an access token was issued, and from which app-servers refresh it."""
    expires_at, issued_at = _number(access.get("exp")), _number(access.get("iat")) or last_refresh
    return issued_at, expires_at - RUNTIME_WINDOW_S if expires_at else (last_refresh or issued_at) + RUNTIME_MAX_AGE_S


def with_tokens(content: bytes, tokens: dict[str, str], now: float) -> bytes:
    """An auth.json with these tokens; all else in it is kept. Raises ValueError, TypeError, KeyError."""
    record = json.loads(content)
    record["tokens"] = {**record["tokens"], **tokens}
    record["last_refresh"] = datetime.fromtimestamp(now, timezone.utc).isoformat().replace("+00:00", "Z")
    return json.dumps(record, indent=2).encode()


def claims(token: str) -> dict[str, Any]:
    """The claims of a JWT, not verified; {} for anything else."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def digest(text: str) -> str:
    """SHA-256 in hexadecimal: what may be kept of a token."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _number(value: object) -> float:
    """A number of seconds since the epoch; 0.0 for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_TIME_S:
        return float(value)
    return 0.0


def seconds_of(value: object) -> float:
    """A time as codex writes it, with nanoseconds; 0.0 for anything else."""
    if not isinstance(value, str):
        return 0.0
    whole, _, _ = value.removesuffix("Z").partition(".")
    try:
        found = datetime.fromisoformat(whole)
    except ValueError:
        return 0.0
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
