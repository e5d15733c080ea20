"""The turns of one attempt, from the first turn/start to the last one's end: followed, limited, interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from codex_app_server import AppServerError, TransportClosedError
from codex_app_server._async.api import AsyncThread, AsyncTurnHandle, AsyncTurnStream
from codex_app_server._core.last_error import said
from codex_app_server._protocol import runtime_version
from codex_app_server._runtime import threads
from codex_app_server.notifications import Notification, UnknownNotification
from codex_app_server.results import TurnCollector

from ..container.errors import ContainerError
from ..dataset import Sample
from ..redaction.redactor import NOTHING, Redactor
from ..rules import retry
from ..rules.bill import TOKENS, Bill, tokens_of
from ..rules.limits import TOOL_CALLS, Meter, Reached
from ..rules.retry import CANCELLED, Outcome, Status
from ..rules.validity import RESULT_METHODS, Facts
from ..store import EventLog
from .attempt_steps import AttemptSteps, StepFailed, failed
from .stopping import Stopped, unless_stopped
from .turn_limits import TurnLimits

# How long an interrupted turn may take to end, and a turn/start may still be answered when the run stops.
INTERRUPT_LIMIT_S = 10.0
START_ANSWER_LIMIT_S = 1.0
REROUTED = "model/rerouted"
_METERED = frozenset(
    {
        "pool/turn/assigned",
        "error",
        "turn/completed",
        "thread/tokenUsage/updated",
        "item/started",
        "item/completed",
        REROUTED,
    }
)


def turn_key(key: str, index: int, attempt: int) -> str:
    """Return the `clientUserMessageId` of a turn, by which a turn is found again whose end no run saw."""
    return f"{key}-{index}-{attempt}"


class Attempt:
    """The turns of one attempt at a sample, on a thread that may have had the first of them already.

    `on_assigned` is called when a turn really begins: not while it is queued; `on_waiting` when one waits for the
    network, with its message, and with None when it goes on. `halt` is done when the sample is to be
    interrupted, with the kind of the error that reports it. Its outcome is not judged here: `facts` are for the gate.
    `clock` is that of its limits in time; `steps` are around the turns of a task that has such.
    """

    def __init__(
        self,
        thread: AsyncThread,
        sample: Sample,
        meter: Meter,
        halt: asyncio.Future[str],
        *,
        key: str,
        number: int,
        bill: Bill,
        redactor: Redactor = NOTHING,
        responses: Sequence[str | None] = (),
        turn_options: dict[str, Any],
        on_assigned: Callable[[], None],
        on_waiting: Callable[[str | None], None],
        facts: Facts,
        clock: Callable[[], float] = time.monotonic,
        steps: AttemptSteps | None = None,
    ) -> None:
        self._thread = thread
        self._sample = sample
        self._meter = meter
        self._halt = halt
        self._clock = clock
        self._steps = steps
        self._key = key
        self._number = number
        self._bill = bill
        self._agent_models: dict[str, str] = {}
        self._turn_options = turn_options
        self._on_assigned = on_assigned
        self._on_waiting = on_waiting
        self._waits = False
        self.responses: list[str | None] = list(responses)
        self.events = EventLog(redactor)
        self.facts = facts
        """Facts that the validity gate decides by, as far as the turns show them."""
        # Of used tokens: one for each answer of the model.
        self._reports = 0
        self.pool_gone: TransportClosedError | None = None
        self.rerouted: tuple[str, str] | None = None
        """The model that was asked and the one that the service let answer, if it did so."""
        self._usage: dict[str, int] | None = None
        self._turn_id: str | None = None
        self._turns: list[AsyncTurnHandle] = []
        self._worker: str | None = None
        self._queued_ms: int | None = None
        self._duration_ms: int | None = None

    @property
    def may_have_called(self) -> bool:
        """False if the agent has called no tool: each turn was one answer of the model."""
        return self._reports != len(self._turns) or bool(self.facts.tools.seen)

    async def run(self) -> Outcome:
        """Run to the end; return the outcome, with the tokens of its sub-agents, which have ended then.

        Raises Stopped if no turn was started before it was to halt.
        """
        try:
            outcome = await self._run()
        finally:
            await self._end_agents()
        usage = self._with_agents(outcome.usage)
        return msgspec.structs.replace(outcome, usage=usage, cost=self._bill.cost, unpriced=self._bill.unpriced)

    def _with_agents(self, own: dict[str, int] | None) -> dict[str, int] | None:
        # Of a thread that has worked for several turns the last report is of all of them.
        totals = {thread: used.total for turn in self._turns for thread, used in turn.sub_agent_usage().items()}
        for thread, total in totals.items():
            of_agent = {name: getattr(total, name) for name in TOKENS.values()}
            self._bill.used_by_agent(of_agent, self._agent_models.get(thread))
            own = {name: (own or {}).get(name, 0) + tokens for name, tokens in of_agent.items()}
        return own

    async def _end_agents(self) -> None:
        """End what works in the background for a turn that has completed, with the sample: its directory is looked at
        next."""
        with contextlib.suppress(AppServerError):
            for turn in self._turns:
                if turn.sub_agents():
                    await _interrupt(turn)

    async def _run(self) -> Outcome:
        first = len(self.responses)
        outcome = self._outcome("completed", None)
        for index in range(first, len(self._sample.prompts)):
            reached = self._meter.may_start_turn()
            if reached is not None:
                return self._limit(reached.limit, reached.message)
            try:
                if self._steps is not None and not await unless_stopped(self._halt, self._begin(self._steps, index)):
                    return outcome
                outcome = await self._turn(index)
            except (StepFailed, ContainerError) as error:
                why = failed(error)
                return self._outcome(why.status, why.error)
            except AppServerError as error:
                if isinstance(error, TransportClosedError):
                    self.pool_gone = error
                status, problem = retry.failure(error)
                if "turn/completed" in self.facts.undecoded:
                    problem["kind"] = retry.UNDECODED
                return self._outcome(status, problem)
            except Stopped:
                if index == first:
                    raise
                return self._interrupted(self._halt.result())
            if outcome.status != "completed":
                break
            self.responses.append(outcome.final_response)
            if self.facts.problem is not None:
                # The next turn would build on what is not valid.
                break
        return outcome

    async def _begin(self, steps: AttemptSteps, index: int) -> bool:
        """Verify the last step and begin the next one; False if there is to be none."""
        if index > 0:
            await self._end_agents()
            if not await steps.verify():
                return False
        await steps.before(index)
        return True

    async def _turn(self, index: int) -> Outcome:
        sample = self._sample
        options: dict[str, Any] = {"effort": sample.effort, "output_schema": sample.output_schema}
        start = self._thread.turn(
            sample.prompts[index],
            interest="items",
            client_user_message_id=turn_key(self._key, index, self._number),
            **options,
            **(self._turn_options if index > 0 else {}),
        )
        self._meter.turn_started()
        turn = await unless_stopped(self._halt, start, grace_s=START_ANSWER_LIMIT_S)
        # It runs: while it was queued there was no answer. Its first notification shows that too, but may come late.
        self._meter.assigned(self._clock())
        self._on_assigned()
        self._turn_id = turn.id
        self._turns.append(turn)
        self._collector = TurnCollector(turn.id)
        limits = TurnLimits(self._meter, self._timeout_s(index), self._clock, self._halt)
        stream = turn.stream()
        ended: Outcome | None = None
        try:
            try:
                cut = await limits.follow(self._read(stream))
            except Stopped:
                ended = self._interrupted(self._halt.result())
            else:
                ended = None if cut is None else self._limit(cut.limit, self._with_last_error(cut.message))
            if ended is not None:
                await _interrupt(turn)
                try:
                    await asyncio.wait_for(self._read(stream, limited=False), INTERRUPT_LIMIT_S)
                except asyncio.TimeoutError:
                    return self._late(ended)
                if limits.was_in_time(ended.limit, self._collector):
                    ended = None
        finally:
            self._meter.turn_ended(self._clock())
            self._measure(limits.began_at)
        return self._ended(ended)

    def _timeout_s(self, index: int) -> float | None:
        of_step = None if self._steps is None else self._steps.timeout_s(index)
        return self._sample.timeout_s if of_step is None else of_step

    def _ended(self, why: Outcome | None) -> Outcome:
        """The outcome of a turn that is over; `why` it was interrupted from here, if it was."""
        if why is None:
            result = self._collector.result()
            if result.status == "interrupted":
                return self._interrupted(retry.INTERRUPTED, "the turn was interrupted")
        if self._collector.may_lack_answer or (why is None and not self._collector.has_items):
            self._note_undecoded("item/completed")
        if why is None:
            return self._outcome("completed", None)
        return self._outcome(why.status, why.error, why.limit)

    async def _read(self, stream: AsyncTurnStream, *, limited: bool = True) -> Reached | None:
        """Read the notifications of a turn to its end; if `limited`, until it reaches a limit, which is returned."""
        meter = self._meter
        async for notification in stream:
            method = notification.method
            if self.events.add(notification.raw):
                await threads.in_thread(self.events.compress)
            now = self._clock()
            if method in _METERED:
                try:
                    if self._observe(method, notification.params, now):
                        self._check_type(method, notification)
                except (KeyError, TypeError, ValueError, AttributeError):
                    # It does not fit its type: reading it counts and logs that.
                    meter.event(now)
                    self._check_type(method, notification)
                if method == "pool/turn/assigned":
                    continue
            else:
                meter.event(now)
                if method in RESULT_METHODS:
                    self._check_type(method, notification)
            self._collector.add(notification)
            if limited:
                reached = meter.reached(now)
                if reached is not None:
                    return reached
        return None

    def _observe(self, method: str, params: Mapping[str, Any], now: float) -> bool:
        """Observe one of _METERED; return True for the end of a tool call, all of which is to fit its type.

        Raises KeyError, TypeError, ValueError or AttributeError if it is not of its form.
        """
        self._meter.observe(method, params, now)
        self._observe_network(method, params)
        if method == "item/completed":
            item = params["item"]
            self.facts.tools.completed(item)
            self._charge(item)
            return item["type"] in TOOL_CALLS
        if method == "thread/tokenUsage/updated":
            self._reports += 1
            self._usage = tokens_of(params["tokenUsage"]["total"])
            self._bill.used(self._usage, tokens_of(params["tokenUsage"]["last"]))
        elif method == REROUTED:
            asked = str(params["fromModel"]) if self.rerouted is None else self.rerouted[0]
            self.rerouted = (asked, str(params["toModel"]))
            self._bill.rerouted(self.rerouted[1])
        elif method == "pool/turn/assigned":
            self._worker = params.get("worker")
            self._queued_ms = (self._queued_ms or 0) + (params.get("queuedMs") or 0)
        return False

    def _check_type(self, method: str, notification: Notification) -> None:
        """Note a notification that does not fit its type, if the result is made of such ones."""
        payload = notification.payload
        if method in RESULT_METHODS and isinstance(payload, UnknownNotification) and payload.problem is not None:
            self._note_undecoded(method)

    def _note_undecoded(self, method: str) -> None:
        self.facts.undecoded.append(method)
        self.facts.versions = runtime_version.both_in_use()

    def _charge(self, item: Mapping[str, Any]) -> None:
        """Note what of an item that has ended is paid for beside tokens, and which models sub-agents have."""
        kind = item.get("type")
        if kind == "webSearch":
            # Opening a page that was found is no search.
            self._bill.searched(int((item.get("action") or {}).get("type", "search") == "search"))
        elif kind == "imageGeneration":
            self._bill.made_image()
        elif kind == "collabAgentToolCall" and item.get("model"):
            self._agent_models |= dict.fromkeys(item.get("receiverThreadIds") or (), str(item["model"]))

    def _observe_network(self, method: str, params: Mapping[str, Any]) -> None:
        """Report when the turn starts to wait for the network, and when it goes on."""
        waits = method == "error" and bool(params.get("willRetry")) and retry.is_no_way(params.get("error"))
        if waits or self._waits:
            self._on_waiting(said(params.get("error")) if waits else None)
        self._waits = waits

    def _late(self, why: Outcome) -> Outcome:
        assert why.error is not None
        late = f"{why.error['message']}; it did not end within {INTERRUPT_LIMIT_S:.0f} s of being interrupted"
        return self._outcome(why.status, {**why.error, "message": late}, why.limit)

    def _with_last_error(self, message: str) -> str:
        error = self._collector.last_error
        if error is None:
            return message
        return f"{message}; its last error: {said(error.error.model_dump(by_alias=True))}"

    def _limit(self, limit: str, message: str) -> Outcome:
        return self._outcome("limit", {"kind": "limit", "message": message}, limit)

    def _interrupted(self, kind: str, message: str | None = None) -> Outcome:
        why = "the sample was cancelled" if kind == CANCELLED else "the batch was interrupted"
        return self._outcome("interrupted", {"kind": kind, "message": message or why})

    def _measure(self, began_at: float) -> None:
        collector = self._collector
        took_ms = collector.duration_ms
        if took_ms is None:
            took_ms = round((self._clock() - began_at) * 1000)
        self._duration_ms = (self._duration_ms or 0) + took_ms

    def _outcome(self, status: Status, error: dict[str, str] | None, limit: str | None = None) -> Outcome:
        collector = getattr(self, "_collector", None)
        last = self.responses[-1] if self.responses else None
        return Outcome(
            status=status,
            error=error,
            final_response=last if collector is None else collector.final_response,
            usage=self._usage,
            thread_id=self._thread.id,
            turn_id=self._turn_id,
            worker=self._worker,
            queued_ms=self._queued_ms,
            duration_ms=self._duration_ms,
            limit=limit,
        )


async def _interrupt(turn: AsyncTurnHandle) -> None:
    # One that cannot be interrupted ends on its own, or is given up by the caller.
    with contextlib.suppress(AppServerError, asyncio.TimeoutError):
        await asyncio.wait_for(turn.interrupt(), INTERRUPT_LIMIT_S)
