"""Notifications and the answer of the handshake, as `openai_codex.models` has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codex_app_server.notifications import UnknownNotification

from ._models import lazy_models
from ._received import InitializeResponse, Notification, ServerInfo

JsonScalar = str | int | float | bool | None
JsonValue = Any
JsonObject = dict[str, Any]

__all__ = [
    "InitializeResponse",
    "JsonObject",
    "JsonScalar",
    "JsonValue",
    "Notification",
    "ServerInfo",
    "UnknownNotification",
]


if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_models(
        __name__,
        only=frozenset(
            {
                "AccountLoginCompletedNotification",
                "AccountRateLimitsUpdatedNotification",
                "AccountUpdatedNotification",
                "AgentMessageDeltaNotification",
                "AppListUpdatedNotification",
                "CommandExecutionOutputDeltaNotification",
                "ConfigWarningNotification",
                "ContextCompactedNotification",
                "DeprecationNoticeNotification",
                "ErrorNotification",
                "FileChangeOutputDeltaNotification",
                "ItemCompletedNotification",
                "ItemStartedNotification",
                "McpServerOauthLoginCompletedNotification",
                "McpToolCallProgressNotification",
                "PlanDeltaNotification",
                "RawResponseItemCompletedNotification",
                "ReasoningSummaryPartAddedNotification",
                "ReasoningSummaryTextDeltaNotification",
                "ReasoningTextDeltaNotification",
                "TerminalInteractionNotification",
                "ThreadGoalClearedNotification",
                "ThreadGoalUpdatedNotification",
                "ThreadNameUpdatedNotification",
                "ThreadStartedNotification",
                "ThreadTokenUsageUpdatedNotification",
                "TurnCompletedNotification",
                "TurnDiffUpdatedNotification",
                "TurnPlanUpdatedNotification",
                "TurnStartedNotification",
                "WindowsWorldWritableWarningNotification",
            }
        ),
    )
