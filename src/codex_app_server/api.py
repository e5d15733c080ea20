"""Codex, Thread and TurnHandle: the small default surface. `async_api` holds their asyncio twins."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, get_args, overload

from . import _thread_pages, operations
from ._described import described
from ._last_error import LastError
from ._mailbox import SyncMailbox
from ._thread_walk import PageRequest, ThreadWalk
from .client import ApprovalHandler, AppServerClient
from .config import AppServerConfig
from .errors import (
    InternalRpcError,
    InvalidInputError,
    JsonRpcError,
    ThreadBusyError,
    TurnEndedError,
    UnknownTurnError,
)
from .inputs import RunInput
from .notifications import Notification
from .results import TurnCollector, TurnResult, delta_of
from .transport import Interest, Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .generated import models as m
    from .generated.options import ThreadListOptions
    from .login import ChatgptLoginHandle, DeviceCodeLoginHandle
    from .presets import ThreadForkKeywords, ThreadResumeKeywords, ThreadStartKeywords, TurnKeywords

T = TypeVar("T")
OnBusy = Literal["error", "queue", "steer"]


# How often to ask for a turn while one runs on its thread of which nothing was heard yet.
BUSY_POLL_S = 0.05


def check_on_busy(on_busy: str) -> None:
    if on_busy not in get_args(OnBusy):
        raise InvalidInputError(f"on_busy is {on_busy!r}; expected 'error', 'queue' or 'steer'")


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _pause(pause_s: float, deadline: float | None) -> None:
    """Wait; raises TimeoutError when the deadline comes before."""
    left_s = _left_s(deadline)
    if left_s is not None and left_s < pause_s:
        time.sleep(left_s)
        raise TimeoutError
    time.sleep(pause_s)


class Codex:
    """An app-server, ready to use. Starts it and shakes hands in the constructor; use it as a context manager.

    `transport` replaces the child process, e.g. by a pool. Raises AppServerError; nothing is left behind then.
    """

    def __init__(
        self,
        config: AppServerConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: ApprovalHandler | None = None,
    ) -> None:
        self._client = AppServerClient(config, transport=transport, approval_handler=approval_handler)
        try:
            self._client.start()
            self._metadata = self._client.initialize()
        except BaseException:
            self._client.close()
            raise
        self._closed = False

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or sys.is_finalizing() or self._client._connection.is_inherited:
            return
        # It may run in the middle of anything, so that it waits for nothing.
        with contextlib.suppress(Exception):
            self._client._connection.close_soon()
        warnings.warn(
            f"unclosed {self!r}: use it as a context manager, or close() it", ResourceWarning, stacklevel=2, source=self
        )

    def __enter__(self) -> Codex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> NoReturn:
        # There will be no `__aexit__`.
        self.close()
        raise TypeError("a Codex is not for asyncio: write `with`, or use AsyncCodex with `async with`")

    async def __aexit__(self, *_: object) -> None:
        """Never called."""

    @property
    def client(self) -> AppServerClient:
        """The client underneath, for requests without a method of their own here."""
        return self._client

    @property
    def metadata(self) -> m.InitializeResponse:
        """What the app-server said of itself in the handshake."""
        return self._metadata

    def close(self) -> None:
        """End the app-server and wait until it is gone. May be called twice.

        In a process forked from the one that made it, it does nothing, and so does the end of a `with` block.
        """
        self._closed = True
        self._client.close()

    @described("ThreadStartOptions")
    def thread_start(self, **options: Unpack[ThreadStartKeywords]) -> Thread:
        """Begin a conversation."""
        response = self._client.perform(operations.thread_start(options))
        return Thread(self._client, response.thread.id)

    @described("ThreadResumeOptions")
    def thread_resume(self, thread_id: str, **options: Unpack[ThreadResumeKeywords]) -> Thread:
        """Take up a stored conversation."""
        response = self._client.perform(operations.thread_resume(thread_id, options))
        return Thread(self._client, response.thread.id)

    @described("ThreadForkOptions")
    def thread_fork(self, thread_id: str, **options: Unpack[ThreadForkKeywords]) -> Thread:
        """Begin a new conversation with the history of another."""
        response = self._client.perform(operations.thread_fork(thread_id, options))
        return Thread(self._client, response.thread.id)

    @described("ThreadListOptions")
    def thread_list(self, **options: Unpack[ThreadListOptions]) -> m.ThreadListResponse:
        """Stored conversations, a page at a time."""
        return self._client.perform(operations.thread_list(options))

    @described("ThreadListOptions", but="cursor")
    def threads(self, **options: Unpack[ThreadListOptions]) -> Iterator[m.Thread]:
        """All stored conversations, each once, page by page: what `thread_list` may skip between two pages is not.

        Options are those of `thread_list`, but for `cursor`; `limit` is the size of a page, at most and by default 100.
        With `sort_key` or `sort_direction` they come in that order, once all pages are read; without, as they are
        found: by far most from the newest to the oldest. A thread that is begun meanwhile may be missing.
        Raises ThreadListError where the list cannot be read on without skipping some, InvalidInputError for options
        that are none.
        """
        walk, page = _thread_pages.walk_of(options, shared=self._client._connection.shared)
        order = _thread_pages.order_of(options)
        threads = self._walk(walk, page)
        return threads if order is None else self._sorted(threads, order)

    def _walk(self, walk: ThreadWalk, page: Callable[[PageRequest], operations.Operation[Any]]) -> Iterator[m.Thread]:
        while (request := walk.request) is not None:
            with _thread_pages.reading():
                response = self._client.perform(page(request))
            yield from _thread_pages.walk_on(walk, response)

    def _sorted(self, threads: Iterator[m.Thread], order: tuple[str, str]) -> Iterator[m.Thread]:
        yield from _thread_pages.in_order(threads, *order)

    def thread_archive(self, thread_id: str) -> None:
        """Put a stored conversation away; also frees what the app-server holds of it in memory."""
        self._client.request("thread/archive", {"thread_id": thread_id})

    def thread_unarchive(self, thread_id: str) -> Thread:
        """Bring an archived conversation back; `thread_resume` it to go on."""
        response = self._client.request("thread/unarchive", {"thread_id": thread_id})
        return Thread(self._client, response.thread.id)

    def thread_delete(self, thread_id: str) -> None:
        """Delete a stored conversation for good."""
        self._client.request("thread/delete", {"thread_id": thread_id})

    def models(self, *, include_hidden: bool = False) -> m.ModelListResponse:
        """The models on offer."""
        response: m.ModelListResponse = self._client.request("model/list", {"include_hidden": include_hidden})
        return response

    def account(self, *, refresh_token: bool = False) -> m.GetAccountResponse:
        """Who is logged in, and how."""
        return self._client.perform(operations.account(refresh_token))

    def login_api_key(self, api_key: str) -> None:
        """Log in with an API key."""
        self._client.perform(operations.login("apiKey", api_key=api_key))

    def login_chatgpt(self) -> ChatgptLoginHandle:
        """Begin a log-in by browser."""
        from .login import ChatgptLoginHandle

        response = self._client.perform(operations.login("chatgpt"))
        return ChatgptLoginHandle(self._client, response.login_id, response.auth_url)

    def login_chatgpt_device_code(self) -> DeviceCodeLoginHandle:
        """Begin a log-in by a code that the user enters elsewhere."""
        from .login import DeviceCodeLoginHandle

        response = self._client.perform(operations.login("chatgptDeviceCode"))
        return DeviceCodeLoginHandle(self._client, response.login_id, response.verification_url, response.user_code)

    def logout(self) -> None:
        """Forget the account."""
        self._client.request("account/logout")

    def notifications(self) -> Iterator[Notification]:
        """What belongs to no turn of this client; it ends when the client is closed. The newest 10,000 are kept.

        Raises TransportClosedError when the app-server dies.
        """
        while (notification := self._client.next_notification()) is not None:
            yield notification


class Thread:
    """A conversation, by its id. Turns of one thread run one after the other; threads run side by side."""

    def __init__(self, client: AppServerClient, id: str) -> None:
        self._client = client
        self.id = id

    @overload
    def run(
        self,
        input: RunInput,
        *,
        output_type: None = None,
        timeout: float | None = None,
        on_busy: OnBusy = "error",
        detach: bool = False,
        **options: Unpack[TurnKeywords],
    ) -> TurnResult: ...
    @overload
    def run(
        self,
        input: RunInput,
        *,
        output_type: type[T],
        timeout: float | None = None,
        on_busy: OnBusy = "error",
        detach: bool = False,
        **options: Unpack[TurnKeywords],
    ) -> T: ...
    @described("TurnStartOptions")
    def run(
        self,
        input: RunInput,
        *,
        output_type: Any = None,
        timeout: float | None = None,
        on_busy: OnBusy = "error",
        detach: bool = False,
        **options: Unpack[TurnKeywords],
    ) -> Any:
        """Run one turn to its end. With `output_type` its answer is asked for, and returned, as that type.

        `timeout` in seconds, all waiting included; `on_busy` and `detach` as in `turn`. Whatever ends the wait early -
        the timeout, Ctrl-C - interrupts the turn, unless `detach`.
        Raises TurnFailedError, RequestTimeoutError, OutputTypeError, ThreadBusyError.
        """
        operations.check_timeout(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        last_error = LastError()
        try:
            turn = self._turn(input, "final", options, output_type, on_busy, detach, deadline, last_error)
            result = turn._run(deadline, last_error)
        except TimeoutError:
            if deadline is None or time.monotonic() < deadline:
                raise
            raise last_error.timeout(f"the turn did not end within {timeout} s") from None
        return result if output_type is None else operations.parse_output(output_type, result)

    @described("TurnStartOptions")
    def turn(
        self,
        input: RunInput,
        *,
        interest: Interest = "full",
        on_busy: OnBusy = "error",
        detach: bool = False,
        **options: Unpack[TurnKeywords],
    ) -> TurnHandle:
        """Start a turn, to be streamed, steered or interrupted.

        `interest` "items" leaves out the deltas where the transport can (a pool); "full" is everything.
        `on_busy` says what happens when the thread runs a turn already, of this client, of compaction or of a goal:
        "error" raises ThreadBusyError, "queue" waits for its end, "steer" adds the input to it (compaction and reviews
        take none: ThreadBusyError).
        `detach`: the turn goes on when nobody waits for it or reads it any more.
        """
        return self._turn(input, interest, options, None, on_busy, detach)

    def _turn(
        self,
        input: RunInput,
        interest: Interest,
        options: Any,
        output_type: Any,
        on_busy: OnBusy,
        detach: bool,
        deadline: float | None = None,
        last_error: LastError | None = None,
    ) -> TurnHandle:
        check_on_busy(on_busy)
        operation = operations.turn_start(self.id, input, options, interest, output_type)
        while True:
            try:
                response, mailbox = self._client.start_turn(operation, detach=detach, deadline=deadline, if_idle=True)
                return TurnHandle(self._client, self.id, response.turn.id, mailbox, detach)
            except ThreadBusyError as busy:
                if on_busy == "error":
                    raise
                running = busy.turn_id
            except InternalRpcError as error:
                if not operations.is_busy(error):
                    raise
                running = self._client.running_turn(self.id)[1]
                if on_busy != "queue":
                    raise ThreadBusyError(self.id, running) from error
                if running is None:
                    # That it has begun is still to be said.
                    _pause(BUSY_POLL_S, deadline)
                    continue
            if running is None:
                self._client._wait_started(self.id, _left_s(deadline))
                continue
            try:
                mailbox = self._client.follow_turn(running)
            except TurnEndedError:
                continue
            if on_busy == "steer":
                handle = TurnHandle(self._client, self.id, running, mailbox, detach)
                try:
                    handle.steer(input)
                except JsonRpcError as error:
                    if operations.is_busy(error):
                        raise ThreadBusyError(self.id, running) from error
                    raise
                return handle
            while (notification := mailbox.get(_left_s(deadline))) is not None:
                if last_error is not None:
                    last_error.heed(notification)

    def follow(self, turn_id: str) -> TurnHandle:
        """A second handle on a running turn: what it sends from now on. It does not interrupt when it is closed.

        Raises at once TurnEndedError for a turn known to have ended, UnknownTurnError for one that was never seen. On
        a pool the turn may be another client's; then UnknownTurnError comes when the handle is read.
        """
        return TurnHandle(self._client, self.id, turn_id, self._client.follow_turn(turn_id, self.id), True)

    def read(self, *, include_turns: bool = False) -> m.ThreadReadResponse:
        """What is stored of this conversation."""
        return self._client.perform(operations.thread_read(self.id, include_turns))

    def set_name(self, name: str) -> None:
        """Give the conversation a name."""
        self._client.request("thread/name/set", {"thread_id": self.id, "name": name})

    def compact(self) -> m.ThreadCompactStartResponse:
        """Begin to shorten the history; the turn that does it shows among the client's notifications."""
        response: m.ThreadCompactStartResponse = self._client.request("thread/compact/start", {"thread_id": self.id})
        return response

    def review(self, target: m.ReviewTarget | dict[str, Any] | None = None, *, detached: bool = False) -> TurnHandle:
        """Start a review, by default of the uncommitted changes; `detached` on a thread of its own."""
        operation = operations.review_start(self.id, target or {"type": "uncommittedChanges"}, detached)
        response, mailbox = self._client.start_turn(operation)
        return TurnHandle(self._client, response.review_thread_id, response.turn.id, mailbox)

    def set_goal(
        self, objective: str | None = None, *, status: Any = None, token_budget: int | None = None
    ) -> m.ThreadGoal:
        """Give the conversation a goal, or change the one it has."""
        fields = {"objective": objective, "status": status, "token_budget": token_budget}
        return self._client.perform(operations.goal_set(self.id, fields)).goal

    def goal(self) -> m.ThreadGoal | None:
        """The conversation's goal, if it has one."""
        response: m.ThreadGoalGetResponse = self._client.request("thread/goal/get", {"thread_id": self.id})
        return response.goal

    def clear_goal(self) -> bool:
        """Take the goal away; whether there was one."""
        response: m.ThreadGoalClearResponse = self._client.request("thread/goal/clear", {"thread_id": self.id})
        return response.cleared


