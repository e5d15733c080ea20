"""The turns of one attempt, from the first turn/start to the last one's end: followed, limited, interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from codex_app_server import AppServerError, TransportClosedError, _threads
from codex_app_server._last_error import said
from codex_app_server.async_api import AsyncThread, AsyncTurnHandle, AsyncTurnStream
from codex_app_server.notifications import Notification, UnknownNotification
from codex_app_server.results import TurnCollector

from . import policy
from .bill import TOKENS, Bill, tokens_of
from .dataset import Sample
from .limits import TOOL_CALLS, Meter, Reached
from .policy import Outcome, Status
from .redaction import NOTHING, Redactor
from .store import EventLog
from .validity import WEIGHED, Facts

T = TypeVar("T")

# How long an interrupted turn may take to end, and a turn/start may still be answered when the run stops.
INTERRUPT_LIMIT_S = 10.0
START_ANSWER_LIMIT_S = 1.0
CANCEL_AGAIN_S = 2.0
# How late a limit in time may be noticed that has not begun to count yet.
CLOCK_S = 0.5
TIMEOUT, WALL = "timeout_s", "wall_s"
CANCELLED = "cancelled"
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


class Stopped(Exception):
    """The run stops, and what was to be done was not done."""


async def unless_stopped(stopping: asyncio.Future[Any], work: Coroutine[Any, Any, T], *, grace_s: float = 0.0) -> T:
    """The result of `work`; raises Stopped when `stopping` is done first and `work` not within `grace_s` then."""
    if stopping.done() and grace_s <= 0:
        work.close()
        raise Stopped
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    is_over = has_ended = False

    # Within this task: another one for each thing that is waited for would cost more than the thing.
    def give_up() -> None:
        nonlocal is_over
        is_over = True
        task.cancel()

    def on_stop(_: object) -> None:
        nonlocal timer
        # It may be on its way when the work ends: nothing takes it back then.
        if not has_ended:
            timer = loop.call_later(grace_s, give_up)

    stopping.add_done_callback(on_stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not is_over:
            raise
        if hasattr(task, "uncancel") and task.uncancel() > 0:
            # Somebody else has cancelled the task as well.
            raise
        raise Stopped from None
    finally:
        has_ended = True
        stopping.remove_done_callback(on_stop)
        if timer is not None:
            timer.cancel()


async def ended(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks until all are done; what they came to is dropped.

    One cancellation may not be enough: where it meets a stop, `unless_stopped` cannot tell the two apart before Python
    3.11. The next one leaves time for what a task does at its end.
    """
    tasks = list(tasks)
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def turn_key(key: str, index: int, attempt: int) -> str:
    """The `clientUserMessageId` of a turn: by it a turn is found again that nobody saw the end of."""
    return f"{key}-{index}-{attempt}"


