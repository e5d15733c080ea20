"""What is answered to the app-server's own requests when nobody has a better answer: no.

A question never stays open and never kills its reader: without a handler, or when the handler fails, the request is
declined in the words that its method expects; a method that is not known gets JSON-RPC error -32601.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from ._deliveries import Ask
from .generated.routing import SERVER_REQUESTS

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


def declined(method: str) -> dict[str, Any]:
    """The `result` or `error` member of an answer that says no."""
    result = _DECLINED.get(method)
    if result is not None:
        return {"result": result}
    return {"error": {"code": METHOD_NOT_FOUND, "message": f"this client does not answer {method}"}}


def refusal(ask: Ask) -> bytes:
    """The line that declines a request."""
    return msgspec.json.encode({"id": ask.id, **declined(ask.method)})


def answer(ask: Ask, result: Any) -> bytes:
    """The line that answers a request with `result`: a model of `generated.models`, or a dict in the wire's own names.

    Raises TypeError or ValueError for what cannot be sent.
    """
    if isinstance(result, dict):
        return msgspec.json.encode({"id": ask.id, "result": result})
    dump = getattr(result, "model_dump_json", None)
    if dump is None:
        raise TypeError(f"the approval handler returned {type(result).__name__}; expected a response type or a dict")
    encoded: str = dump(by_alias=True, exclude_unset=True)
    return b'{"id":%s,"result":%s}' % (msgspec.json.encode(ask.id), encoded.encode())


class _Ask(msgspec.Struct):
    params: msgspec.Raw = msgspec.Raw(b"{}")


_decode_ask = msgspec.json.Decoder(_Ask).decode


def params_of(ask: Ask) -> Any:
    """The parameters of a request in their generated type; a plain dict without one, or if they do not fit it.

    Raises ValueError for what is no object.
    """
    params = bytes(_decode_ask(ask.line).params)
    entry = SERVER_REQUESTS.get(ask.method)
    if entry is not None:
        from .generated import models

        with contextlib.suppress(ValueError):
            return models.adapter(entry.params).validate_json(params)
    return msgspec.json.decode(params, type=dict[str, Any])
