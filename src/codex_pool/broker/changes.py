"""Changes of what every app-server has in memory: the account, and some settings. Pure.

One change at a time; requests about the account that come meanwhile wait in their order. `kinds` says what is done for
a request. One that is applied to `each` app-server goes through these states:

    state       event                                   next
    queued      the changes before it are done          applying, with the first worker; waiting, when there is none
    waiting     a worker registers                      applying
    applying    the app-server has done it              checking, where a log-in or log-out is expected; else the next
    applying    it refuses, and nothing was done yet    refused: the client gets the error, nothing has changed
    checking    account/read agrees                     applying, with the next worker; settled after the last
    checking    it disagrees                            applying again, MAX_TRIES times; then out of step
    any         the worker dies, or is late             applying, with the next worker
    settled     every worker has it, or is stale        answered; the next change

codex fails the turns that run in an app-server whose account is changed ("application network permission was revoked",
0.163). So it is changed first where the fewest turns run, and then only where none runs; the others become stale.

A worker that registers meanwhile takes part. One whose app-server was started before the change was complete, and that
took no part in it, is *stale*: it gets no turn any more, stored threads leave it, its own threads can have no further
turn, and the supervisor renews it. So is everyone when nobody can tell who has what: out of step, or a broker that died
in the middle. As of when an app-server has the account is compared by CLOCK_MONOTONIC: the worker tells it when it
registers, `AccountChanged` tells it to the supervisor, which hands it to the next broker.

What no file keeps is given to every worker that registers later, before it gets a turn; until then it is *behind*.
Workers hold these requests in memory for the next broker. A client hears of a change once no turn is about to begin
on a stale worker.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from codex_app_server import errors
from codex_pool import rpc, wire
from codex_pool.broker import kinds
from codex_pool.broker.announcements import Announcements
from codex_pool.broker.books import Books, bound
from codex_pool.broker.kept import Kept
from codex_pool.broker.kinds import Plan
from codex_pool.broker.records import AccountChanged, Call, CallKey, Renew, Worker

if TYPE_CHECKING:
    from codex_pool.broker.dispatch import Dispatcher

APPLY = "pool/apply"

MAX_TRIES = 3
STEP_LIMIT_S = 20.0
MAX_ANSWERED = 256

_INTERNAL_ERROR = -32603


@dataclass(slots=True, eq=False)
class Change:
    """One change. Without a `call` it is the pool's own: for all but `done`, or what is kept, for `only` one."""

    plan: Plan
    lines: list[bytes]
    call: Call | None = None
    only: str = ""
    # Of what is kept: as of when.
    kept_at: float = 0.0
    done: dict[str, None] = field(default_factory=dict)
    # Workers that were late or would not, with the reason.
    failed: dict[str, str] = field(default_factory=dict)
    refusal: bytes = b""
    out_of_step: str = ""
    response: bytes = b""
    told: list[bytes] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Step:
    """Request that the running change waits for: this worker's answer to this line."""

    call: Call
    number: int
    worker: str
    phase: Literal["apply", "check"]
    line: int
    since: float
    tries: int = 1
    told: list[bytes] = field(default_factory=list)


