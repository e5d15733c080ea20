"""What is answered to the app-server's own requests when nobody has a better answer: no.

A question never stays open and never kills its reader: without a handler, or when the handler fails, the request is
declined in the words that its method expects; a method that is not known gets JSON-RPC error -32601.
"""

from __future__ import annotations

from typing import Any

import msgspec

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


class _Ask(msgspec.Struct):
    params: dict[str, Any] = {}


_decode_ask = msgspec.json.Decoder(_Ask).decode


def params_of(line: bytes) -> dict[str, Any]:
    """The parameters of a request line as plain JSON values."""
    return _decode_ask(line).params
