"""AsyncCodex, AsyncThread and AsyncTurnHandle with the signatures of the published SDK, over those of this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from codex_app_server import operations
from codex_app_server._async import api
from codex_app_server._async.client import AsyncApprovalHandler
from codex_app_server.errors import InvalidRequestError, ThreadBusyError
from codex_app_server.inputs import ExternalMessage, Input, RunInput
from codex_app_server.results import TurnResult
from codex_app_server.transport import Interest, Transport

from ._options import ApprovalMode, Sandbox, joining, settings_of_thread, to_options
from ._received import InitializeResponse, Notification, of_metadata, of_notification
from ._shapes import ReasoningEffort, ThreadSource, shaped
from .client import CodexConfig

if TYPE_CHECKING:
    from codex_app_server.generated import models as m


class AsyncCodex(api.AsyncCodex):
    """An app-server, as the published SDK's `Codex`. `transport` replaces the child process, e.g. by a pool.

    Without an `approval_handler` what the app-server asks is declined; the published SDK accepts it.
    """

    def __init__(
        self,
        config: CodexConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: AsyncApprovalHandler | None = None,
    ) -> None:
        super().__init__(config or CodexConfig(), transport=transport, approval_handler=approval_handler)

    async def __aenter__(self) -> AsyncCodex:
        await super().__aenter__()
        return self

    @property
    def metadata(self) -> InitializeResponse:  # type: ignore[override]
        """The answer of the handshake, with `serverInfo`."""
        return of_metadata(super().metadata)

    async def thread_start(  # type: ignore[override]
        self,
        *,
        approval_mode: ApprovalMode = ApprovalMode.auto_review,
        base_instructions: str | None = None,
        config: dict[str, Any] | None = None,
        cwd: str | None = None,
        developer_instructions: str | None = None,
        ephemeral: bool | None = None,
        model: str | None = None,
        model_provider: str | None = None,
        personality: m.Personality | None = None,
        sandbox: Sandbox | None = None,
        service_name: str | None = None,
        service_tier: str | None = None,
        session_start_source: m.ThreadStartSource | None = None,
        thread_source: ThreadSource | None = None,
    ) -> AsyncThread:
        """Begin a conversation; by default a reviewing model decides on what the sandbox does not allow."""
        thread = await super().thread_start(**to_options(locals()))
        return AsyncThread(self._client, thread.id)

    async def thread_list(  # type: ignore[override]
        self,
        *,
        archived: bool | None = None,
        cursor: str | None = None,
        cwd: str | list[str] | None = None,
        limit: int | None = None,
        model_providers: list[str] | None = None,
        search_term: str | None = None,
        section_id: str | None = None,
        sort_direction: m.SortDirection | None = None,
        sort_key: m.ThreadSortKey | None = None,
        source_kinds: list[m.ThreadSourceKind] | None = None,
        use_state_db_only: bool | None = None,
    ) -> m.ThreadListResponse:
        """List stored conversations, a page at a time."""
        return shaped(await super().thread_list(**to_options(locals())))

    async def thread_resume(  # type: ignore[override]
        self,
        thread_id: str,
        *,
        approval_mode: ApprovalMode | None = None,
        base_instructions: str | None = None,
        config: dict[str, Any] | None = None,
        cwd: str | None = None,
        developer_instructions: str | None = None,
        include_turns: bool | None = None,
        model: str | None = None,
        model_provider: str | None = None,
        personality: m.Personality | None = None,
        sandbox: Sandbox | None = None,
        service_tier: str | None = None,
    ) -> AsyncThread:
        """Resume a stored conversation."""
        thread = await super().thread_resume(thread_id, **to_options(locals()))
        return AsyncThread(self._client, thread.id)

    async def thread_fork(  # type: ignore[override]
        self,
        thread_id: str,
        *,
        approval_mode: ApprovalMode | None = None,
        base_instructions: str | None = None,
        config: dict[str, Any] | None = None,
        cwd: str | None = None,
        developer_instructions: str | None = None,
        ephemeral: bool | None = None,
        include_turns: bool | None = None,
        model: str | None = None,
        model_provider: str | None = None,
        sandbox: Sandbox | None = None,
        service_tier: str | None = None,
        thread_source: ThreadSource | None = None,
    ) -> AsyncThread:
        """Begin a new conversation with the history of another."""
        thread = await super().thread_fork(thread_id, **to_options(locals()))
        return AsyncThread(self._client, thread.id)

    async def thread_archive(self, thread_id: str) -> m.ThreadArchiveResponse:  # type: ignore[override]
        """Archive a stored conversation."""
        operation = operations.request("thread/archive", {"thread_id": thread_id})
        response: m.ThreadArchiveResponse = await self._perform(operation)
        return response

    async def thread_unarchive(self, thread_id: str) -> AsyncThread:
        """Bring an archived conversation back."""
        thread = await super().thread_unarchive(thread_id)
        return AsyncThread(self._client, thread.id)

    async def models(self, *, include_hidden: bool = False) -> m.ModelListResponse:
        """List the models on offer."""
        return shaped(await super().models(include_hidden=include_hidden))

    async def account(self, *, refresh_token: bool = False) -> m.GetAccountResponse:
        """Read who is logged in, and how."""
        return shaped(await super().account(refresh_token=refresh_token))


class AsyncThread(api.AsyncThread):
    """A conversation, by its id. A turn that is started while another runs joins that one."""

    async def run(  # type: ignore[override]
        self,
        input: RunInput,
        *,
        approval_mode: ApprovalMode | None = None,
        cwd: str | None = None,
        effort: ReasoningEffort | None = None,
        model: str | None = None,
        output_schema: dict[str, Any] | None = None,
        personality: m.Personality | None = None,
        sandbox: Sandbox | None = None,
        service_tier: str | None = None,
        source: str | None = None,
        summary: m.ReasoningSummary | None = None,
        turn_service_tier: str | None = None,
    ) -> TurnResult:
        """Run one turn to its end. Raises TurnFailedError, which is a RuntimeError."""
        handle = await self._start(input, "final", to_options(locals()))
        return await handle.run()

    async def turn(  # type: ignore[override]
        self,
        input: RunInput,
        *,
        approval_mode: ApprovalMode | None = None,
        cwd: str | None = None,
        effort: ReasoningEffort | None = None,
        model: str | None = None,
        output_schema: dict[str, Any] | None = None,
        personality: m.Personality | None = None,
        sandbox: Sandbox | None = None,
        service_tier: str | None = None,
        source: str | None = None,
        summary: m.ReasoningSummary | None = None,
        turn_service_tier: str | None = None,
    ) -> AsyncTurnHandle:
        """Start a turn, or join the one that this client runs on the thread: the input is added to it.

        The options then take effect with the next turn of the thread, as they do in the runtime; those of one turn
        alone (output_schema, source, turn_service_tier) have none. Raises ThreadBusyError where the running turn cannot
        be joined: by an ExternalMessage.
        """
        return await self._start(input, "full", to_options(locals()))

    async def _start(self, input: RunInput, interest: Interest, options: Any) -> AsyncTurnHandle:
        for may_try_again in joining():
            try:
                handle = await self._turn(input, interest, options, None, "error", True)
            except ThreadBusyError:
                if isinstance(input, ExternalMessage):
                    raise
                settings = settings_of_thread(operations.check_options("TurnStartOptions", options))
                if settings:
                    fields = {"thread_id": self.id, **settings}
                    await self._client.perform(operations.request("thread/settings/update", fields))
                try:
                    handle = await self._turn(input, interest, options, None, "steer", True)
                except InvalidRequestError:
                    # It ended meanwhile.
                    if may_try_again:
                        continue
                    raise
            return AsyncTurnHandle(self._client, self.id, handle.id, handle._mailbox, True)
        raise AssertionError("the last attempt returns or raises")

    async def read(self, *, include_turns: bool = False) -> m.ThreadReadResponse:
        """Read what is stored of this conversation."""
        return shaped(await super().read(include_turns=include_turns))

    async def set_name(self, name: str) -> m.ThreadSetNameResponse:  # type: ignore[override]
        """Give the conversation a name."""
        params = {"thread_id": self.id, "name": name}
        response: m.ThreadSetNameResponse = await self._client.perform(operations.request("thread/name/set", params))
        return response


class AsyncTurnHandle(api.AsyncTurnHandle):
    """A turn under way. It goes on when it is no longer waited for or read, until it is interrupted."""

    async def stream(self) -> AsyncIterator[Notification]:  # type: ignore[override]
        """Yield the notifications of this turn, and only of this one, to its end. Closing it leaves the turn alone."""
        while (notification := await self._mailbox.get()) is not None:
            yield of_notification(notification)

    async def run(self) -> TurnResult:  # type: ignore[override]
        """Read the turn to its end. Raises TurnFailedError, which is a RuntimeError."""
        result = await super().run()
        shaped(result.items)
        return result

    async def steer(self, input: Input) -> m.TurnSteerResponse:  # type: ignore[override]
        """Add input to the running turn. Raises InvalidRequestError when it is over."""
        return await self._client.perform(operations.turn_steer(self.thread_id, self.id, input))

    async def interrupt(self) -> m.TurnInterruptResponse:  # type: ignore[override]
        """Stop the turn; its stream then ends with status `interrupted`. One that is over is left alone."""
        from codex_app_server.generated.models import TurnInterruptResponse

        await super().interrupt()
        return TurnInterruptResponse()
