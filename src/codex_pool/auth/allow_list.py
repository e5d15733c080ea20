"""The allow-list of a pool that lets keys in, read again when it has changed or a key expires."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from . import tokens
from .keys import KeyStore
from .principal import Identity


class AllowedKeys:
    """Principals by their public keys (Z85), as of the last `read`."""

    def __init__(self, store: KeyStore, log: Callable[[str], None]) -> None:
        self._store = store
        self._log = log
        self._signature: object = None
        # Unix time at which the next key expires.
        self._until = math.inf
        self.clients: Mapping[str, Identity] = {}
        self._tokens: Mapping[str, str] = {}
        self._users: Mapping[int, str] = {}
        # The keys of each principal: the present one, and former ones in their time of grace.
        self._keys_of: dict[str, set[str]] = {}
        # Principals whose former key has ended with the last `read`.
        self._changed: set[str] = set()

    def read(self) -> bool:
        """Read the list if it has changed, or a key has expired; True if it was read.

        While the system cannot read files for now, what was read last stays in force.
        """
        try:
            signature = self._store.signature()
            if signature == self._signature and self._store.now() < self._until:
                return False
            allowed = self._store.allowed()
        except OSError as error:
            self._log(f"the keys cannot be read: {error}")
            return False
        self._signature, self._until = signature, allowed.until
        for problem in allowed.problems:
            self._log(f"not allowed: {problem}")
        self._changed = {self.clients[key].principal for key in self.clients.keys() - allowed.clients.keys()}
        self.clients = allowed.clients
        self._tokens, self._users = allowed.tokens, allowed.users
        self._keys_of = {}
        for key, identity in allowed.clients.items():
            self._keys_of.setdefault(identity.principal, set()).add(key)
        return True

    def key_of_token(self, token: str) -> str | None:
        """The public key that a bearer token belongs to, None for an unknown one."""
        return tokens.find(token, self._tokens)

    def key_of_user(self, uid: int) -> str | None:
        """The public key of the identity that a user of this machine connects as, None if there is none."""
        return self._users.get(uid)

    def is_allowed(self, principal: str, key: str) -> bool:
        """Return True if this is a public key of this principal, the present one or one in its time of grace."""
        return key in self._keys_of.get(principal, ())

    def is_revoked(self, principal: str, key: str) -> bool:
        """Return True if a session of this principal must end; `key` is what it came in with, "" if not known."""
        if not principal:
            return False
        if principal not in self._keys_of:
            return True
        return key not in self._keys_of[principal] if key else principal in self._changed
