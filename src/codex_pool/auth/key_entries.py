"""Entries of the allow-list: an identity, with what it connects with, and what can be meant."""

from __future__ import annotations

import datetime as dt
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from . import tokens
from .client_keys import is_key
from .key_files import KeysError
from .principal import MAX_MESSAGE_BYTES, MAX_PRIORITY, Identity, known_pattern

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DAY = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DURATION = re.compile(r"([1-9][0-9]{0,5})([dhm])")
_UNITS_S = {"d": 86400, "h": 3600, "m": 60}
_MOST = 10**15
# Keys of a principal that are valid for a time of grace.
MAX_FORMER = 4
_PRINCIPAL = re.compile(r"[0-9a-f]{32}")


class FormerKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that was rotated, and its token; valid until a Unix second."""

    public_key: str
    token_sha256: str
    until: int


class AllowedClient(Identity, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An entry of the allow-list: an identity, its public key, and the SHA-256 of its token.

    `token_sha256` is empty for a key without a token, `unix_uid` -1 where no user of this machine may connect as this
    identity over a Unix socket. In Unix seconds: `since` is when its principal was made, `key_since` its present key,
    `expires_at` when that ends by itself, `revoked_at` when it was revoked; 0 is not known, or not. `former`: keys
    before it that are still valid.
    """

    public_key: str
    token_sha256: str = ""
    unix_uid: int = -1
    since: int = 0
    key_since: int = 0
    expires_at: int = 0
    revoked_at: int = 0
    former: tuple[FormerKey, ...] = ()

    @property
    def identity(self) -> Identity:
        """Part of it that the broker knows."""
        return Identity(**{field: getattr(self, field) for field in Identity.__struct_fields__})


def expiry_of(text: str, now: float) -> int:
    """The Unix second at which a key expires: after `30d`, `12h` or `45m`, or when the day YYYY-MM-DD begins here.

    0 for `never`. Raises KeysError.
    """
    text = text.strip()
    if text == "never":
        return 0
    found = _DURATION.fullmatch(text)
    if found:
        return int(now) + int(found[1]) * _UNITS_S[found[2]]
    try:
        at = int(_midnight(text))
    except (ValueError, OverflowError):
        raise KeysError(
            f"{text!r} is no time at which a key expires; expected a duration such as 30d, 12h or 45m, a day such as "
            "2027-01-31, or never"
        ) from None
    if at <= now:
        raise KeysError(
            f"a key that expires on {text} has expired already; give a later day, or a duration such as 30d"
        )
    return at


def _midnight(day: str) -> float:
    if not _DAY.fullmatch(day):
        raise ValueError(day)
    return dt.datetime.fromisoformat(day).timestamp()


def uid_of(user: str) -> int:
    """The id of a user of this machine, by its name or number. Raises KeysError."""
    if user.isascii() and user.isdigit():
        return int(user)
    import pwd

    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise KeysError(f"this machine has no user {user!r}; give a name or a number of `getent passwd`") from None


def duration_s(text: str) -> int:
    """Seconds of a duration such as `30d`, `12h` or `45m`. Raises KeysError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise KeysError(f"{text!r} is no duration; expected one such as 30d, 12h or 45m")
    return int(found[1]) * _UNITS_S[found[2]]


def new_principal() -> str:
    """The id of a new principal: 128 random bits."""
    return secrets.token_hex(16)


def check_name(name: str) -> str:
    """The name of an identity. Raises KeysError."""
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"{name!r} cannot be the name of a key: expected 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


def check_limits(identity: Identity) -> None:
    """Raises KeysError for limits that cannot be meant."""
    for pattern in identity.methods:
        if not known_pattern(pattern):
            raise KeysError(f"method {pattern!r} names nothing; expected one such as fs/readFile, or all of them: fs/*")
    for root in identity.cwd_roots:
        if not root.startswith("/") or ".." in root.split("/") or "\0" in root:
            raise KeysError(f"directory {root!r} is not an absolute path without '..'")
    for name in ("max_message_bytes", "max_sessions", "max_threads", "max_turns"):
        value = getattr(identity, name)
        most = MAX_MESSAGE_BYTES if name == "max_message_bytes" else 1_000_000
        if not 1 <= value <= most:
            raise KeysError(f"{name} is {value}; expected 1 to {most}")
    for name in ("max_running_turns", "max_waiting_turns", "max_tokens_per_day", "max_tokens"):
        value = getattr(identity, name)
        if value is not None and not 0 <= value <= _MOST:
            raise KeysError(f"{name} is {value}; expected 0 to {_MOST}, or none")
    for name in ("max_spend_per_day", "max_spend"):
        value = getattr(identity, name)
        if value is not None and not 0 <= value <= _MOST:
            raise KeysError(f"{name} is {value}; expected an amount of 0 to {_MOST}, or none")
    if identity.max_running_turns == 0:
        raise KeysError("max_running_turns is 0, so that no turn would begin; expected at least 1, or revoke the key")
    if not 1 <= identity.priority <= MAX_PRIORITY:
        raise KeysError(f"priority is {identity.priority}; expected 1 to {MAX_PRIORITY}")


def check_entry(entry: AllowedClient, path: Path) -> None:
    """Check the entry that a file has. Raises KeysError."""
    check_name(entry.name)
    check_limits(entry)
    if not is_key(entry.public_key):
        raise KeysError(
            f"{path}: public_key is not a CURVE key of 40 characters; revoke {entry.name} and make a new one"
        )
    for key in entry.former:
        if not is_key(key.public_key) or (key.token_sha256 and not tokens.is_digest(key.token_sha256)):
            raise KeysError(f"{path}: former has no CURVE key and SHA-256 of a token; renew the key of {entry.name}")
    if entry.expires_at < 0:
        raise KeysError(f"{path}: expires_at is {entry.expires_at}; expected a Unix time, or 0; renew the key")
    if entry.token_sha256 and not tokens.is_digest(entry.token_sha256):
        raise KeysError(f"{path}: token_sha256 is not 64 hexadecimal digits; renew the key of {entry.name}")
    if entry.principal and not _PRINCIPAL.fullmatch(entry.principal):
        raise KeysError(f"{path}: principal {entry.principal!r} is not 32 hexadecimal digits; revoke {entry.name}")


def changed(entry: AllowedClient, limits: Mapping[str, Any]) -> AllowedClient:
    """The entry with other limits. Raises KeysError for limits that cannot be meant."""
    entry = msgspec.structs.replace(entry, **limits)
    check_limits(entry)
    return entry


def former_keys(entry: AllowedClient, now: int, grace_s: int) -> tuple[FormerKey, ...]:
    """The keys that end after a time of grace when an entry gets another one."""
    if not grace_s:
        return ()
    until = now + grace_s
    if entry.expires_at:
        until = min(until, entry.expires_at)
    former = (*entry.former, FormerKey(entry.public_key, entry.token_sha256, until))
    left = [key for key in former if key.until > now]
    if len(left) > MAX_FORMER:
        raise KeysError(
            f"{entry.name} has {len(entry.former)} former keys that are still valid; wait until one ends, or end all "
            f"of them: codex-pool keys renew {entry.name}"
        )
    return tuple(left)
