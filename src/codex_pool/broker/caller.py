"""Caller: a client that has sent Hello, and the way on which it came. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol import wire
from ..protocol.ingress_frames import GATEWAY, INGRESS

# How the names of connections over the link of a gateway begin.
OVER_GATEWAY = GATEWAY.encode() + b"\0"
OVER_INGRESS = INGRESS.encode() + b"\0"


@dataclass(frozen=True, slots=True)
class Caller:
    """A client that has sent Hello before the barrier was lifted."""

    identity: bytes
    hello: wire.Hello
    positions: list[wire.Position]
    comes_back: bool
    principal: str
    key: str

    @property
    def session_id(self) -> wire.SessionId:
        return wire.SessionId(self.principal, self.hello.session)


def listener_of(identity: bytes, hello: wire.Hello) -> str:
    """Return how a connection came in, for lists of sessions; the gateway names its own listeners."""
    if identity.startswith(OVER_GATEWAY):
        return hello.listener[:16] or GATEWAY
    return "tcp" if identity.startswith(OVER_INGRESS) else "ipc"
