"""The start arguments of the ingress."""

from __future__ import annotations

import msgspec

MAX_CONNECTIONS = 4096
# Measured: 22 MiB without clients. See `core` for what may be kept of and for clients; what is encrypted or decrypted
# just now comes on top, several times.
MEMORY_BYTES = 512 * 1024 * 1024


class IngressArguments(msgspec.Struct, forbid_unknown_fields=True):
    """`listen_fd`: a listening TCP socket, which the supervisor keeps; `keys`: the directory of the keys; `link`: the
    path of the socket on which the broker takes the link, and `secret` what it knows this process by."""

    listen_fd: int
    keys: str
    link: str
    secret: str
    max_connections: int = MAX_CONNECTIONS
    memory_bytes: int = MEMORY_BYTES