class Changes:
    """See the module's docstring. `changed_at` is the time of the last change that the broker before this one knew."""

    def __init__(self, books: Books, dispatcher: Dispatcher, changed_at: float) -> None:
        self._books = books
        self._dispatcher = dispatcher
        self._changed_at = changed_at
        self._queue: deque[Call | Change] = deque()
        self._running: Change | None = None
        self._step: _Step | None = None
        self._kept = Kept()
        self.announcements = Announcements(books)
        # Answers to changes, and digests of what was asked, for a client that sends its request again.
        self._answered: dict[CallKey, tuple[bytes, bytes]] = {}

    @property
    def held(self) -> int:
        return len(self._queue) + (self._running is not None) + self.announcements.held

    @property
    def waiting(self) -> list[Call]:
        """The calls that wait for their turn."""
        return [each for each in self._queue if isinstance(each, Call)]

    @property
    def tokens(self) -> bytes | None:
        """The log-in with external tokens that is in force."""
        return self._kept.tokens

    # Requests.

    def take(self, call: Call) -> None:
        """A request about the account or about what all app-servers have in memory."""
        if call.method == kinds.CANCEL_LOGIN:
            worker, session = self._books.logins.get(kinds.login_id_in(call.line), ("", None))
            if session is not None and call.who not in ("", session.principal):
                self._books.answer(call, kinds.login_not_found_line(call.id_json))
                return
            if worker in self._books.workers:
                self._dispatcher.send(call, self._books.workers[worker])
                return
        running = self._running.call if self._running is not None else None
        asked, answer = self._answered.get(call.key, (b"", b""))
        if running is not None and running.key == call.key:
            if not call.repeats(running):
                self._dispatcher.refuse_id(call)
        elif call.again and asked:
            if asked != _digest(call):
                self._dispatcher.refuse_id(call)
            elif not self.announcements.holds(answer):
                self._books.answer(call, answer)
        elif self._books.hold(call):
            self._queue.append(call)
            self._advance()

    def forget_session(self, session: wire.SessionId) -> None:
        """Its requests that wait are dropped; the change that runs is finished."""
        for key in [key for key in self._answered if key[0] == session]:
            del self._answered[key]

    def tokens_refreshed(self, line: bytes, workers: Iterable[str]) -> None:
        """The client has given new external tokens; these workers have them already."""
        self._kept.keep(kinds.TOKENS, line, self._books.now)
        for worker in map(self._books.workers.get, workers):
            if worker is not None:
                self._make_current(worker, self._kept.at)
        self._give_kept()
        self._advance()

    def _advance(self) -> None:
        while self._running is None and self._queue:
            first = self._queue[0]
            if isinstance(first, Call):
                if first.dropped:
                    self._queue.popleft()
                    continue
                plan = kinds.plan_of(first.method, first.scope, first.line, external=self.tokens is not None)
                if plan.how == "ask":
                    if not self._ask(first):
                        return
                    self._queue.popleft()
                    continue
                problem = self._kept.why_full(plan.key, first.line)
                if problem:
                    self._queue.popleft()
                    self._books.overloaded(first, problem)
                    continue
                self._books.release(first)
                first = Change(plan, [first.line], first)
            self._queue.popleft()
            self._running = first
            if first.plan.account:
                self._books.out.append(AccountChanged(self._changed_at, under_way=True))
            if first.plan.how == "forget":
                self._forget_tokens()
            self._go_on()

    def _ask(self, call: Call) -> bool:
        """Send it to one worker; whether there is one."""
        if call.thread_id is not None:
            self._dispatcher.to_owner(call)
            return True
        worker = self._one()
        if worker is None:
            return False
        self._dispatcher.send(call, worker)
        return True

    def _one(self) -> Worker | None:
        """The worker with a log-in under way, because a second one takes its place; else the one with the least to do:
        the turns that run there when the log-in succeeds are failed by codex."""
        with_login = {worker for worker, _ in self._books.logins.values()}
        return min(self._books.ready(), key=lambda w: (w.name not in with_login, w.load, w.slot), default=None)

    # Steps.

    def _go_on(self) -> None:
        """The next step of the running change, if there is a worker for it."""
        change = self._running
        if change is None or self._step is not None:
            return
        how = change.plan.how
        if how in ("renew", "reload", "forget") and not change.done and not change.refusal:
            worker = self._one()
            if worker is not None:
                self._send(change, worker, "check" if how == "forget" else "apply")
            return
        workers = [each for each in self._books.workers.values() if not each.drained and not each.stale]
        if change.only:
            workers = [each for each in workers if each.name == change.only]
        left = [each for each in workers if each.name not in change.done and each.name not in change.failed]
        if change.refusal or how in ("renew", "forget"):
            left = []
        if change.plan.account and change.done:
            for worker in [each for each in left if each.turns]:
                change.failed[worker.name] = "the turns that it runs finish with the account before"
            left = [each for each in left if not each.turns]
        if left:
            busy = change.plan.account
            first = min(left, key=lambda worker: (worker.draining, len(worker.turns) if busy else 0, worker.slot))
            self._send(change, first, "apply")
        elif change.done or change.failed or change.refusal or change.call is None:
            self._finish(change)

    def _send(
        self,
        change: Change,
        worker: Worker,
        phase: Literal["apply", "check"],
        *,
        line: int = 0,
        tries: int = 1,
        told: Iterable[bytes] = (),
    ) -> None:
        text = kinds.READ_ACCOUNT if phase == "check" else change.lines[line]
        if phase == "apply" and change.done and change.call is not None:
            text = kinds.RELOAD_MCP if change.plan.how == "reload" else kinds.for_others(text)
        call = Call(None, 0, APPLY, None, text, "full", self._books.now, worker=worker.name)
        number = self._books.open_call(call, worker)
        self._step = _Step(call, number, worker.name, phase, line, self._books.now, tries, [*told])
        self._books.to_worker(worker, wire.Apply(number), text)

    def send_again(self, call: Call, worker: Worker) -> None:
        """The worker has a new connection, and may not have got this."""
        if self._step is not None and self._step.call is call:
            self._step.number = self._books.open_call(call, worker)
            self._books.to_worker(worker, wire.Apply(self._step.number), call.line)

    def answered(self, call: Call, worker: Worker, frames: list[bytes], *, ok: bool) -> None:
        """The worker's app-server has answered."""
        step, change = self._step, self._running
        if step is None or change is None or step.call is not call:
            return
        self._step = None
        line, *told = frames[1].split(b"\n") if len(frames) > 1 else [b""]
        if step.phase == "check":
            self._checked(change, step, worker, line)
        elif not ok:
            self._refused(change, worker, line)
        else:
            if not change.response:
                change.response, change.told = line, told
            if step.line + 1 < len(change.lines):
                self._send(change, worker, "apply", line=step.line + 1)
            elif change.plan.expect:
                self._send(change, worker, "check", line=step.line, tries=step.tries, told=told)
            else:
                change.done[worker.name] = None
        self._go_on()
        self._advance()

    def _checked(self, change: Change, step: _Step, worker: Worker, line: bytes) -> None:
        if change.plan.how == "forget":
            change.done[worker.name] = None
            change.told = [kinds.updated_line(line)]
            return
        problem = kinds.differs(change.plan.expect, line, step.told) if change.plan.expect else ""
        if not problem:
            change.done[worker.name] = None
        elif step.tries < MAX_TRIES:
            self._send(change, worker, "apply", line=step.line, tries=step.tries + 1)
        else:
            change.failed[worker.name] = problem
            change.out_of_step = (
                f"after {MAX_TRIES} tries worker {worker.name} is not logged {change.plan.expect}: {problem}"
            )

    def _refused(self, change: Change, worker: Worker, line: bytes) -> None:
        if change.call is None:
            # It was good once: the app-server reports the rest to its user.
            self._books.note(f"worker {worker.name} refuses a setting of the pool: {rpc.error_of(line)}")
            change.done[worker.name] = None
            return
        if change.done and (change.plan.account or change.plan.how == "reload"):
            change.failed[worker.name] = rpc.error_of(line)
            if change.plan.how == "reload":
                change.done[worker.name] = None
            return
        change.refusal = line
        if change.plan.account and not kinds.refuses(line):
            change.out_of_step = rpc.error_of(line)

    def lost(self, call: Call) -> None:
        """The worker of this step is dead."""
        if self._step is not None and self._step.call is call:
            self._step = None
            self._go_on()
            self._advance()

    # The end of a change.

    def _finish(self, change: Change) -> None:
        self._running, plan = None, change.plan
        error = ""
        if change.out_of_step or (plan.account and not change.done and not change.refusal):
            why = change.out_of_step or "no worker has answered: " + "; ".join(change.failed.values())
            error = (
                f"the account could not be changed on all workers: {why}; they are renewed, and go on with the "
                "account that is stored then: see account/read, and repeat the request"
            )
            self._change_account((), error)
        elif change.refusal:
            self._unchanged(plan)
        else:
            if plan.key:
                self._kept.keep(plan.key, change.lines[0], self._books.now)
            if plan.account and plan.how != "forget":
                self._change_account(
                    change.done, "the account was changed while it was starting, ran turns or did not answer"
                )
            elif plan.how == "forget":
                self._unchanged(plan)
            for name in change.failed.keys() - change.done.keys():
                self._mark_stale(name, f"it did not take part in a change: {change.failed[name]}")
            for name in change.done:
                worker = self._books.workers.get(name)
                if worker is not None and change.only:
                    self._make_current(worker, change.kept_at)
                elif worker is not None and (plan.key or plan.account) and not worker.behind:
                    self._make_current(worker, self._kept.at)
        if change.call is not None:
            self._answer(change, change.call, error)
        self._give_kept()
        self._dispatcher.work_again()

    def _answer(self, change: Change, call: Call, error: str) -> None:
        request_id = call.id_json.encode()
        if error:
            line = rpc.error_line(request_id, _INTERNAL_ERROR, error, {"kind": "account", "safeToRetry": True})
        elif change.refusal:
            line = rpc.with_id(change.refusal, request_id)
        elif change.response:
            line = rpc.with_id(change.response, request_id)
        elif change.plan.how == "forget":
            line = b'{"id":%s,"result":{}}' % request_id
        else:
            message = f"no worker has answered {call.method}: {'; '.join(change.failed.values())}"
            line = rpc.error_line(request_id, errors.TURN_LOST, message, {"kind": "lost", "safeToRetry": False})
        self._answered[call.key] = _digest(call), line
        bound(self._answered, MAX_ANSWERED)
        if change.plan.expect == "in" and not error and not change.refusal:
            self._books.has_logged_in(call)
        if call.session is not None:
            self.announcements.say([call.session], [line])
        if not error and not change.refusal:
            self.announcements.say([], change.told)

    def _unchanged(self, plan: Plan) -> None:
        if plan.account:
            self._books.out.append(AccountChanged(self._changed_at, under_way=False))

    def _forget_tokens(self) -> None:
        """App-servers forget external tokens only with their end: a log-out would delete the auth.json of all."""
        self._kept.forget(kinds.TOKENS, self._books.now)
        for worker in self._books.workers.values():
            # No later broker is to hear of them.
            worker.kept_at = self._kept.at
            self._books.to_worker(worker, wire.Current(worker.as_of, self._kept.at), *self._kept.lines)
        self._change_account((), "the external tokens were logged out")

    def _change_account(self, current: Iterable[str], reason: str) -> None:
        """From now on only these workers have the account."""
        self._changed_at = max(self._books.now, math.nextafter(self._changed_at, math.inf))
        self._books.out.append(AccountChanged(self._changed_at, under_way=False))
        for name in current:
            if name in self._books.workers:
                self._books.workers[name].as_of = self._changed_at
        self._find_stale(reason)

    def _find_stale(self, reason: str) -> None:
        for name, worker in self._books.workers.items():
            if worker.as_of < self._changed_at and not worker.stale:
                worker.stale = reason
                self._books.note(f"worker {name} must be renewed: {reason}")
                self._books.out.append(Renew(name, reason))
        for worker in [worker for worker in self._books.workers.values() if worker.stale]:
            self._dispatcher.leave(worker)

    def _mark_stale(self, name: str, reason: str) -> None:
        worker = self._books.workers.get(name)
        if worker is not None and not worker.stale:
            worker.as_of = -1.0
            self._find_stale(reason)

    # What is kept for workers to come.

    def _make_current(self, worker: Worker, kept_at: float) -> None:
        worker.as_of = max(worker.as_of, self._changed_at)
        worker.kept_at, worker.behind = kept_at, kept_at < self._kept.at
        self._books.to_worker(worker, wire.Current(worker.as_of, kept_at), *self._kept.lines)

    def _give_kept(self) -> None:
        """Everyone gets what is kept, who has it not yet."""
        given = {each.only for each in (*self._queue, self._running) if isinstance(each, Change)}
        for worker in self._books.workers.values():
            if worker.kept_at >= self._kept.at or worker.stale:
                continue
            missing = self._kept.since(worker.kept_at)
            worker.behind = bool(missing)
            if worker.drained or worker.name in given:
                continue
            if missing:
                replay = Change(Plan("each"), missing, only=worker.name, kept_at=self._kept.at)
                self._queue.appendleft(replay)
            else:
                self._make_current(worker, self._kept.at)

    # Workers.

    def registered(self, worker: Worker, register: wire.Register, holdings: wire.Holdings) -> None:
        """A worker has come, from before this broker perhaps."""
        worker.as_of, worker.kept_at = register.as_of, holdings.kept_at
        for login_id, session in holdings.logins.items():
            self._books.logins[login_id] = worker.name, session
        self._kept.adopt(holdings.kept, holdings.kept_at)
        if register.changed_at > self._changed_at:
            self._changed_at = register.changed_at
            self._books.out.append(AccountChanged(self._changed_at, under_way=False))
        self._find_stale("its app-server was started before the account was changed")
        self._give_kept()
        self._go_on()
        self._advance()

    def worker_lost(self, worker: Worker, reason: str) -> None:
        """Its log-ins have failed."""
        for login_id, (name, session) in list(self._books.logins.items()):
            if name == worker.name:
                del self._books.logins[login_id]
                error = f"worker {name}, which waited for the log-in, died: {reason}; begin again"
                self.announcements.say([session], [kinds.login_failed_line(login_id, error)])

    def login_ended(self, worker: Worker, ended: wire.LoginEnded, frames: list[bytes]) -> None:
        """A log-in of the worker's app-server is over."""
        self._books.logins.pop(ended.login_id, None)
        if ended.mcp and ended.changed:
            done = {worker.name: None}
            self._queue.append(Change(Plan("reload"), [kinds.RELOAD_MCP], done=done))
        elif ended.changed:
            self._change_account([worker.name], "somebody has logged in on another worker")
            if not worker.behind:
                self._make_current(worker, self._kept.at)
        if len(frames) == 2:
            first, *others = frames[1].split(b"\n")
            self.announcements.say(ended.sessions, [first], patient=True)
            self.announcements.say([], others)
        self._give_kept()
        self._advance()
        self._dispatcher.work_again()

    # The clock.

    def tick(self) -> None:
        """Steps that take too long; workers that the supervisor has still to renew."""
        step, change = self._step, self._running
        if step is not None and change is not None and self._books.now - step.since > STEP_LIMIT_S:
            self._step = None
            self._books.close_call(step.number)
            change.failed[step.worker] = f"worker {step.worker} has not answered within {STEP_LIMIT_S:.0f} s"
            self._mark_stale(step.worker, change.failed[step.worker])
            self._go_on()
            self._advance()
        self._give_kept()
        self._go_on()
        self._advance()
        self.announcements.settle()
        for worker in self._books.workers.values():
            if worker.stale and not worker.draining:
                self._books.out.append(Renew(worker.name, worker.stale))


def _digest(call: Call) -> bytes:
    return blake2b(call.line, digest_size=16).digest()
