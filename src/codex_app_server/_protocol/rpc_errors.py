"""The exception for an error object of JSON-RPC, by its code and what its data names. Pure."""

from __future__ import annotations

from typing import Any

from ..errors import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    KEY_LIMIT,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    SERVER_OVERLOADED,
    THREAD_LOST,
    TURN_LOST,
    AppServerRpcError,
    InternalRpcError,
    InvalidParamsError,
    InvalidRequestError,
    JsonRpcError,
    KeyLimitError,
    MethodNotFoundError,
    ParseError,
    RetryLimitExceededError,
    ServerBusyError,
    ThreadLostError,
    TurnLostError,
)

_BY_CODE: dict[int, type[JsonRpcError]] = {
    PARSE_ERROR: ParseError,
    INVALID_REQUEST: InvalidRequestError,
    METHOD_NOT_FOUND: MethodNotFoundError,
    INVALID_PARAMS: InvalidParamsError,
    INTERNAL_ERROR: InternalRpcError,
    SERVER_OVERLOADED: ServerBusyError,
    THREAD_LOST: ThreadLostError,
    TURN_LOST: TurnLostError,
    KEY_LIMIT: KeyLimitError,
}


def map_jsonrpc_error(code: int, message: str, data: Any = None) -> JsonRpcError:
    """The exception for a JSON-RPC error object.

    The runtime signals overload as code -32001 with `data: null`, or, on other codes, as a `codexErrorInfo` of
    `serverOverloaded` somewhere in `data`.
    """
    if names_overload(data) and code not in _BY_CODE:
        code_class: type[JsonRpcError] = ServerBusyError
    else:
        code_class = _BY_CODE.get(code, AppServerRpcError if -32099 <= code <= -32000 else JsonRpcError)
    if code_class in (ServerBusyError, AppServerRpcError) and _says_retry_limit(message):
        code_class = RetryLimitExceededError
    return code_class(code, message, data)


def _says_retry_limit(message: str) -> bool:
    lowered = message.lower()
    return "retry limit" in lowered or "too many failed attempts" in lowered


def names_overload(data: Any) -> bool:
    """Return True if the data of an error names an overload as a codexErrorInfo, at any depth."""
    if isinstance(data, str):
        return data.replace("_", "").lower() == "serveroverloaded"
    if isinstance(data, dict):
        return any(names_overload(value) for value in data.values())
    if isinstance(data, list):
        return any(names_overload(value) for value in data)
    return False
