"""codex_app_server: a typed SDK for `codex app-server`, sync and async.

    from codex_app_server import Codex

    with Codex() as codex:
        thread = codex.thread_start(model="gpt-5")
        print(thread.run("Say hello in one sentence.").final_response)

Names are loaded when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .generated.routing import RUNTIME_VERSION as __version__

if TYPE_CHECKING:
    from ._async.api import AsyncCodex, AsyncThread, AsyncTurnHandle, AsyncTurnStream, AsyncTurnText, astream_text
    from ._async.client import AsyncAppServerClient
    from ._sync.api import Codex, Thread, TurnHandle, TurnStream, TurnText, stream_text, wait_for_turn_completed
    from ._sync.client import AppServerClient
    from .config import AppServerConfig
    from .errors import (
        AppServerError,
        AppServerRpcError,
        BinaryNotFoundError,
        HomeError,
        InternalRpcError,
        InvalidInputError,
        InvalidParamsError,
        InvalidRequestError,
        JsonRpcError,
        KeyLimitError,
        LineTooLongError,
        MethodNotFoundError,
        OutputTypeError,
        ParseError,
        RequestTimeoutError,
        RetryLimitExceededError,
        ServerBusyError,
        StartError,
        ThreadBusyError,
        ThreadListError,
        ThreadLostError,
        TransportClosedError,
        TurnEndedError,
        TurnFailedError,
        TurnLostError,
        UnknownTurnError,
        WrongEventLoopError,
        WrongProcessError,
        is_retryable_error,
    )
    from .inputs import (
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
    from .login import AsyncChatgptLoginHandle, AsyncDeviceCodeLoginHandle, ChatgptLoginHandle, DeviceCodeLoginHandle
    from .notifications import Notification, UnknownNotification
    from .presets import ApprovalMode, Sandbox
    from .results import TurnResult
    from .retry import aretry_on_overload, retry_on_overload
    from .tracing import TracingTransport
    from .transport import StdioTransport, Transport

_HOMES = {
    "_sync.api": ("Codex", "Thread", "TurnHandle", "TurnStream", "TurnText", "stream_text", "wait_for_turn_completed"),
    "_async.api": ("AsyncCodex", "AsyncThread", "AsyncTurnHandle", "AsyncTurnStream", "AsyncTurnText", "astream_text"),
    "_async.client": ("AsyncAppServerClient",),
    "_sync.client": ("AppServerClient",),
    "config": ("AppServerConfig",),
    "errors": (
        "AppServerError",
        "AppServerRpcError",
        "BinaryNotFoundError",
        "HomeError",
        "InternalRpcError",
        "InvalidInputError",
        "InvalidParamsError",
        "InvalidRequestError",
        "JsonRpcError",
        "KeyLimitError",
        "LineTooLongError",
        "MethodNotFoundError",
        "OutputTypeError",
        "ParseError",
        "RequestTimeoutError",
        "RetryLimitExceededError",
        "ServerBusyError",
        "StartError",
        "ThreadBusyError",
        "ThreadListError",
        "ThreadLostError",
        "TransportClosedError",
        "TurnEndedError",
        "TurnFailedError",
        "TurnLostError",
        "UnknownTurnError",
        "WrongEventLoopError",
        "WrongProcessError",
        "is_retryable_error",
    ),
    "inputs": (
        "ExternalMessage",
        "ImageInput",
        "Input",
        "InputItem",
        "LocalImageInput",
        "MentionInput",
        "RunInput",
        "SkillInput",
        "TextInput",
    ),
    "login": (
        "AsyncChatgptLoginHandle",
        "AsyncDeviceCodeLoginHandle",
        "ChatgptLoginHandle",
        "DeviceCodeLoginHandle",
    ),
    "presets": ("ApprovalMode", "Sandbox"),
    "notifications": ("Notification", "UnknownNotification"),
    "results": ("TurnResult",),
    "retry": ("aretry_on_overload", "retry_on_overload"),
    "tracing": ("TracingTransport",),
    "transport": ("StdioTransport", "Transport"),
}
_MOVED = {
    "codex_app_server.api": "codex_app_server._sync.api",
    "codex_app_server.async_api": "codex_app_server._async.api",
    "codex_app_server.async_client": "codex_app_server._async.client",
    "codex_app_server.client": "codex_app_server._sync.client",
    "codex_app_server.envelope": "codex_app_server._protocol.envelope",
    "codex_app_server.lines": "codex_app_server._protocol.framing",
}
# With the dot: codex_app_server.client is not the begin of every name that starts so.
_MOVED_NAMES = tuple(f"{name}." for name in _MOVED)


class _MovedModules:
    """Finder of modules by their former names, which stay importable for one release more."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        if not f"{name}.".startswith(_MOVED_NAMES):
            return None
        from ._moved import spec_of

        return spec_of(name, _MOVED)


sys.meta_path.insert(0, _MovedModules)  # type: ignore[arg-type]

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AppServerClient",
    "AppServerConfig",
    "AppServerError",
    "AppServerRpcError",
    "ApprovalMode",
    "AsyncAppServerClient",
    "AsyncChatgptLoginHandle",
    "AsyncCodex",
    "AsyncDeviceCodeLoginHandle",
    "AsyncThread",
    "AsyncTurnHandle",
    "AsyncTurnStream",
    "AsyncTurnText",
    "BinaryNotFoundError",
    "ChatgptLoginHandle",
    "Codex",
    "DeviceCodeLoginHandle",
    "ExternalMessage",
    "HomeError",
    "ImageInput",
    "Input",
    "InputItem",
    "InternalRpcError",
    "InvalidInputError",
    "InvalidParamsError",
    "InvalidRequestError",
    "JsonRpcError",
    "KeyLimitError",
    "LineTooLongError",
    "LocalImageInput",
    "MentionInput",
    "MethodNotFoundError",
    "Notification",
    "OutputTypeError",
    "ParseError",
    "RequestTimeoutError",
    "RetryLimitExceededError",
    "RunInput",
    "Sandbox",
    "ServerBusyError",
    "SkillInput",
    "StartError",
    "StdioTransport",
    "TextInput",
    "Thread",
    "ThreadBusyError",
    "ThreadListError",
    "ThreadLostError",
    "TracingTransport",
    "Transport",
    "TransportClosedError",
    "TurnEndedError",
    "TurnFailedError",
    "TurnHandle",
    "TurnLostError",
    "TurnResult",
    "TurnStream",
    "TurnText",
    "UnknownNotification",
    "UnknownTurnError",
    "WrongEventLoopError",
    "WrongProcessError",
    "__version__",
    "aretry_on_overload",
    "astream_text",
    "is_retryable_error",
    "retry_on_overload",
    "stream_text",
    "wait_for_turn_completed",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
