"""Steering: requests of the pool's operator, and the mode in which the pool takes new turns. Pure.

    pool/turn/interrupt {turnId}, pool/session/kick {session}                        done here
    pool/pause, pool/resume {worker?}, pool/drain {worker?, approvalGrace?},         done by the supervisor, which
    pool/scale {workers}, pool/recycle {worker?}, pool/stop {now?},                  outlives this broker
    pool/upgrade {codexBin?, probeTurn?}, pool/upgradeSelf

Each is answered {"changed": bool, "message": text, ...}, and does nothing twice. An id may be given by its beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from codex_app_server import errors
from codex_app_server._runtime.text import plural

from ..auth.policy import NEW_THREAD
from ..protocol import wire
from .commands import INVALID_PARAMS, Commands, Result, answer
from .dispatch import Dispatcher
from .effects import DrainProgress, ToClient
from .entities import Session, bound
from .mode import Mode
from .request import Request
from .sessions import Sessions
from .state import RETRY_AFTER_MS, BrokerState

MAX_KICKED = 256
# Turns that are named in an answer.
MAX_NAMED = 20

P = TypeVar("P", bound=msgspec.Struct)


class _Turn(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    turn_id: str


class _Session(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    session: str


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Worker(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    worker: str | None = None


class _Drain(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    worker: str | None = None
    approval_grace: float | None = None


class _Scale(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    workers: int


class _Upgrade(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    codex_bin: str | None = None
    probe_turn: bool = False


class _Stop(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    now: bool = False


# Carried out by the supervisor, by method.
_COMMANDS: dict[str, type[msgspec.Struct]] = {
    "pool/pause": _Nothing,
    "pool/resume": _Worker,
    "pool/drain": _Drain,
    "pool/scale": _Scale,
    "pool/recycle": _Worker,
    "pool/upgrade": _Upgrade,
    "pool/upgradeSelf": _Nothing,
    "pool/stop": _Stop,
    "pool/reload": _Nothing,
}
METHODS = frozenset({"pool/turn/interrupt", "pool/session/kick", *_COMMANDS})


class _InvalidError(Exception):
    """A request that cannot be carried out; the message gives the reason and the remedy."""


class Steering:
    """See the module's docstring."""

    def __init__(self, state: BrokerState, dispatcher: Dispatcher, sessions: Sessions, commands: Commands) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._sessions = sessions
        self._commands = commands
        # Ids of sessions that were ended here.
        self._kicked: dict[str, None] = {}
        self._reported: DrainProgress | None = None

    # Requests.

    def request(self, session: Session, request: Request) -> None:
        """Handle one of METHODS, of the pool's owner or an admin."""
        state, method = self._state, request.method
        try:
            if method == "pool/turn/interrupt":
                answer(state, request, self._interrupt(session, _params(request, _Turn).turn_id))
            elif method == "pool/session/kick":
                self._kick(session, request, _params(request, _Session).session)
            else:
                params = msgspec.structs.asdict(_params(request, _COMMANDS[method]))
                state.log(f"client {session.client} of {self._name_of(session)}: {method} {_shown(params)}".rstrip())
                self._commands.send(request, method.removeprefix("pool/"), params, finish=self._with_turns)
        except _InvalidError as error:
            state.fail(request, INVALID_PARAMS, f"{method}: {error}")

    def _interrupt(self, session: Session, given: str) -> Result:
        state = self._state
        turn_id = _find(given, state.turns, "turn")
        if turn_id is None:
            ended = _find(given, state.turns.recently_ended, "turn")
            if ended is None:
                raise _InvalidError(f"no turn begins with {given!r}; `codex-pool turns` lists those that run")
            return {"changed": False, "message": f"turn {ended} has ended already", "turnId": ended}
        turn = state.turns[turn_id]
        state.log(f"client {session.client} of {self._name_of(session)} interrupts turn {turn_id}")
        self._interrupt_turn(turn_id)
        return {
            "changed": True,
            "message": f"turn {turn_id} is being interrupted",
            "turnId": turn_id,
            "threadId": turn.thread_id,
            "worker": turn.worker,
        }

    def _interrupt_turn(self, turn_id: str) -> None:
        """Have the worker interrupt a turn, as often as that takes."""
        turn = self._state.turns[turn_id]
        worker = self._state.workers.get(turn.worker)
        if worker is not None:
            self._state.to_worker(worker, wire.Interrupt(turn.thread_id, turn_id))

    def _kick(self, by: Session, request: Request, given: str) -> None:
        state = self._state
        found = _find(given, {session_id.session for session_id in state.sessions}, "session")
        named = [session for session in state.sessions.values() if session.id.session == found]
        if not named:
            kicked = _find(given, self._kicked, "session")
            if kicked is None:
                raise _InvalidError(f"no session begins with {given!r}; `codex-pool sessions` lists them")
            message = f"session {kicked} was ended already"
            answer(state, request, {"changed": False, "message": message, "session": kicked})
            return
        if len(named) > 1:
            raise _InvalidError(f"{len(named)} clients have chosen the id {found}; revoke the key of one of them")
        (session,) = named
        if session is by:
            raise _InvalidError("this is the session that the request came from; name another one")
        turns = sum(session.id in turn.sessions for turn in state.turns.values())
        state.log(f"client {by.client} of {self._name_of(by)} ends the session of client {session.client}")
        self._kicked[session.id.session] = None
        bound(self._kicked, MAX_KICKED)
        if session.identity:
            closed = wire.Closed("this session was ended by an operator of the pool (codex-pool kick)")
            state.out.append(ToClient(session.identity, [wire.encode(closed)]))
        self._sessions.end(session)
        message = f"session {session.id.session} of client {session.client} is ended" + (
            f"; it followed {plural(turns, 'turn')}, which are interrupted unless others follow them" if turns else ""
        )
        answer(
            state,
            request,
            {"changed": True, "message": message, "session": session.id.session, "client": session.client},
        )

    def _name_of(self, session: Session) -> str:
        return self._state.name_of(session.principal) or "the pool's owner"

    def _with_turns(self, result: Result) -> Result:
        """Add the turns that run on the workers that the result names, or on all if it says so."""
        names = result.get("workers", ())
        whole = result.get("waitsFor") == "all"
        turns = {
            turn_id: turn for turn_id, turn in self._state.turns.items() if whole or turn.worker in names
        }  # fmt: skip
        if not (whole or names):
            return result
        waiting = {
            turn_id: since
            for worker in self._state.workers.values()
            for turn_id, since in worker.waiting.items()
            if turn_id in turns
        }
        rows = [
            {"turnId": turn_id, "threadId": turns[turn_id].thread_id, "waitedS": round(self._state.now - since, 1)}
            for turn_id, since in list(waiting.items())[:MAX_NAMED]
        ]
        clients = self._clients_of(turn.sessions for turn in turns.values())
        return {**result, "turns": len(turns), "clients": clients, "waiting": len(waiting), "turnsWaiting": rows}

    def _clients_of(self, followers: Iterable[list[wire.SessionId]]) -> dict[str, int]:
        """Count turns by the client that follows each first; "" is none."""
        names: Counter[str] = Counter()
        for sessions in followers:
            first = next((self._state.sessions[each] for each in sessions if each in self._state.sessions), None)
            names[first.client if first is not None else ""] += 1
        return dict(names)

    # The mode.

    def set_mode(self, mode: Mode) -> None:
        """Take over how the pool takes new turns."""
        state, before = self._state, self._state.mode
        state.mode = mode
        if mode == before:
            return
        self._reported = None
        state.events.record(state.now, f"mode {mode.name}")
        if mode.draining and not before.draining:
            self._refuse_held()
        if mode.holds_turns and not before.holds_turns:
            for session in state.sessions.values():
                for request in session.held.values():
                    self._dispatcher.notices.queued_again(request)
        if before.holds_turns and not mode.holds_turns:
            self._dispatcher.start_all_queued()
        self.tick()

    @property
    def is_drained(self) -> bool:
        """True if the whole pool drains, and no turn runs or is about to."""
        return self._reported is not None and not self._reported.turns

    def refusal(self, request: Request) -> str | None:
        """Return why a request is refused in this mode; None if it is not.

        A batch loses nothing by waiting, and would count a refusal as a try: its turns wait.
        """
        mode, session = self._state.mode, self._state.session(request)
        if not mode.draining or not (request.starts_turn or request.method in NEW_THREAD):
            return None
        if session is not None and session.priority == "batch":
            return None
        what = "stopping" if mode.stopping else "draining"
        return f"{request.method}: the pool is {what} and takes no new threads and turns"

    def refuse(self, request: Request, message: str) -> None:
        """Answer a request that has not begun with an error of which clients know that they may retry."""
        data = {"retryAfterMs": RETRY_AFTER_MS, "what": "draining", "safeToRetry": True}
        self._state.audit_request(request, "draining")
        self._state.fail(request, errors.SERVER_OVERLOADED, f"{message}; retry later, or on another pool", data)

    def _refuse_held(self) -> None:
        """Refuse what waits and has not begun: it may begin elsewhere."""
        for session in list(self._state.sessions.values()):
            for request in list(session.held.values()):
                message = self.refusal(request)
                if message is not None:
                    self.refuse(request, message)

    def tick(self) -> None:
        """Interrupt turns that have waited for a person beyond a grace, and report on what a drain waits for."""
        state, mode = self._state, self._state.mode
        for worker in state.workers.values() if mode.graces else ():
            for name in {worker.name, ""} & mode.graces.keys():
                for turn_id, since in worker.waiting.items():
                    if mode.graces[name].is_over(since, state.now) and turn_id in state.turns:
                        self._interrupt_turn(turn_id)
        if not mode.draining or self._sessions.barred:
            # Workers that have yet to come to this broker may run anything.
            self._reported = None
            return
        clients = self._clients_of(turn.sessions for turn in state.turns.values())
        starting = sum(len(worker.starting) for worker in state.workers.values())
        progress = DrainProgress(mode.stopping, len(state.turns) + starting, clients, state.turns.waiting)
        if progress != self._reported:
            self._reported = progress
            state.out.append(progress)


def _params(request: Request, kind: type[P]) -> P:
    try:
        return msgspec.json.decode(msgspec.json.encode(request.message.params or {}), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _InvalidError(str(error)) from None


def _find(given: str, ids: Iterable[str], what: str) -> str | None:
    """Return the id that is `given`, or the only one that begins so; None if there is none. Raises _InvalidError."""
    if not given:
        raise _InvalidError(f"the id of the {what} is empty")
    if isinstance(ids, dict | set) and given in ids:
        return given
    found = [each for each in ids if each.startswith(given)]
    if len(found) > 1:
        raise _InvalidError(f"{plural(len(found), what)} begin with {given!r}; give more of the id")
    return found[0] if found else None


def _shown(params: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items() if value not in (None, False))
