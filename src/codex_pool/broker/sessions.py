"""Sessions: clients come, fall silent, come back on a new connection, and go. Pure.

    state          event                                                     next
    (none)         hello, and there is room for one more                     connected
    (none)         a worker knows of it, from before this broker             disconnected
    connected      nothing comes from it for AWAY_S, and it sends beats      silent: nothing is sent to it
    connected      its connection breaks                                     disconnected
    silent         something comes from it                                   connected
    silent         something had to be sent to it                            outdated
    outdated       something comes from it                                   disconnected: it has to connect again
    silent, outdated    its connection breaks                                disconnected
    any            hello on a new connection                                 connected: workers send what it missed
    not connected  it has not come back within its grace                     ended
    any            bye, or its key is revoked                                ended

One that gets all turns and keeps its own is over only once those of them that wait to be started have been: until then
it is disconnected, as an app-server has no queue that a client could leave.

The grace is SESSION_GRACE_S; for one of a client with a key for which nothing runs IDLE_GRACE_S, since there is
nothing to send.

After a broker has died, the next one answers no client before every live worker has registered (the barrier): only
then it knows which sessions there are, and what they have under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..protocol import wire
from ..protocol.bound_methods import NO_THREAD
from ..protocol.ingress_frames import REVOKED
from . import audit
from .caller import OVER_GATEWAY, Caller, listener_of
from .dispatch import Dispatcher
from .effects import Audit, DropConnection, Suspect, ToClient
from .entities import Session, SessionState
from .state import BrokerState

AWAY_S = 3 * wire.BEAT_S
SESSION_GRACE_S = 20.0
IDLE_GRACE_S = 8.0
BARRIER_S = 10.0
MAX_SESSION_CHARS = 256
MAX_CLIENT_CHARS = 1024
# Turns that a session of a principal with a key may claim to follow, when it comes back.
MAX_KEY_POSITIONS = 1024
# Of all sessions, those that only the pool's owner can have.
OWNER_SESSIONS = 64


class Sessions:
    """See the module's docstring.

    `expect` names the workers that are to register first; `heir`: there was a broker before this one.
    """

    def __init__(
        self, state: BrokerState, dispatcher: Dispatcher, *, max_clients: int, expect: Iterable[str], heir: bool
    ) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._max_clients = max_clients
        self._expected = dict.fromkeys(expect)
        self._resumes = heir or bool(self._expected)
        self._barrier_until = state.now + BARRIER_S
        # Until then an unknown session may be known to the broker before this one.
        self._young_until = state.now + SESSION_GRACE_S if self._resumes else state.now
        self._callers: dict[wire.SessionId, Caller] = {}

    # The barrier.

    @property
    def barred(self) -> bool:
        return self._resumes

    @property
    def callers(self) -> int:
        return len(self._callers)

    def worker_settled(self, name: str) -> None:
        """Note that this worker has registered, or is dead; lift the barrier after the last one."""
        self._expected.pop(name, None)
        if self._resumes and not self._expected and self._state.initialize is not None:
            self._resumes = False
            callers, self._callers = self._callers, {}
            for caller in callers.values():
                self._admit(caller)

    def put_off_barrier(self) -> None:
        """Wait longer for workers: none could come so far."""
        self._barrier_until = self._state.now + BARRIER_S

    # Events.

    def hello(self, identity: bytes, hello: wire.Hello, body: bytes, principal: str, key: str) -> None:
        """Handle a Hello on a connection that has no session yet and came in with this public key."""
        state = self._state
        try:
            positions = wire.decode_positions(body) if body else []
        except wire.WireError as error:
            self._refuse(identity, str(error))
            return
        refusal = None
        if not 0 < len(hello.session) <= MAX_SESSION_CHARS:
            refusal = f"the session's id has {len(hello.session)} characters, expected 1 to {MAX_SESSION_CHARS}"
        elif len(hello.client) > MAX_CLIENT_CHARS:
            refusal = f"the client's name has {len(hello.client)} characters, expected at most {MAX_CLIENT_CHARS}"
        elif principal and len(positions) > MAX_KEY_POSITIONS:
            refusal = f"{len(positions)} turns are followed; a client with a key follows at most {MAX_KEY_POSITIONS}"
        elif identity in state.session_of:
            refusal = f"this connection has session {state.session_of[identity].session} already; open another"
        if refusal is not None:
            self._refuse(identity, refusal)
            return
        caller = Caller(identity, hello, positions, bool(body), principal, key)
        if self._resumes:
            self._keep_caller(caller)
        else:
            self._admit(caller)

    def _admit(self, caller: Caller) -> None:
        """Welcome it, or refuse it because there are too many."""
        state = self._state
        known = state.sessions.get(caller.session_id)
        refusal = None
        if known is None:
            refusal = self._why_full(caller.principal, [session.id for session in state.sessions.values()])
        if state.initialize is None:
            refusal = refusal or "no worker is ready yet; try again in a moment"
        self._audit(caller, refusal)
        if refusal is not None:
            self._refuse(caller.identity, refusal)
        else:
            hello, session_id = caller.hello, caller.session_id
            self._welcome(
                caller.identity, hello, caller.positions, session_id, caller.key, comes_back=caller.comes_back
            )

    def _audit(self, caller: Caller, refusal: str | None) -> None:
        state, hello = self._state, caller.hello
        if state.audit_file is not None:
            reason = None if refusal is None else "session"
            name = state.name_of(caller.principal)
            record = audit.of_session(caller.principal, name, caller.key, hello.session, hello.client, reason)
            state.out.append(Audit(record))

    def _keep_caller(self, caller: Caller) -> None:
        refusal = None
        if caller.session_id not in self._callers:
            refusal = self._why_full(caller.principal, list(self._callers))
        if refusal is not None:
            self._refuse(caller.identity, refusal)
        else:
            # A session that calls again has given its former connection up.
            self._callers[caller.session_id] = caller

    def _why_full(self, principal: str, sessions: list[wire.SessionId]) -> str | None:
        """Return why this principal may have no further session beside these; None if it may."""
        if len(sessions) >= self._max_clients - (OWNER_SESSIONS if principal else 0):
            return f"the pool has {len(sessions)} clients, which is its limit; try again later"
        if self._state.policy is None:
            return None
        return self._state.policy.admit(principal, sum(session.principal == principal for session in sessions))

    def _refuse(self, identity: bytes, message: str) -> None:
        self._state.out.append(ToClient(identity, [wire.encode(wire.Refused(message))]))

    def _welcome(
        self,
        identity: bytes,
        hello: wire.Hello,
        positions: list[wire.Position],
        session_id: wire.SessionId,
        key: str,
        *,
        comes_back: bool,
    ) -> None:
        state = self._state
        session = state.sessions.get(session_id)
        resumed = session is not None or (comes_back and state.now < self._young_until)
        known = session is not None
        if session is None:
            session = state.sessions[session_id] = Session(
                session_id, hello.client, identity, state.now, began_at=state.now
            )
        else:
            self._cut(session)
            session.identity, session.seen_at, session.client = identity, state.now, hello.client
            session.broken = b""
        self._connect(session)
        before = session.options
        session.key, session.priority, session.when_gone = key, hello.priority, hello.when_gone
        session.beats = not identity.startswith(OVER_GATEWAY)
        session.listener = listener_of(identity, hello)
        session.takes_parts, session.all_turns = hello.accepts_parts, hello.all_turns
        session.knows_queue, session.takes_packs = hello.knows_queue, hello.accepts_packs
        session.lingers = False
        if session.options != before:
            state.to_all_workers(session.options)
        if known:
            state.to_all_workers(wire.SessionResumed(session_id, positions))
        state.session_of[identity] = session_id
        state.account.choose()
        assert state.initialize is not None
        welcome = wire.encode(wire.Welcome(len(state.ready()), resumed))
        state.out.append(ToClient(identity, [welcome, state.initialize]))
        self._dispatcher.bound.welcome(session_id, positions)
        for position in positions:
            if position.thread_id == NO_THREAD:
                continue
            if not resumed:
                message = "its session was away for too long, and is over"
                state.end_turn_for([session_id], position.thread_id, position.turn_id, message)
            elif not state.turns.is_known(position.turn_id):
                message = "its worker died while the client was away"
                state.end_turn_for([session_id], position.thread_id, position.turn_id, message)

    def take_options(self, options: wire.SessionOptions) -> bool:
        """Take over the options that a worker knows of a session which has not come back; False if there is none."""
        session = self._state.sessions.get(options.session)
        if session is not None and not session.identity:
            session.all_turns, session.when_gone = options.all_turns, "keep" if options.keep else "interrupt"
        return session is not None

    def placeholder(self, session_id: wire.SessionId) -> None:
        """Add a session that only a worker knows of: it may come back."""
        state = self._state
        if session_id.session and session_id not in state.sessions:
            session = Session(session_id, "(not back yet)", b"", state.now, began_at=state.now)
            self._leave(session, "disconnected")
            state.sessions[session_id] = session

    def session_of_message(self, identity: bytes) -> Session | None:
        """The session of this connection, which has just sent something; None if it has to connect again."""
        state = self._state
        session = state.session_on(identity)
        if session is not None and session.state == "outdated":
            self._cut(session)
            state.set_session_state(session, "disconnected")
            session = None
        if session is None:
            if not any(caller.identity == identity for caller in self._callers.values()):
                closed = wire.Closed("the pool does not know this connection", again=True)
                state.out.append(ToClient(identity, [wire.encode(closed)]))
            return None
        session.seen_at = state.now
        if session.state != "connected":
            self._connect(session)
        return session

    def bye(self, identity: bytes) -> None:
        """End the session of this connection, though it may have broken before this was read."""
        state = self._state
        session = state.session_on(identity)
        if session is None:
            session = next((each for each in state.sessions.values() if each.broken == identity), None)
        if session is not None:
            # An app-server does not distinguish a client that leaves from one that dies.
            self.end(session, keep=session.all_turns and session.when_gone == "keep")

    def lose_connection(self, identity: bytes) -> None:
        """Note that a connection has broken: what was to be sent on it is lost."""
        session = self._state.session_on(identity)
        if session is not None:
            session.broken = identity
            if session.is_away:
                self._state.set_session_state(session, "disconnected")
            else:
                self._leave(session, "disconnected")
            self._cut(session)

    def _connect(self, session: Session) -> None:
        self._state.set_session_state(session, "connected")
        session.away_since = None

    def _leave(self, session: Session, to: SessionState) -> None:
        """Note that it is away from now on, and how long it may be."""
        state = self._state
        state.set_session_state(session, to)
        session.away_since = state.now
        waits = bool(
            not session.principal
            # Known from a worker only, because of a turn.
            or not session.identity
            or session.held
            # The end of a turn may not have arrived.
            or session.turn_ended_at >= session.seen_at - wire.BEAT_S
            or self._dispatcher.bound.count_of(session.id)
            or any(session.id in turn.sessions for turn in state.turns.values())
            or any(request.session == session.id for request in state.requests.by_number.values())
        )
        session.away_until = state.now + (SESSION_GRACE_S if waits else IDLE_GRACE_S)

    def _cut(self, session: Session) -> None:
        """Stop using its connection."""
        if session.identity:
            self._state.session_of.pop(session.identity, None)
            self._state.out.append(DropConnection(session.identity))
            session.identity = b""

    def end_former(self, instance: str) -> None:
        """End the sessions of gateways before the one of this instance; their turns are kept."""
        for session in list(self._state.sessions.values()):
            if not session.beats and not session.id.session.startswith(f"{instance}/"):
                self._cut(session)
                self.end(session, keep=session.when_gone == "keep")

    def end_revoked(self, is_over: Callable[[str, str], bool]) -> None:
        """End the sessions, and refuse the callers, that `is_over` selects by principal and key."""
        state = self._state
        for session in [each for each in state.sessions.values() if is_over(each.principal, each.key)]:
            state.log(f"client {session.client} of {state.name_of(session.principal)}: its key has been revoked")
            if session.identity:
                state.out.append(ToClient(session.identity, [REVOKED]))
            self.end(session)
        for session_id, caller in list(self._callers.items()):
            if is_over(caller.principal, caller.key):
                del self._callers[session_id]
                state.out.append(ToClient(caller.identity, [REVOKED]))

    def _leave_queued(self, session: Session) -> bool:
        """Disconnect a session whose turns are kept, if any of them waits to be started; False if none does."""
        waits = session.all_turns and any(request.starts_turn for request in session.held.values())
        if waits and not session.lingers:
            session.lingers = True
            if not session.is_away:
                self._leave(session, "disconnected")
            elif session.state != "disconnected":
                self._state.set_session_state(session, "disconnected")
            self._cut(session)
        return waits

    def end(self, session: Session, *, keep: bool = False) -> None:
        """End a session. With `keep` its turns go on, and those that wait are started first."""
        state = self._state
        if keep and self._leave_queued(session):
            return
        self._dispatcher.end_session(session)
        state.set_session_state(session, "ended")
        del state.sessions[session.id]
        state.session_of.pop(session.identity, None)
        for thread in list(state.threads.values()):
            if thread.followers.pop(session.id, 0) is None:
                state.threads.drop_if_unused(thread)
        for turn in state.turns.values():
            # The next session of this name is another one.
            if session.id in turn.sessions:
                turn.sessions.remove(session.id)
        state.account.session_ended(session.id)
        self._dispatcher.bound.session_over(session.id)
        state.to_all_workers(wire.SessionGone(session.id, keep))

    def tick(self) -> None:
        """Send beats, and end sessions that have been away for too long."""
        state = self._state
        beat = [wire.encode(wire.Beat())]
        for session in list(state.sessions.values()):
            if session.away_since is None:
                if session.beats and state.now - session.seen_at > AWAY_S:
                    self._leave(session, "silent")
                elif session.beats:
                    state.out.append(ToClient(session.identity, beat))
            elif session.lingers:
                self.end(session, keep=True)
            elif state.now > session.away_until:
                away_s = state.now - session.away_since
                state.log_for(
                    session.principal, f"client {session.client} was away for {away_s:.0f} s: its session is over"
                )
                self.end(session, keep=session.when_gone == "keep")
        for caller in self._callers.values():
            state.out.append(ToClient(caller.identity, beat))
        if self._resumes and state.now > self._barrier_until:
            self._barrier_until = state.now + BARRIER_S
            for name in self._expected:
                state.out.append(Suspect(name, f"it has not come to the new broker within {BARRIER_S:.0f} s"))
