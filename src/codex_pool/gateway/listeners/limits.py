"""Bounds of the listeners, in bytes and in time as well as in number.

strangers     HANDSHAKE_LIMIT_S from connecting to an accepted WebSocket handshake, TLS included; HEADER_BYTES of
              headers; of each listener MAX_STRANGERS at once, beyond which the one that came first has to go, and
              RATE_STRANGERS a second, of which BURST_STRANGERS may come at once: others wait in its backlog
clients       MAX_CLIENTS at once, fewer where descriptors are few, and OWNER_CLIENTS of them the owner's alone; of a
              key as many as it may have sessions
of a key      RATE_BYTES and RATE_MESSAGES a second, after BURST_BYTES and BURST_MESSAGES, as in the ingress. PINGs are
              messages, a handshake is HANDSHAKE_MESSAGES. Frames that are no message cost time: RATE_CPU_S a second.
              Beyond that nothing is read of its connections until time has passed; after THROTTLED_LIMIT_S they end
from clients  a message has the bytes of its key at most, the owner's OWNER_MESSAGE_BYTES: a longer one is refused when
              its length is read. One that is longer than FREE_BYTES has MESSAGE_LIMIT_S to be complete, and all that
              are incomplete have ALL_INCOMPLETE_BYTES. While a session does not accept more, nothing is read
to clients    UNSENT_MESSAGES or UNSENT_BYTES that are not sent: the client is disconnected; of all clients
              ALL_UNSENT_BYTES: the one with the most is. From CONGESTED_BYTES on its session knows
"""

from __future__ import annotations

from ...ingress.limits import BURST_BYTES, BURST_MESSAGES, RATE_BYTES, RATE_MESSAGES

__all__ = ["BURST_BYTES", "BURST_MESSAGES", "RATE_BYTES", "RATE_MESSAGES"]

MIB = 1024 * 1024

HANDSHAKE_LIMIT_S = 5.0
HEADER_BYTES = 16 * 1024
MAX_STRANGERS = 256
# Each costs a millisecond or less.
RATE_STRANGERS = 200
BURST_STRANGERS = 400
MAX_CLIENTS = 1024
OWNER_CLIENTS = 64
# For the link, the log, what is read of keys.
SPARE_DESCRIPTORS = 64

HANDSHAKE_MESSAGES = 10
RATE_CPU_S = 0.1
BURST_CPU_S = 0.05
PARSE_BYTES = 16 * 1024
# How long a key may send as fast as it may; nothing tells whether the sender of what waits is still there.
THROTTLED_LIMIT_S = 10.0
# Messages of one client that are handled before others have their turn.
MESSAGES_AT_ONCE = 16

OWNER_MESSAGE_BYTES = 64 * MIB
FREE_BYTES = 64 * 1024
MESSAGE_LIMIT_S = 60.0
ALL_INCOMPLETE_BYTES = 128 * MIB

# As the real server, which disconnects at so many messages (0.163).
UNSENT_MESSAGES = 32 * 1024
UNSENT_BYTES = 64 * MIB
ALL_UNSENT_BYTES = 256 * MIB
CONGESTED_BYTES = 128 * 1024
# Of what is joined into one write.
WRITE_BYTES = 64 * 1024
# Of a message that is written to the socket by itself.
AT_ONCE_BYTES = 16 * 1024

# From the end of a connection, until what was delivered is sent.
CLOSE_LIMIT_S = 3.0
TICK_S = 1.0
BACKLOG = 256


def room(files: int, listeners: int) -> tuple[int, int]:
    """Strangers of each listener, and clients, for which a process that may open so many files (-1: any) has room."""
    if files < 0:
        return MAX_STRANGERS, MAX_CLIENTS
    left = max(2, files - SPARE_DESCRIPTORS)
    strangers = max(1, min(MAX_STRANGERS, left // (4 * max(1, listeners))))
    return strangers, max(1, min(MAX_CLIENTS, left - strangers * listeners))
