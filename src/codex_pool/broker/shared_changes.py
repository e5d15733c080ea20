"""Changes of what every app-server has in memory: the account, and some settings. Pure.

One change at a time; requests about the account that come meanwhile wait in their order. `change_kinds` says what is
done for a request. One that is applied to `each` app-server goes through these states:

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
took no part in it, is *stale* (`account_version`). So is every worker when it is not known which have it: out of step,
or a broker that died in the middle. What no file keeps is replayed to every worker that registers later, before it gets
a turn; until then it is *behind*. Workers hold these requests in memory for the next broker. A client is sent a change
once no turn is about to begin on a stale worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from ..protocol import jsonrpc, wire
from . import change_kinds
from .account_version import AccountVersion
from .announcements import Announcements
from .change import Change, Step
from .change_answers import ChangeAnswers
from .change_kinds import Plan
from .change_queue import ChangeQueue
from .entities import Worker
from .replayed_requests import ReplayedRequests
from .request import APPLY, Request
from .state import BrokerState

if TYPE_CHECKING:
    from .dispatch import Dispatcher

MAX_TRIES = 3
STEP_LIMIT_S = 20.0


class Changes:
    """See the module's docstring. `changed_at` is the time of the last change that the broker before this one knew."""

    def __init__(self, state: BrokerState, dispatcher: Dispatcher, changed_at: float) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self.queue = ChangeQueue()
        self._running: Change | None = None
        self._step: Step | None = None
        self._replayed = ReplayedRequests()
        self._version = AccountVersion(state, dispatcher, self._replayed, changed_at)
        self.announcements = Announcements(state)
        self._answers = ChangeAnswers(state, self.announcements)

    @property
    def changed_at(self) -> float:
        """Time at which the account was changed last (CLOCK_MONOTONIC)."""
        return self._version.changed_at

    @property
    def held(self) -> int:
        return len(self.queue.all) + (self._running is not None) + self.announcements.held

    @property
    def tokens(self) -> bytes | None:
        """The log-in with external tokens that is in force."""
        return self._replayed.tokens

    # Requests.

    def take(self, request: Request) -> None:
        """A request about the account or about what all app-servers have in memory."""
        if request.method == change_kinds.CANCEL_LOGIN:
            worker, session = self._state.account.logins.get(change_kinds.login_id_in(request.message), ("", None))
            if session is not None and request.principal not in ("", session.principal):
                self._state.answer(request, change_kinds.login_not_found_line(request.id_json))
                return
            if worker in self._state.workers:
                self._dispatcher.send(request, self._state.workers[worker])
                return
        running = self._running.request if self._running is not None else None
        if running is not None and running.key == request.key:
            if not request.repeats(running):
                self._state.refuse_id(request)
        elif self._answers.is_repeated(request):
            if not self._answers.repeat(request):
                self._state.refuse_id(request)
        elif self._state.requests.hold(request, self.queue):
            self._advance()

    def end_session(self, session: wire.SessionId) -> None:
        """Forget the answers to its requests; a change that runs is finished."""
        self._answers.end_session(session)

    def tokens_refreshed(self, line: bytes, workers: Iterable[str]) -> None:
        """Handle new external tokens of the client; these workers have them already."""
        self._replayed.keep(change_kinds.TOKENS, line, self._state.now)
        for worker in map(self._state.workers.get, workers):
            if worker is not None:
                self._version.make_current(worker, self._replayed.at)
        self._give_kept()
        self._advance()

    def _advance(self) -> None:
        while self._running is None and self.queue.all:
            first = self.queue.all[0]
            if isinstance(first, Request):
                message = first.message
                plan = change_kinds.plan_of(first.method, first.scope, message, external=self.tokens is not None)
                worker = (
                    self._dispatcher.placement.for_account() if plan.how == "ask" and first.thread_id is None else None
                )
                if plan.how == "ask" and first.thread_id is None and worker is None:
                    return
                self.queue.all.popleft()
                first.queue = None
                if plan.how == "ask":
                    if worker is None:
                        self._dispatcher.to_owner(first)
                    else:
                        self._dispatcher.send(first, worker)
                    continue
                problem = self._replayed.why_full(plan.key, first.line)
                if problem:
                    self._state.overloaded(first, problem)
                    continue
                self._state.requests.execute(first)
                first = Change(plan, [first.line], first)
            else:
                self.queue.all.popleft()
            self._running = first
            self._state.events.record(
                self._state.now, "change begins", first.request.method if first.request is not None else "replay"
            )
            if first.plan.account:
                self._version.report(under_way=True)
            if first.plan.how == "forget":
                self._forget_tokens()
            self._go_on()

    # Steps.

    def _go_on(self) -> None:
        """The next step of the running change, if there is a worker for it."""
        change = self._running
        if change is None or self._step is not None:
            return
        how = change.plan.how
        if how in ("renew", "reload", "forget") and not change.done and not change.refusal:
            worker = self._dispatcher.placement.for_account()
            if worker is not None:
                self._send(change, worker, "check" if how == "forget" else "apply")
            return
        workers = [each for each in self._state.workers.values() if not each.drained and not each.stale]
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
        elif change.done or change.failed or change.refusal or change.request is None:
            self._finish(change)

    def _send(
        self,
        change: Change,
        worker: Worker,
        phase: Literal["apply", "check"],
        *,
        line: int = 0,
        tries: int = 1,
        notifications: Iterable[bytes] = (),
    ) -> None:
        text = change_kinds.READ_ACCOUNT if phase == "check" else change.lines[line]
        if phase == "apply" and change.done and change.request is not None:
            text = change_kinds.RELOAD_MCP if change.plan.how == "reload" else change_kinds.for_others(text)
        request = Request(None, 0, APPLY, None, text, "full", self._state.now)
        number = self._state.requests.dispatch(request, worker)
        self._step = Step(request, number, worker.name, phase, line, self._state.now, tries, [*notifications])
        self._state.to_worker(worker, wire.Apply(number), text)

    def send_again(self, request: Request, worker: Worker) -> None:
        """The worker has a new connection, and may not have got this."""
        if self._step is not None and self._step.request is request:
            self._step.number = self._state.requests.dispatch(request, worker)
            self._state.to_worker(worker, wire.Apply(self._step.number), request.line)
        else:
            self._state.requests.finish(request)

    def answered(self, request: Request, worker: Worker, frames: list[bytes], *, ok: bool) -> None:
        """The worker's app-server has answered."""
        step, change = self._step, self._running
        if step is None or change is None or step.request is not request:
            return
        self._step = None
        line, *notifications = frames[1].split(b"\n") if len(frames) > 1 else [b""]
        if step.phase == "check":
            self._checked(change, step, worker, line)
        elif not ok:
            self._refused(change, worker, line)
        else:
            if not change.response:
                change.response, change.notifications = line, notifications
            if step.line + 1 < len(change.lines):
                self._send(change, worker, "apply", line=step.line + 1)
            elif change.plan.expect:
                self._send(change, worker, "check", line=step.line, tries=step.tries, notifications=notifications)
            else:
                change.done[worker.name] = None
        self._go_on()
        self._advance()

    def _checked(self, change: Change, step: Step, worker: Worker, line: bytes) -> None:
        if change.plan.how == "forget":
            change.done[worker.name] = None
            change.notifications = [change_kinds.updated_line(line)]
            return
        problem = change_kinds.differs(change.plan.expect, line, step.notifications) if change.plan.expect else ""
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
        if change.request is None:
            # It was good once: the app-server reports the rest to its user.
            self._state.log(f"worker {worker.name} refuses a setting of the pool: {jsonrpc.error_of(line)}")
            change.done[worker.name] = None
            return
        if change.done and (change.plan.account or change.plan.how == "reload"):
            change.failed[worker.name] = jsonrpc.error_of(line)
            if change.plan.how == "reload":
                change.done[worker.name] = None
            return
        change.refusal = line
        if change.plan.account and not change_kinds.refuses(line):
            change.out_of_step = jsonrpc.error_of(line)

    def lost(self, request: Request) -> None:
        """The worker of this step is dead."""
        if self._step is not None and self._step.request is request:
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
            self._version.change((), error)
        elif change.refusal:
            self._report_unchanged(plan)
        else:
            if plan.key:
                self._replayed.keep(plan.key, change.lines[0], self._state.now)
            if plan.account and plan.how != "forget":
                self._version.change(
                    change.done, "the account was changed while it was starting, ran turns or did not answer"
                )
            elif plan.how == "forget":
                self._report_unchanged(plan)
            for name in change.failed.keys() - change.done.keys():
                self._version.mark_stale(name, f"it did not take part in a change: {change.failed[name]}")
            for name in change.done:
                worker = self._state.workers.get(name)
                if worker is not None and change.only:
                    self._version.make_current(worker, change.kept_at)
                elif worker is not None and (plan.key or plan.account) and not worker.behind:
                    self._version.make_current(worker, self._replayed.at)
        if change.request is not None:
            self._answers.answer(change, change.request, error)
        self._give_kept()
        self._dispatcher.resume_work()

    def _report_unchanged(self, plan: Plan) -> None:
        if plan.account:
            self._version.report(under_way=False)

    def _forget_tokens(self) -> None:
        """App-servers forget external tokens only with their end: a log-out would delete the auth.json of all."""
        self._replayed.forget(change_kinds.TOKENS, self._state.now)
        self._version.forget_replayed()
        self._version.change((), "the external tokens were logged out")

    # What is kept for workers to come.

    def _give_kept(self) -> None:
        """Replay requests to the workers that do not have them yet."""
        given = {each.only for each in (*self.queue.all, self._running) if isinstance(each, Change)}
        for worker in self._state.workers.values():
            if worker.kept_at >= self._replayed.at or worker.stale:
                continue
            missing = self._replayed.since(worker.kept_at)
            worker.behind = bool(missing)
            if worker.drained or worker.name in given:
                continue
            if missing:
                replay = Change(Plan("each"), missing, only=worker.name, kept_at=self._replayed.at)
                self.queue.all.appendleft(replay)
            else:
                self._version.make_current(worker, self._replayed.at)

    # Workers.

    def registered(self, worker: Worker, register: wire.Register, holdings: wire.WorkerState) -> None:
        """Handle a new worker, which may be older than this broker."""
        worker.as_of, worker.kept_at = register.as_of, holdings.replayed_at
        for login_id, session in holdings.logins.items():
            self._state.account.logins[login_id] = worker.name, session
        self._replayed.adopt(holdings.replayed_requests, holdings.replayed_at)
        self._version.adopt(register.changed_at)
        self._version.find_stale("its app-server was started before the account was changed")
        self._give_kept()
        self._go_on()
        self._advance()

    def worker_lost(self, worker: Worker, reason: str) -> None:
        """Fail the log-ins that were under way on a worker that has died."""
        for login_id, (name, session) in list(self._state.account.logins.items()):
            if name == worker.name:
                del self._state.account.logins[login_id]
                error = f"worker {name}, which waited for the log-in, died: {reason}; begin again"
                self.announcements.publish([session], [change_kinds.login_failed_line(login_id, error)])

    def login_ended(self, worker: Worker, ended: wire.LoginEnded, frames: list[bytes]) -> None:
        """A log-in of the worker's app-server is over."""
        self._state.account.logins.pop(ended.login_id, None)
        if ended.mcp and ended.changed:
            done = {worker.name: None}
            self.queue.all.append(Change(Plan("reload"), [change_kinds.RELOAD_MCP], done=done))
        elif ended.changed:
            self._version.change([worker.name], "somebody has logged in on another worker")
            if not worker.behind:
                self._version.make_current(worker, self._replayed.at)
        if len(frames) == 2:
            first, *others = frames[1].split(b"\n")
            self.announcements.publish(ended.sessions, [first], patient=True)
            self.announcements.publish([], others)
        self._give_kept()
        self._advance()
        self._dispatcher.resume_work()

    # The clock.

    def tick(self) -> None:
        """Steps that take too long; workers that the supervisor has still to renew."""
        step, change = self._step, self._running
        if step is not None and change is not None and self._state.now - step.since > STEP_LIMIT_S:
            self._step = None
            self._state.requests.finish(self._state.requests.take_back(step.number))
            change.failed[step.worker] = f"worker {step.worker} has not answered within {STEP_LIMIT_S:.0f} s"
            self._version.mark_stale(step.worker, change.failed[step.worker])
            self._go_on()
            self._advance()
        self._give_kept()
        self._go_on()
        self._advance()
        self.announcements.settle()
        self._version.renew_stale()
