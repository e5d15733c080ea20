"""The names of the published SDK `openai-codex` 0.163.0, on this SDK: for programs written for that one.

    from codex_app_server.compat import openai_codex                # import openai_codex
    from codex_app_server.compat.openai_codex import Codex          # from openai_codex import Codex
    from codex_app_server.compat.openai_codex.types import Turn     # from openai_codex.types import Turn

What behaves differently, and why, is in docs/compatibility.md. A name that is left out raises ImportError, which names
what to use instead. Names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codex_app_server.generated.routing import RUNTIME_VERSION as __version__

from ._names import lazy_module

if TYPE_CHECKING:
    from codex_app_server.errors import (
        InternalRpcError,
        InvalidParamsError,
        InvalidRequestError,
        JsonRpcError,
        MethodNotFoundError,
        ParseError,
        RetryLimitExceededError,
        ServerBusyError,
        TransportClosedError,
    )
    from codex_app_server.inputs import (
        ExternalMessage,
        ImageInput,
        Input,
        InputItem,
        LocalImageInput,
        MentionInput,
        RunInput,
        SkillInput,
        TextInput,
    )
    from codex_app_server.login import (
        AsyncChatgptLoginHandle,
        AsyncDeviceCodeLoginHandle,
        ChatgptLoginHandle,
        DeviceCodeLoginHandle,
    )
    from codex_app_server.results import TurnResult

    from ._options import ApprovalMode, Sandbox
    from .async_api import AsyncCodex, AsyncThread, AsyncTurnHandle
    from .client import CodexConfig
    from .errors import CodexError, CodexRpcError, is_retryable_error
    from .retry import retry_on_overload
    from .sync_api import Codex, Thread, TurnHandle

__all__ = [
    "ApprovalMode",
    "AsyncChatgptLoginHandle",
    "AsyncCodex",
    "AsyncDeviceCodeLoginHandle",
    "AsyncThread",
    "AsyncTurnHandle",
    "ChatgptLoginHandle",
    "Codex",
    "CodexConfig",
    "CodexError",
    "CodexRpcError",
    "DeviceCodeLoginHandle",
    "ExternalMessage",
    "ImageInput",
    "Input",
    "InputItem",
    "InternalRpcError",
    "InvalidParamsError",
    "InvalidRequestError",
    "JsonRpcError",
    "LocalImageInput",
    "MentionInput",
    "MethodNotFoundError",
    "ParseError",
    "RetryLimitExceededError",
    "RunInput",
    "Sandbox",
    "ServerBusyError",
    "SkillInput",
    "TextInput",
    "Thread",
    "TransportClosedError",
    "TurnHandle",
    "TurnResult",
    "__version__",
    "is_retryable_error",
    "retry_on_overload",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_module(__name__)
