"""Answers to the app-server's own requests, such as those for an approval.

None stays unanswered, and none ends its reader: without a handler, or when the handler fails, the request is declined
in the form that its method expects; a method that is not known gets JSON-RPC error -32601.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import msgspec

from ..errors import InvalidInputError
from ..generated.routing import SERVER_REQUESTS
from .deliveries import ServerRequest

METHOD_NOT_FOUND = -32601

_DECLINED: dict[str, Any] = {
    "item/commandExecution/requestApproval": {"decision": "decline"},
    "item/fileChange/requestApproval": {"decision": "decline"},
    "item/permissions/requestApproval": {"permissions": {}},
    "item/tool/requestUserInput": {"answers": {}},
    "mcpServer/elicitation/request": {"action": "decline"},
    "item/tool/call": {"contentItems": [], "success": False},
    "applyPatchApproval": {"decision": "denied"},
    "execCommandApproval": {"decision": "denied"},
}


def check_handler(handler: Any, *, for_asyncio: bool) -> None:
    """Raises InvalidInputError for an approval handler that cannot be called, or not without awaiting it."""
    if handler is None:
        return
    if not callable(handler):
        raise InvalidInputError(
            f"approval_handler is {handler!r}; expected a function of the method and the params of a request"
        )
    if inspect.iscoroutinefunction(handler) and not for_asyncio:
        raise InvalidInputError(
            "approval_handler is a coroutine function, which a synchronous client cannot await; give a function, or "
            "use AsyncCodex"
        )


def declined(method: str) -> dict[str, Any]:
    """The `result` or `error` member of an answer that refuses."""
    result = _DECLINED.get(method)
    if result is not None:
        return {"result": result}
    return {"error": {"code": METHOD_NOT_FOUND, "message": f"this client does not answer {method}"}}


def refusal(request: ServerRequest) -> bytes:
    """The line that declines a request."""
    return msgspec.json.encode({"id": request.id, **declined(request.method)})


def answer(request: ServerRequest, result: Any) -> bytes:
    """The line that answers a request with `result`: a model of `generated.models`, or a dict in the wire's own names.

    Raises TypeError or ValueError for what cannot be sent.
    """
    if isinstance(result, dict):
        return msgspec.json.encode({"id": request.id, "result": result})
    dump = getattr(result, "model_dump_json", None)
    if dump is None:
        raise TypeError(f"the approval handler returned {type(result).__name__}; expected a response type or a dict")
    encoded: str = dump(by_alias=True, exclude_unset=True)
    return b'{"id":%s,"result":%s}' % (msgspec.json.encode(request.id), encoded.encode())


class _RequestLine(msgspec.Struct):
    params: msgspec.Raw = msgspec.Raw(b"{}")


_decode_request = msgspec.json.Decoder(_RequestLine).decode


def params_of(request: ServerRequest) -> Any:
    """The parameters of a request in their generated type; a plain dict without one, or if they do not fit it.

    Raises ValueError for what is no object.
    """
    params = bytes(_decode_request(request.line).params)
    entry = SERVER_REQUESTS.get(request.method)
    if entry is not None:
        from ..generated import models

        with contextlib.suppress(ValueError):
            return models.adapter(entry.params).validate_json(params)
    return msgspec.json.decode(params, type=dict[str, Any])
