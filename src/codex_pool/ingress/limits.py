"""Bounds of the ingress, in bytes and in time as well as in number.

strangers     the handshake's own bounds (`zmtp`), HANDSHAKE_LIMIT_S; of too many the one that came first goes
clients       the first message is a Hello, within HELLO_LIMIT_S; IDLE_LIMIT_S between two messages; per key
              connections for its sessions and as many that are being replaced
to the broker per connection QUEUE_MESSAGES or QUEUE_BYTES: then nothing is read from it. An incomplete message of
              more than FREE_BYTES needs a reservation, bounded for its key (KEY_BYTES) and in all (ALL_BYTES), and has
              MESSAGE_LIMIT_S to be complete. Keys take turns, SHARE_BYTES at a time. A key sends RATE_BYTES
              and RATE_MESSAGES a second, BURST_BYTES and BURST_MESSAGES before that counts; long requests are
              screened (see `screen`)
to clients    per key OUT_KEY_BYTES, of all OUT_ALL_BYTES, and STALL_LIMIT_S without any progress: the connection
              ends, and its client gets what it has missed on another one
"""

from __future__ import annotations

MIB = 1024 * 1024
HANDSHAKE_LIMIT_S = 5.0
HELLO_LIMIT_S = 10.0
IDLE_LIMIT_S = 60.0
MESSAGE_LIMIT_S = 60.0
STALL_LIMIT_S = 60.0
CLOSING_LIMIT_S = 2.0
TICK_S = 0.25
# After so long without a sign of any client, and until the next one.
REST_AFTER_S, REST_TICK_S = 5.0, 1.0

QUEUE_MESSAGES = 64
QUEUE_BYTES = 256 * 1024
FREE_BYTES = 64 * 1024
KEY_BYTES = 40 * MIB
ALL_BYTES = 96 * MIB
SHARE_BYTES = 8 * 1024
SHARE_MESSAGES = 16
# A message of megabytes costs the broker some 10 ms, a short one 0.25 ms.
RATE_BYTES = 8 * MIB
BURST_BYTES = 16 * MIB
RATE_MESSAGES = 1000
BURST_MESSAGES = 2000
# Up to here what is too long for a key is passed on, so that the broker can answer the request.
ANSWERED_BYTES = MIB

MAX_TO_CLIENT_BYTES = 64 * MIB
OUT_KEY_BYTES = 64 * MIB
OUT_ALL_BYTES = 128 * MIB
# While more waits for a client, its PINGs are not answered.
PONG_BYTES = 64 * 1024
