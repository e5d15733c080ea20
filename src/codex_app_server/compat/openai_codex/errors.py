"""Exceptions, as `openai_codex.errors` has them: those of this SDK."""

from __future__ import annotations

from codex_app_server._protocol.rpc_errors import map_jsonrpc_error, names_overload
from codex_app_server.errors import (
    AppServerError,
    AppServerRpcError,
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

__all__ = [
    "CodexError",
    "CodexRpcError",
    "InternalRpcError",
    "InvalidParamsError",
    "InvalidRequestError",
    "JsonRpcError",
    "MethodNotFoundError",
    "ParseError",
    "RetryLimitExceededError",
    "ServerBusyError",
    "TransportClosedError",
    "is_retryable_error",
    "map_jsonrpc_error",
]

CodexError = AppServerError
CodexRpcError = AppServerRpcError


def is_retryable_error(exc: BaseException) -> bool:
    """Return True if `exc` reports an overload, in the published SDK's sense.

    That is, also RetryLimitExceededError, and any JSON-RPC error whose data names an overload.
    """
    if isinstance(exc, ServerBusyError):
        return True
    return isinstance(exc, JsonRpcError) and names_overload(exc.data)
