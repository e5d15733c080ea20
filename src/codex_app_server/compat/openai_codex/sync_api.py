"""Codex, Thread and TurnHandle with the signatures of the published SDK, over those of this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from codex_app_server import api, operations
from codex_app_server.client import ApprovalHandler
from codex_app_server.compat.openai_codex._options import ApprovalMode, Sandbox, joining, settings_of_thread, to_options
from codex_app_server.compat.openai_codex._received import (
    InitializeResponse,
    Notification,
    of_metadata,
    of_notification,
)
from codex_app_server.compat.openai_codex._shapes import ReasoningEffort, ThreadSource, shaped
from codex_app_server.compat.openai_codex.client import CodexConfig
from codex_app_server.errors import InvalidRequestError, ThreadBusyError
from codex_app_server.inputs import ExternalMessage, Input, RunInput
from codex_app_server.results import TurnResult
from codex_app_server.transport import Interest, Transport

if TYPE_CHECKING:
    from codex_app_server.generated import models as m


class Codex(api.Codex):
    """An app-server, as the published SDK's `Codex`. `transport` replaces the child process, e.g. by a pool.

    Without an `approval_handler` what the app-server asks is declined; the published SDK accepts it.
    """

    def __init__(
        self,
        config: CodexConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: ApprovalHandler | None = None,
    ) -> None:
        super().__init__(config or CodexConfig(), transport=transport, approval_handler=approval_handler)

    def __enter__(self) -> Codex:
        return self

    @property
    def metadata(self) -> InitializeResponse:  # type: ignore[override]
        """The answer of the handshake, with `serverInfo`."""
        return of_metadata(super().metadata)

    def thread_start(  # type: ignore[override]
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
    ) -> Thread:
        """Begin a conversation; by default a reviewing model decides on what the sandbox does not allow."""
        return Thread(self._client, super().thread_start(**to_options(locals())).id)

    def thread_list(  # type: ignore[override]
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
        return shaped(super().thread_list(**to_options(locals())))

    def thread_resume(  # type: ignore[override]
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
    ) -> Thread:
        """Resume a stored conversation."""
        return Thread(self._client, super().thread_resume(thread_id, **to_options(locals())).id)

    def thread_fork(  # type: ignore[override]
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
    ) -> Thread:
        """Begin a new conversation with the history of another."""
        return Thread(self._client, super().thread_fork(thread_id, **to_options(locals())).id)

    def thread_archive(self, thread_id: str) -> m.ThreadArchiveResponse:  # type: ignore[override]
        """Archive a stored conversation."""
        response: m.ThreadArchiveResponse = self._client.request("thread/archive", {"thread_id": thread_id})
        return response

    def thread_unarchive(self, thread_id: str) -> Thread:
        """Bring an archived conversation back."""
        return Thread(self._client, super().thread_unarchive(thread_id).id)

    def models(self, *, include_hidden: bool = False) -> m.ModelListResponse:
        """List the models on offer."""
        return shaped(super().models(include_hidden=include_hidden))

    def account(self, *, refresh_token: bool = False) -> m.GetAccountResponse:
        """Read who is logged in, and how."""
        return shaped(super().account(refresh_token=refresh_token))


class Thread(api.Thread):
    """A conversation, by its id. A turn that is started while another runs joins that one."""

    def run(  # type: ignore[override]
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
        return self._start(input, "final", to_options(locals())).run()

    def turn(  # type: ignore[override]
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
    ) -> TurnHandle:
        """Start a turn, or join the one that this client runs on the thread: the input is added to it.

        The options then take effect with the next turn of the thread, as they do in the runtime; those of one turn
        alone (output_schema, source, turn_service_tier) have none. Raises ThreadBusyError where the running turn cannot
        be joined: by an ExternalMessage.
        """
        return self._start(input, "full", to_options(locals()))

    def _start(self, input: RunInput, interest: Interest, options: Any) -> TurnHandle:
        for may_try_again in joining():
            try:
                handle = self._turn(input, interest, options, None, "error", True)
            except ThreadBusyError:
                if isinstance(input, ExternalMessage):
                    raise
                settings = settings_of_thread(operations.check_options("TurnStartOptions", options))
                if settings:
                    self._client.request("thread/settings/update", {"thread_id": self.id, **settings})
                try:
                    handle = self._turn(input, interest, options, None, "steer", True)
                except InvalidRequestError:
                    # It ended meanwhile.
                    if may_try_again:
                        continue
                    raise
            return TurnHandle(self._client, self.id, handle.id, handle._mailbox, True)
        raise AssertionError("the last attempt returns or raises")

    def read(self, *, include_turns: bool = False) -> m.ThreadReadResponse:
        """Read what is stored of this conversation."""
        return shaped(super().read(include_turns=include_turns))

    def set_name(self, name: str) -> m.ThreadSetNameResponse:  # type: ignore[override]
        """Give the conversation a name."""
        params = {"thread_id": self.id, "name": name}
        response: m.ThreadSetNameResponse = self._client.request("thread/name/set", params)
        return response


class TurnHandle(api.TurnHandle):
    """A turn under way. It goes on when nobody waits for it or reads it any more, until it is interrupted."""

    def stream(self) -> Iterator[Notification]:  # type: ignore[override]
        """Yield the notifications of this turn, and only of this one, to its end. Closing it leaves the turn alone."""
        while (notification := self._mailbox.get()) is not None:
            yield of_notification(notification)

    def run(self) -> TurnResult:  # type: ignore[override]
        """Read the turn to its end. Raises TurnFailedError, which is a RuntimeError."""
        result = super().run()
        shaped(result.items)
        return result

    def steer(self, input: Input) -> m.TurnSteerResponse:  # type: ignore[override]
        """Add input to the running turn. Raises InvalidRequestError when it is over."""
        return self._client.perform(operations.turn_steer(self.thread_id, self.id, input))

    def interrupt(self) -> m.TurnInterruptResponse:  # type: ignore[override]
        """Stop the turn; its stream then ends with status `interrupted`. One that is over is left alone."""
        from codex_app_server.generated.models import TurnInterruptResponse

        super().interrupt()
        return TurnInterruptResponse()
