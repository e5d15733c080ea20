"""Ports of loopback for tests."""

from __future__ import annotations

import itertools
import os
import socket

# Below the range (32768 and up) of which the system gives ports to connections of the other tests. Each process of the
# tests begins elsewhere.
_EACH, _PROCESSES = 100, 200
_FIRST = 10_000 + os.getpid() % _PROCESSES * _EACH
_ports = itertools.cycle(range(_FIRST, _FIRST + _EACH))


def free_port() -> int:
    """A port of loopback that nobody listens on, and that is given to nobody who asks for any port."""
    for port in itertools.islice(_ports, _EACH):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port of loopback is free")