class Attempt:
    """The turns of one attempt at a sample, on a thread that may have had the first of them already.

    `on_assigned` is called when a turn really begins: not while it is queued; `on_waiting` when one waits for the
    network, with what it says, and with None when it goes on. `halt` is done when the sample is to be
    interrupted, with the kind of the error that says so. What it came to is not judged here: `facts` are for the gate.
    `clock` is that of its limits in time.
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
    ) -> None:
        self._thread = thread
        self._sample = sample
        self._meter = meter
        self._halt = halt
        self._clock = clock
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
        """What the validity gate decides by, as far as the turns show it."""
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
                outcome = await self._turn(index)
            except AppServerError as error:
                if isinstance(error, TransportClosedError):
                    self.pool_gone = error
                status, problem = policy.failure(error)
                if "turn/completed" in self.facts.undecoded:
                    problem["kind"] = policy.UNDECODED
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
        began_at = self._clock()
        # It runs: while it was queued there was no answer. Its first notification says so too, and may take its time.
        self._meter.assigned(began_at)
        self._on_assigned()
        self._turn_id = turn.id
        self._turns.append(turn)
        self._collector = TurnCollector(turn.id)
        ran_before_s = self._meter.ran_s(began_at)
        stream = turn.stream()
        ended: Outcome | None = None
        try:
            try:
                cut = await self._to_its_end(stream, began_at)
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
                if self._was_in_time(ended.limit, ran_before_s):
                    ended = None
        finally:
            self._meter.turn_ended(self._clock())
            self._measure(began_at)
        return self._ended(ended)

    async def _to_its_end(self, stream: AsyncTurnStream, began_at: float) -> Reached | None:
        """What comes of a turn, until it ends or reaches a limit. Raises Stopped when it is to halt."""
        limits, timeout_s = self._meter.limits, self._sample.timeout_s
        if limits.wall_s is None and limits.idle_s is None and timeout_s is None:
            return await unless_stopped(self._halt, self._read(stream))
        loop = asyncio.get_running_loop()
        over: asyncio.Future[Reached | None] = loop.create_future()
        timer: asyncio.TimerHandle | None = None

        def end(reached: Reached | None) -> None:
            if not over.done():
                over.set_result(reached)

        def on_halt(_: object) -> None:
            end(None)

        def look() -> None:
            nonlocal timer
            now = self._clock()
            reached = self._reached_in_time(now, began_at)
            if reached is not None:
                end(reached)
            else:
                timer = loop.call_later(self._wait_s(now, began_at), look)

        self._halt.add_done_callback(on_halt)
        if self._halt.done():
            end(None)
        look()
        try:
            return await unless_stopped(over, self._read(stream))
        except Stopped:
            reached = over.result()
            if reached is None:
                raise
            return reached
        finally:
            self._halt.remove_done_callback(on_halt)
            if timer is not None:
                timer.cancel()

    def _reached_in_time(self, now: float, began_at: float) -> Reached | None:
        timeout_s = self._sample.timeout_s
        if timeout_s is not None and now - began_at >= timeout_s:
            return Reached(TIMEOUT, f"the turn ran longer than its timeout_s of {timeout_s:g} s")
        return self._meter.reached(now)

    def _was_in_time(self, limit: str | None, ran_before_s: float) -> bool:
        """Return True if a turn had completed within the limit by the app-server's clock; news of that came late."""
        duration_ms = self._collector.duration_ms
        if limit not in (WALL, TIMEOUT) or duration_ms is None:
            return False
        try:
            if self._collector.result().status != "completed":
                return False
        except AppServerError:
            return False
        if limit == TIMEOUT:
            return self._sample.timeout_s is not None and duration_ms / 1000 < self._sample.timeout_s
        wall_s = self._meter.limits.wall_s
        return wall_s is not None and ran_before_s + duration_ms / 1000 < wall_s

    def _wait_s(self, now: float, began_at: float) -> float:
        """Until something could be reached without anything happening."""
        limits, timeout_s = self._meter.limits, self._sample.timeout_s
        waits = [] if timeout_s is None else [max(0.0, timeout_s - (now - began_at))]
        if limits.wall_s is not None or limits.idle_s is not None:
            wait_s = self._meter.wait_s(now)
            waits.append(CLOCK_S if wait_s is None else wait_s)
        return min(waits)

    def _ended(self, why: Outcome | None) -> Outcome:
        """What a turn that is over came to; `why` we interrupted it, if we did."""
        if why is None:
            result = self._collector.result()
            if result.status == "interrupted":
                return self._interrupted(policy.INTERRUPTED, "the turn was interrupted")
        if self._collector.may_lack_answer:
            self.facts.undecoded.append("item/completed")
        if why is None:
            return self._outcome("completed", None)
        return self._outcome(why.status, why.error, why.limit)

    async def _read(self, stream: AsyncTurnStream, *, limited: bool = True) -> Reached | None:
        """What comes of a turn, to its end; if it is `limited`, only until it reaches a limit, which is returned."""
        meter = self._meter
        async for notification in stream:
            method = notification.method
            if self.events.add(notification.raw):
                await _threads.in_thread(self.events.compress)
            now = self._clock()
            if method in _METERED:
                try:
                    if self._heed(method, notification.params, now):
                        self._weigh(method, notification)
                except (KeyError, TypeError, ValueError, AttributeError):
                    # It does not fit its type, which looking at it counts, and says.
                    meter.event(now)
                    self._weigh(method, notification)
                if method == "pool/turn/assigned":
                    continue
            else:
                meter.event(now)
                if method in WEIGHED:
                    self._weigh(method, notification)
            self._collector.add(notification)
            if limited:
                reached = meter.reached(now)
                if reached is not None:
                    return reached
        return None

    def _heed(self, method: str, params: Mapping[str, Any], now: float) -> bool:
        """Heed one of _METERED; True for the end of a tool call, all of which is to fit its type.

        Raises KeyError, TypeError, ValueError or AttributeError if it is not of its form.
        """
        self._meter.observe(method, params, now)
        self._heed_network(method, params)
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

    def _weigh(self, method: str, notification: Notification) -> None:
        """Note a notification that does not fit its type, if the result is made of such ones."""
        payload = notification.payload
        if method in WEIGHED and isinstance(payload, UnknownNotification) and payload.problem is not None:
            self.facts.undecoded.append(method)

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

    def _heed_network(self, method: str, params: Mapping[str, Any]) -> None:
        """Tell when the turn begins to wait for the network, and when it goes on."""
        waits = method == "error" and bool(params.get("willRetry")) and policy.is_no_way(params.get("error"))
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
    # One that cannot be interrupted ends by itself, or is given up by the caller.
    with contextlib.suppress(AppServerError, asyncio.TimeoutError):
        await asyncio.wait_for(turn.interrupt(), INTERRUPT_LIMIT_S)
