"""The start arguments of the holder."""

from __future__ import annotations

import msgspec


class HolderArguments(msgspec.Struct, forbid_unknown_fields=True):
    """`auth_json`: the file; `listen_fd`: a listening socket on 127.0.0.1; `path`: the secret path of the URL that is
    served there; `issuer_url`: where refresh requests go."""

    auth_json: str
    listen_fd: int
    path: str
    issuer_url: str
