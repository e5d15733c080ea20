"""Codex, Thread and TurnHandle: the small default surface. `async_api` holds their asyncio twins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import operations
from ._mailbox import SyncMailbox
from .client import ApprovalHandler, AppServerClient, read
from .config import AppServerConfig
from .errors import InvalidRequestError
from .inputs import Input
from .notifications import Notification
from .operations import TurnCollector, TurnResult
from .transport import Interest, Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .generated import models as m
    from .generated.options import (
        ThreadForkOptions,
        ThreadListOptions,
        ThreadResumeOptions,
        ThreadStartOptions,
        TurnStartOptions,
    )

INTERRUPT_RETRY_S = 0.05
INTERRUPT_LIMIT_S = 10.0


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

    def __enter__(self) -> Codex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def client(self) -> AppServerClient:
        """The client underneath, for requests without a method of their own here."""
        return self._client

    @property
    def metadata(self) -> m.InitializeResponse:
        """What the app-server said of itself in the handshake."""
        return self._metadata

    def close(self) -> None:
        """End the app-server and wait until it is gone. May be called twice."""
        self._client.close()

    def thread_start(self, **options: Unpack[ThreadStartOptions]) -> Thread:
        """Begin a conversation."""
        response = self._client.perform(operations.thread_start(options))
        return Thread(self._client, response.thread.id)

    def thread_resume(self, thread_id: str, **options: Unpack[ThreadResumeOptions]) -> Thread:
        """Take up a stored conversation."""
        response = self._client.perform(operations.thread_resume(thread_id, options))
        return Thread(self._client, response.thread.id)

    def thread_fork(self, thread_id: str, **options: Unpack[ThreadForkOptions]) -> Thread:
        """Begin a new conversation with the history of another."""
        response = self._client.perform(operations.thread_fork(thread_id, options))
        return Thread(self._client, response.thread.id)

    def thread_list(self, **options: Unpack[ThreadListOptions]) -> m.ThreadListResponse:
        """Stored conversations, a page at a time."""
        return self._client.perform(operations.thread_list(options))

    def thread_archive(self, thread_id: str) -> None:
        """Put a stored conversation away; also frees what the app-server holds of it in memory."""
        self._client.request("thread/archive", {"thread_id": thread_id})

    def thread_unarchive(self, thread_id: str) -> None:
        """Bring an archived conversation back."""
        self._client.request("thread/unarchive", {"thread_id": thread_id})

    def thread_delete(self, thread_id: str) -> None:
        """Delete a stored conversation for good."""
        self._client.request("thread/delete", {"thread_id": thread_id})

    def models(self, *, include_hidden: bool = False) -> m.ModelListResponse:
        """The models on offer."""
        response: m.ModelListResponse = self._client.request("model/list", {"include_hidden": include_hidden})
        return response


class Thread:
    """A conversation, by its id. Turns of one thread run one after the other; threads run side by side."""

    def __init__(self, client: AppServerClient, id: str) -> None:
        self._client = client
        self.id = id

    def run(self, input: Input, **options: Unpack[TurnStartOptions]) -> TurnResult:
        """Run one turn to its end. Raises TurnFailedError."""
        return self._turn(input, "items", options).run()

    def turn(self, input: Input, *, interest: Interest = "full", **options: Unpack[TurnStartOptions]) -> TurnHandle:
        """Start a turn, to be streamed, steered or interrupted.

        `interest` "items" leaves out the deltas where the transport can (a pool); "full" is everything.
        """
        return self._turn(input, interest, options)

    def _turn(self, input: Input, interest: Interest, options: Any) -> TurnHandle:
        operation = operations.turn_start(self.id, input, options, interest)
        response, mailbox = self._client.start_turn(operation)
        return TurnHandle(self._client, self.id, response.turn.id, mailbox)

    def read(self, *, include_turns: bool = False) -> m.ThreadReadResponse:
        """What is stored of this conversation."""
        return self._client.perform(operations.thread_read(self.id, include_turns))

    def set_name(self, name: str) -> None:
        """Give the conversation a name."""
        self._client.request("thread/name/set", {"thread_id": self.id, "name": name})


class TurnHandle:
    """A turn under way. Its notifications are kept for this handle until they are read."""

    def __init__(self, client: AppServerClient, thread_id: str, id: str, mailbox: SyncMailbox) -> None:
        self._client = client
        self._mailbox = mailbox
        self.thread_id = thread_id
        self.id = id

    def stream(self) -> Iterator[Notification]:
        """The notifications of this turn, and only of this one, to its end. Each is given out once."""
        return read(self._mailbox)

    def run(self) -> TurnResult:
        """Read the turn to its end. Raises TurnFailedError, TransportClosedError."""
        collector = TurnCollector(self.id)
        for notification in self.stream():
            collector.add(notification)
        return collector.result()

    def steer(self, input: Input) -> None:
        """Add input to the running turn. Raises InvalidRequestError when it is over."""
        self._client.perform(operations.turn_steer(self.thread_id, self.id, input))

    def interrupt(self) -> None:
        """Stop the turn; its stream then ends with status `interrupted`. One that is over is left alone.

        Right after its start the app-server does not know the turn yet: it is told again until it does.
        """
        deadline = time.monotonic() + INTERRUPT_LIMIT_S
        while not self._mailbox.ended:
            try:
                self._client.perform(operations.turn_interrupt(self.thread_id, self.id))
                return
            except InvalidRequestError as error:
                if not operations.is_not_active_yet(error) or time.monotonic() > deadline:
                    raise
                if self._mailbox.closed:
                    # Its stream broke, so its end was not seen.
                    return
            self._mailbox.wait_closed(INTERRUPT_RETRY_S)


def stream_text(thread: Thread, input: Input, **options: Unpack[TurnStartOptions]) -> Iterator[str]:
    """Run one turn and yield its text as it comes. Raises TurnFailedError."""
    turn = thread.turn(input, **options)
    collector = TurnCollector(turn.id)
    for notification in turn.stream():
        if notification.method == "item/agentMessage/delta":
            yield notification.payload.delta
        else:
            collector.add(notification)
    collector.result()
