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
        self.clients = allowed.clients
        return True