class TurnStream(Iterator[Notification]):
    """The notifications of a turn, each given out once.

    Breaking off a loop leaves the turn alone; Ctrl-C while it waits, `close`, or leaving it as a context manager
    interrupts a turn that has not ended, unless its handle is detached.
    """

    def __init__(self, turn: TurnHandle, mailbox: SyncMailbox) -> None:
        self._turn = turn
        self._mailbox = mailbox

    def __iter__(self) -> Iterator[Notification]:
        mailbox = self._mailbox
        try:
            while (notification := mailbox.get()) is not None:
                yield notification
                # The rest of what came with it costs no call for each.
                yield from mailbox.current
        except KeyboardInterrupt:
            self.close()
            raise

    def __next__(self) -> Notification:
        for notification in self:
            return notification
        raise StopIteration

    def next(self, timeout_s: float | None = None) -> Notification | None:
        """The next notification, None at the end. Raises TimeoutError when none comes in time; the turn goes on."""
        try:
            return self._mailbox.get(timeout_s)
        except KeyboardInterrupt:
            self.close()
            raise

    def __enter__(self) -> TurnStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Interrupt the turn if it has not ended."""
        self._turn.abandon()


class TurnText(Iterator[str]):
    """The text of a turn alone, each piece given out once.

    Breaking off a loop leaves the turn alone; Ctrl-C while it waits, `close`, or leaving it as a context manager
    interrupts a turn that has not ended, unless its handle is detached.
    """

    def __init__(self, turn: TurnHandle, mailbox: SyncMailbox) -> None:
        self._turn = turn
        self._mailbox = mailbox
        self._collector = TurnCollector(turn.id)

    def __next__(self) -> str:
        try:
            while (notification := self._mailbox.get()) is not None:
                if notification.method == "item/agentMessage/delta":
                    return delta_of(notification).delta
                self._collector.add(notification)
        except KeyboardInterrupt:
            self.close()
            raise
        self._collector.result()
        raise StopIteration

    def __enter__(self) -> TurnText:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Interrupt the turn if it has not ended."""
        self._turn.abandon()


