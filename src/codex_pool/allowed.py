"""The allow-list of a pool that listens on TCP, read again when it has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from codex_pool.broker.identity import Identity
from codex_pool.keys import KeyStore


class AllowedKeys:
    """Principals by their public keys (Z85), as of the last `read`."""

    def __init__(self, store: KeyStore, log: Callable[[str], None]) -> None:
        self._store = store
        self._log = log
        self._signature: object = None
        self.clients: Mapping[str, Identity] = {}
        self._key_of: dict[str, str] = {}
        # Principals whose former key has ended with the last `read`.
        self._changed: set[str] = set()

    def read(self) -> bool:
        """Read the list if it has changed; True if it has.

        While the system cannot read files for now, what was read last stays in force.
        """
        try:
            signature = self._store.signature()
            if signature == self._signature:
                return False
            allowed = self._store.allowed()
        except OSError as error:
            self._log(f"the keys cannot be read: {error}")
            return False
        self._signature = signature
        for problem in allowed.problems:
            self._log(f"not allowed: {problem}")
        self._changed = {self.clients[key].principal for key in self.clients.keys() - allowed.clients.keys()}
        self.clients = allowed.clients
        self._key_of = {identity.principal: key for key, identity in allowed.clients.items()}
        return True

    def is_allowed(self, who: str, key: str) -> bool:
        """Return True if this is the present public key of this principal."""
        return bool(key) and self._key_of.get(who) == key

    def is_revoked(self, who: str, key: str) -> bool:
        """Return True if a session of this principal must end; `key` is what it came in with, "" if not known."""
        if not who:
            return False
        if who not in self._key_of:
            return True
        return key != self._key_of[who] if key else who in self._changed
