"""The start arguments of the gateway."""

from __future__ import annotations

import msgspec

from .sessions import ListenerConfig

MEMORY_BYTES = 768 * 1024 * 1024


class GatewayArguments(msgspec.Struct, forbid_unknown_fields=True):
    """`link`: path of the socket on which the broker takes the link, `secret` what it knows a gateway by; `endpoint`:
    the pool's, for messages; `listeners`: where clients are let in; `memory_bytes`: limit of the process (RLIMIT_DATA).
    """

    link: str
    secret: str
    endpoint: str
    listeners: ListenerConfig
    memory_bytes: int = MEMORY_BYTES
