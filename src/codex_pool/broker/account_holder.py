"""The session that holds the account, and log-ins under way. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol import wire
from .request import Request

if TYPE_CHECKING:
    from .state import BrokerState


class AccountHolder:
    """The session that app-servers' requests about the account go to: the last that has logged in, else the first
    session of the pool's owner."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        self.session: wire.SessionId | None = None
        # Log-ins under way by their ids: the worker that has one, and the session that began it.
        self.logins: dict[str, tuple[str, wire.SessionId]] = {}
        # Sessions that have logged in, the last one last.
        self._logged_in: dict[wire.SessionId, None] = {}

    def logged_in(self, request: Request) -> None:
        """Note that this request has changed the account, or begun to."""
        if request.session in self._state.sessions:
            self._logged_in.pop(request.session, None)
            self._logged_in[request.session] = None
            self.choose()

    def session_ended(self, session: wire.SessionId) -> None:
        """Choose another one if it was this session."""
        self._logged_in.pop(session, None)
        self.choose()

    def choose(self) -> None:
        """Choose the holder, and tell the workers if it is another one."""
        own = (session.id for session in self._state.sessions.values() if not session.principal)
        holder = next(reversed(self._logged_in), None) or next(own, None)
        if holder != self.session:
            self.session = holder
            self._state.to_all_workers(wire.DefaultSession(holder))
