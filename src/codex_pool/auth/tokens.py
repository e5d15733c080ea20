"""Bearer tokens of clients over WebSocket: the client's key file has the token, the allow-list only its SHA-256."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

TOKEN_BYTES = 32
# Longer ones are refused unread: a token has 43 characters.
MAX_TOKEN_CHARS = 512

_DIGEST = re.compile(r"[0-9a-f]{64}")


def new_token() -> str:
    """A new token: 256 random bits, as 43 letters, digits, '-' and '_'."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def digest_of(token: str) -> str:
    """The SHA-256 of a token, in hexadecimal digits."""
    # Loaded by need: it brings OpenSSL, and brokers compare no tokens.
    import hashlib

    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def is_digest(text: str) -> bool:
    """True for a SHA-256 as the allow-list has it."""
    return _DIGEST.fullmatch(text) is not None


def find(token: str, digests: Mapping[str, str]) -> str | None:
    """The value of the token's digest, None for a token that is not known.

    Tokens are never compared: how long the search takes depends on their digests, which nobody can choose.
    """
    if len(token) > MAX_TOKEN_CHARS:
        return None
    return digests.get(digest_of(token))