class TurnHandle:
    """A turn under way. Its notifications are kept for this handle until they are read."""

    def __init__(
        self, client: AppServerClient, thread_id: str, id: str, mailbox: SyncMailbox, detach: bool = False
    ) -> None:
        self._client = client
        self._mailbox = mailbox
        self._detach = detach
        self.thread_id = thread_id
        self.id = id

    def stream(self) -> TurnStream:
        """The notifications of this turn, and only of this one, to its end."""
        return TurnStream(self, self._mailbox)

    def text(self) -> TurnText:
        """The text of the turn alone, as it comes. Raises TurnFailedError at its end if it failed."""
        return TurnText(self, self._mailbox)

    def run(self, *, timeout: float | None = None) -> TurnResult:
        """Read the turn to its end. `timeout` in seconds; whatever ends the wait early interrupts the turn.

        Raises TurnFailedError, TransportClosedError, RequestTimeoutError.
        """
        operations.check_timeout(timeout)
        last_error = LastError()
        try:
            return self._run(None if timeout is None else time.monotonic() + timeout, last_error)
        except TimeoutError:
            raise last_error.timeout(f"turn {self.id} did not end within {timeout} s") from None

    def _run(self, deadline: float | None, last_error: LastError) -> TurnResult:
        """`deadline` on the monotonic clock. Raises TimeoutError."""
        collector = TurnCollector(self.id, last_error)
        try:
            while (notification := self._mailbox.get(_left_s(deadline))) is not None:
                collector.add(notification)
        except (TimeoutError, KeyboardInterrupt):
            self.abandon()
            raise
        return collector.result()

    def abandon(self) -> None:
        """Interrupt the turn if it has not ended and the handle is not detached; failures are of no interest."""
        if not self._detach and not self._mailbox.closed:
            self._client._interrupt_orphan(self.thread_id, self.id, lambda: self._mailbox.closed)

    def steer(self, input: RunInput) -> None:
        """Add input to the running turn. Raises InvalidRequestError when it is over."""
        self._client.perform(operations.turn_steer(self.thread_id, self.id, input))

    def sub_agents(self) -> list[TurnHandle]:
        """Handles on the turns of sub-agents that work for this turn and run now, also after its end.

        Each is one as of `Thread.follow`: what its turn sends from now on comes there, and no longer among the
        client's notifications. Raises TransportClosedError.
        """
        handles = []
        for thread_id, turn_id in self._client._connection.running_agents(self.thread_id, self.id):
            # One may be over by now.
            with contextlib.suppress(TurnEndedError, UnknownTurnError):
                mailbox = self._client.follow_turn(turn_id)
                handles.append(TurnHandle(self._client, thread_id, turn_id, mailbox, True))
        return handles

    def sub_agent_usage(self) -> dict[str, m.ThreadTokenUsage]:
        """The token usage of each sub-agent that has worked for this turn, by its thread, as last reported.

        It is all that the thread has used; the usage in the turn's result has none of it.
        """
        reports = self._client._connection.agent_usage(self.id)
        usages = {thread: getattr(Notification(line).payload, "token_usage", None) for thread, line in reports.items()}
        return {thread: usage for thread, usage in usages.items() if usage is not None}

    def interrupt(self) -> None:
        """Stop the turn and its sub-agents; its stream then ends with status `interrupted`.

        One that is over is left alone, but sub-agents that outlive it are stopped. Right after its start the app-server
        does not know the turn yet: it is told again until it does.
        """
        self._client.interrupt_turn(self.thread_id, self.id, lambda: self._mailbox.ended)


def wait_for_turn_completed(turn: TurnHandle) -> m.TurnCompletedNotification:
    """Read a turn to its end; its last notification. A failed turn is returned, not raised."""
    last: Any = None
    for notification in turn.stream():
        if notification.method == "turn/completed":
            last = notification.payload
    return operations.ended(turn.id, last)


@described("TurnStartOptions")
def stream_text(thread: Thread, input: RunInput, **options: Unpack[TurnKeywords]) -> TurnText:
    """Start one turn and iterate over its text as it comes. Raises TurnFailedError at its end."""
    return thread.turn(input, **options).text()
