"""What is answered to the app-server's own requests when nobody has a better answer: no.

A question never stays open and never kills its reader: without a handler, or when the handler fails, the request is
declined in the words that its method expects; a method that is not known gets JSON-RPC error -32601.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ._message_router import Ask

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
    """The line that answers a request with `result`. Raises TypeError or ValueError for what cannot be sent."""
    if not isinstance(result, dict):
        raise TypeError(f"the approval handler returned {type(result).__name__}; expected a dict")
    return msgspec.json.encode({"id": ask.id, "result": result})


class _Ask(msgspec.Struct):
    params: dict[str, Any] = {}


_decode_ask = msgspec.json.Decoder(_Ask).decode


def params_of(line: bytes) -> dict[str, Any]:
    """The parameters of a request line as plain JSON values."""
    return _decode_ask(line).params
