"""Sessions: clients come, fall silent, come back on a new connection, and go. Pure.

A session that is silent for AWAY_S is away: nothing is sent to it. It has SESSION_GRACE_S to come back on a new
connection; then its workers send again what it has not got. One of a client with a key for which nothing runs has
IDLE_GRACE_S: there is nothing to send. On its old connection it may go on only if nothing was
kept from it meanwhile.

After a broker has died, the next one answers nobody before every worker that lives has registered (the barrier): only
then it knows which sessions there are, and what they have under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from codex_pool import wire
from codex_pool.broker.books import Books
from codex_pool.broker.dispatch import Dispatcher
from codex_pool.broker.records import Forget, Session, Suspect, ToClient
from codex_pool.link import REVOKED

AWAY_S = 3 * wire.BEAT_S
SESSION_GRACE_S = 20.0
IDLE_GRACE_S = 8.0
BARRIER_S = 10.0
MAX_SESSION_CHARS = 256
MAX_CLIENT_CHARS = 1024
# Turns that a session of a principal with a key says that it follows, when it comes back.
MAX_KEY_POSITIONS = 1024
# Of all sessions, those that only the pool's own user can have.
OWNER_SESSIONS = 64


@dataclass(frozen=True, slots=True)
class _Caller:
    """One who has said Hello before the barrier was lifted."""

    identity: bytes
    hello: wire.Hello
    places: list[wire.Position]
    comes_back: bool
    who: str
    key: str

    @property
    def session_id(self) -> wire.SessionId:
        return wire.SessionId(self.who, self.hello.session)


class Sessions:
    """See the module's docstring.

    `expect` names the workers that are to register first; `heir` says that there was a broker before this one.
    """

    def __init__(
        self, books: Books, dispatcher: Dispatcher, *, max_clients: int, expect: Iterable[str], heir: bool
    ) -> None:
        self._books = books
        self._dispatcher = dispatcher
        self._max_clients = max_clients
        self._expected = dict.fromkeys(expect)
        self._resumes = heir or bool(self._expected)
        self._barrier_until = books.now + BARRIER_S
        # Until then one who is unknown may be known to the broker before this one.
        self._young_until = books.now + SESSION_GRACE_S if self._resumes else books.now
        self._callers: dict[wire.SessionId, _Caller] = {}

    # The barrier.

    @property
    def barred(self) -> bool:
        return self._resumes

    @property
    def callers(self) -> int:
        return len(self._callers)

    def worker_settled(self, name: str) -> None:
        """This worker has registered, or is dead."""
        self._expected.pop(name, None)
        if self._resumes and not self._expected and self._books.initialize is not None:
            self._resumes = False
            callers, self._callers = self._callers, {}
            for caller in callers.values():
                self._admit(caller)

    def put_off_barrier(self) -> None:
        """No worker could come so far."""
        self._barrier_until = self._books.now + BARRIER_S

    # Events.

    def hello(self, identity: bytes, hello: wire.Hello, positions: bytes, who: str, key: str) -> None:
        """A client of this principal, on a connection that has no session yet and came in with this public key."""
        books = self._books
        try:
            places = wire.decode_positions(positions) if positions else []
        except wire.WireError as error:
            self._refuse(identity, str(error))
            return
        refusal = None
        if not 0 < len(hello.session) <= MAX_SESSION_CHARS:
            refusal = f"the session's id has {len(hello.session)} characters, expected 1 to {MAX_SESSION_CHARS}"
        elif len(hello.client) > MAX_CLIENT_CHARS:
            refusal = f"the client's name has {len(hello.client)} characters, expected at most {MAX_CLIENT_CHARS}"
        elif who and len(places) > MAX_KEY_POSITIONS:
            refusal = f"{len(places)} turns are followed; a client with a key follows at most {MAX_KEY_POSITIONS}"
        elif identity in books.session_of:
            refusal = f"this connection has session {books.session_of[identity].session} already; open another"
        if refusal is not None:
            self._refuse(identity, refusal)
            return
        caller = _Caller(identity, hello, places, bool(positions), who, key)
        if self._resumes:
            self._keep_caller(caller)
        else:
            self._admit(caller)

    def _admit(self, caller: _Caller) -> None:
        """Welcome it, or refuse it because there is no room."""
        books = self._books
        known = books.sessions.get(caller.session_id)
        refusal = None
        if known is None:
            refusal = self._why_full(caller.who, [session.id for session in books.sessions.values()])
        if books.initialize is None:
            refusal = refusal or "no worker is ready yet; try again in a moment"
        if refusal is not None:
            self._refuse(caller.identity, refusal)
        else:
            hello, session_id = caller.hello, caller.session_id
            self._welcome(caller.identity, hello, caller.places, session_id, caller.key, comes_back=caller.comes_back)

    def _keep_caller(self, caller: _Caller) -> None:
        refusal = None
        if caller.session_id not in self._callers:
            refusal = self._why_full(caller.who, list(self._callers))
        if refusal is not None:
            self._refuse(caller.identity, refusal)
        else:
            # Who calls again has given its former connection up.
            self._callers[caller.session_id] = caller

    def _why_full(self, who: str, sessions: list[wire.SessionId]) -> str | None:
        """Why there is no room for one more session of this principal beside these; None if there is."""
        if len(sessions) >= self._max_clients - (OWNER_SESSIONS if who else 0):
            return f"the pool has {len(sessions)} clients, which is its limit; try again later"
        if self._books.doors is None:
            return None
        return self._books.doors.admit(who, sum(session.principal == who for session in sessions))

    def _refuse(self, identity: bytes, message: str) -> None:
        self._books.out.append(ToClient(identity, [wire.encode(wire.Refused(message))]))

    def _welcome(
        self,
        identity: bytes,
        hello: wire.Hello,
        places: list[wire.Position],
        session_id: wire.SessionId,
        key: str,
        *,
        comes_back: bool,
    ) -> None:
        books = self._books
        session = books.sessions.get(session_id)
        resumed = session is not None or (comes_back and books.now < self._young_until)
        if session is None:
            session = books.sessions[session_id] = Session(session_id, hello.client, identity, books.now)
        else:
            self._cut(session)
            session.identity, session.seen_at, session.client = identity, books.now, hello.client
            session.away_since, session.missed, session.broken = None, False, b""
            books.to_all_workers(wire.Back(session_id, places))
        session.key, session.priority, session.when_gone = key, hello.priority, hello.when_gone
        session.pieces = hello.pieces
        books.session_of[identity] = session_id
        books.choose_holder()
        assert books.initialize is not None
        welcome = wire.encode(wire.Welcome(len(books.ready()), resumed))
        books.out.append(ToClient(identity, [welcome, books.initialize]))
        for place in places:
            if not resumed:
                message = "its session was away for too long, and is over"
                books.end_turn_for([session_id], place.thread_id, place.turn_id, message)
            elif not books.knows_turn(place.turn_id):
                message = "its worker died while the client was away"
                books.end_turn_for([session_id], place.thread_id, place.turn_id, message)

    def placeholder(self, session_id: wire.SessionId) -> None:
        """A session that a worker knows of, and nobody else yet: it may come back."""
        books = self._books
        if session_id.session and session_id not in books.sessions:
            session = Session(session_id, "(not back yet)", b"", books.now)
            self._leaves(session)
            session.missed = True
            books.sessions[session_id] = session

    def heard(self, identity: bytes) -> Session | None:
        """The session of this connection, which has just said something; None if it has to connect anew."""
        books = self._books
        session = books.session_on(identity)
        if session is not None and session.missed:
            self._cut(session)
            session = None
        if session is None:
            if not any(caller.identity == identity for caller in self._callers.values()):
                closed = wire.Closed("the pool does not know this connection", again=True)
                books.out.append(ToClient(identity, [wire.encode(closed)]))
            return None
        session.seen_at, session.away_since = books.now, None
        return session

    def bye(self, identity: bytes) -> None:
        """The session of this connection is over, though it may have broken before this was read."""
        books = self._books
        session = books.session_on(identity)
        if session is None:
            session = next((each for each in books.sessions.values() if each.broken == identity), None)
        if session is not None:
            self.end(session)

    def lose_connection(self, identity: bytes) -> None:
        """What was to be sent on this connection is lost."""
        session = self._books.session_on(identity)
        if session is not None:
            session.missed, session.broken = True, identity
            if session.away_since is None:
                self._leaves(session)
            self._cut(session)

    def _leaves(self, session: Session) -> None:
        """From now on it is away."""
        books = self._books
        session.away_since = books.now
        waits = bool(
            not session.who
            # Known from a worker only, because of a turn.
            or not session.identity
            or session.waiting
            # The end of a turn may not have arrived.
            or session.turn_ended_at >= session.seen_at - wire.BEAT_S
            or any(session.id in turn.sessions for turn in books.turns.values())
            or any(call.session == session.id for call in books.calls.values())
        )
        session.away_until = books.now + (SESSION_GRACE_S if waits else IDLE_GRACE_S)

    def _cut(self, session: Session) -> None:
        """Its connection is not used any more."""
        if session.identity:
            self._books.session_of.pop(session.identity, None)
            self._books.out.append(Forget(session.identity))
            session.identity = b""

    def end_revoked(self, is_over: Callable[[str, str], bool]) -> None:
        """The sessions, and those who wait to have one, of which this says so by their principal and key are over."""
        books = self._books
        for session in [each for each in books.sessions.values() if is_over(each.who, each.key)]:
            books.note(f"client {session.client} of {books.name_of(session.who)}: its key has been revoked")
            if session.identity:
                books.out.append(ToClient(session.identity, [REVOKED]))
            self.end(session)
        for session_id, caller in list(self._callers.items()):
            if is_over(caller.who, caller.key):
                del self._callers[session_id]
                books.out.append(ToClient(caller.identity, [REVOKED]))

    def end(self, session: Session, *, keep: bool = False) -> None:
        """The session is over. With `keep` its turns go on."""
        books = self._books
        self._dispatcher.forget_session(session)
        del books.sessions[session.id]
        books.session_of.pop(session.identity, None)
        for thread in list(books.threads.values()):
            if thread.followers.pop(session.id, 0) is None:
                books.let_go(thread)
        for turn in books.turns.values():
            # The next session of this name is another one.
            if session.id in turn.sessions:
                turn.sessions.remove(session.id)
        books.logged_in.pop(session.id, None)
        books.choose_holder()
        books.to_all_workers(wire.Gone(session.id, keep))

    def tick(self) -> None:
        """Beats, and who has been silent for too long."""
        books = self._books
        beat = [wire.encode(wire.Beat())]
        for session in list(books.sessions.values()):
            if session.away_since is None and books.now - session.seen_at > AWAY_S:
                self._leaves(session)
            if session.away_since is None:
                books.out.append(ToClient(session.identity, beat))
            elif books.now > session.away_until:
                away_s = books.now - session.away_since
                books.note_of(session.who, f"client {session.client} was away for {away_s:.0f} s: its session is over")
                self.end(session, keep=session.when_gone == "keep")
        for caller in self._callers.values():
            books.out.append(ToClient(caller.identity, beat))
        if self._resumes and books.now > self._barrier_until:
            self._barrier_until = books.now + BARRIER_S
            for name in self._expected:
                books.out.append(Suspect(name, f"it has not come to the new broker within {BARRIER_S:.0f} s"))
