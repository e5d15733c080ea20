"""The start arguments of the tracer."""

from __future__ import annotations

import msgspec


class TracerArguments(msgspec.Struct, forbid_unknown_fields=True):
    """`listen_fd`: the listening socket to which workers connect."""

    listen_fd: int
