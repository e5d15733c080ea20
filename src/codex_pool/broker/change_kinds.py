"""Requests that change what every app-server has in memory, and the signs that one has taken effect. Pure.

What codex does, measured on 0.163.0: an app-server reads auth.json when it starts and after its own log-ins, and no
request makes it read the file again for another account. `account/read` names no account where the model provider needs
none, and cannot tell two API keys apart; `account/updated`, which follows every log-in and log-out, names the mode in
both cases. Plugins, marketplaces and the configuration are read from their files for every new thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from ..protocol import jsonrpc
from .client_line import ClientMessage, decode_message

LOGIN, LOGOUT, CANCEL_LOGIN = "account/login/start", "account/logout", "account/login/cancel"
LOGIN_COMPLETED, UPDATED = "account/login/completed", "account/updated"
TOKENS = "tokens"
MCP_LOGIN = "mcpServer/oauth/login"
READ_ACCOUNT = b'{"method":"account/read","id":0,"params":{"refreshToken":false}}'
RELOAD_MCP = b'{"method":"config/mcpServer/reload","id":0}'

# Of what is applied to all, the requests that no file keeps for app-servers that start later.
KEPT = frozenset({"environment/add", "experimentalFeature/enablement/set", "skills/extraRoots/set"})

_AT_ONCE = frozenset({"apiKey", "amazonBedrock", "chatgptAuthTokens"})
_MANAGED = frozenset({"apiKey", "chatgpt"})
_REFUSALS = frozenset({-32600, -32601, -32602})

How = Literal["ask", "each", "forget", "renew", "reload"]


class Plan(NamedTuple):
    """Treatment of a request.

    `how`: `ask` one app-server; apply it to `each`; `forget` external tokens, which needs new app-servers; apply it to
    one and `renew` the others, or have them `reload`. `account`: no turn may begin with the former account.
    `expect` is what every app-server must report then: logged `in` or `out`. `key` is that of a replayed request.
    """

    how: How
    account: bool = False
    expect: Literal["", "in", "out"] = ""
    key: str = ""


def plan_of(method: str, scope: str, message: ClientMessage, *, external: bool) -> Plan:
    """The plan for a request of one of the scopes all, account, renewing and reloading.

    `external`: the pool runs on external tokens, and logging out of them would delete an auth.json that has
    nothing to do with them.
    """
    if method == LOGIN:
        kind = _member(message, "type")
        if kind not in _AT_ONCE:
            return Plan("ask")
        return Plan("each", account=True, expect="in", key=TOKENS if kind == "chatgptAuthTokens" else "")
    if method == LOGOUT:
        return Plan("forget", account=True) if external else Plan("each", account=True, expect="out")
    if scope == "all":
        return Plan("each", key=_key(message))
    if scope == "renewing":
        return Plan("renew", account=True)
    if scope == "reloading" and method != MCP_LOGIN:
        return Plan("reload")
    return Plan("ask")


def key_of(line: bytes) -> str:
    """The key under which a request is kept."""
    message = decode_message(line)
    return TOKENS if message.method == LOGIN else _key(message)


def _key(message: ClientMessage) -> str:
    """A later request with the same key takes the place of this one; "" when nothing is kept."""
    method = message.method
    if method not in KEPT:
        return ""
    names: Any = ""
    if method == "environment/add":
        names = _member(message, "environmentId")
    elif method == "experimentalFeature/enablement/set":
        enablement = _member(message, "enablement")
        names = sorted(enablement) if isinstance(enablement, dict) else ""
    return f"{method} {jsonrpc.encode(names).decode()}"


def for_others(line: bytes) -> bytes:
    """The request for an app-server that is not the first: the file that it writes has changed by then."""
    request = jsonrpc.decode_request(line)
    if request.params is None or "expectedVersion" not in request.params:
        return line
    del request.params["expectedVersion"]
    return request.encode(jsonrpc.others_of(line))


def refuses(response: bytes) -> bool:
    """True when an error means that nothing was done."""
    error = _decode(response).get("error")
    return isinstance(error, dict) and error.get("code") in _REFUSALS


def differs(expect: str, read: bytes, notifications: Iterable[bytes]) -> str:
    """Return why an app-server is not logged in or out as expected; "" when it is.

    `read` is its answer to account/read, `notifications` are those that followed the change.
    """
    for line in notifications:
        message = _decode(line)
        params = _object(message, "params")
        if message.get("method") == LOGIN_COMPLETED and params.get("success") is False:
            return str(params.get("error"))
        if message.get("method") == UPDATED and (params.get("authMode") is not None) != (expect == "in"):
            return f"account/updated has authMode {params.get('authMode')!r}"
    answer = _decode(read)
    if "error" in answer:
        return f"account/read: {_object(answer, 'error').get('message')}"
    result = _object(answer, "result")
    kind = _object(result, "account").get("type")
    if result.get("requiresOpenaiAuth") is False:
        return ""
    logged_in = kind is not None if expect == "in" else kind in _MANAGED
    return "" if logged_in == (expect == "in") else f"account/read has account type {kind!r}"


def updated_line(read: bytes) -> bytes:
    """account/updated, made of an answer to account/read."""
    account = _object(_object(_decode(read), "result"), "account")
    mode = {"apiKey": "apikey", "chatgpt": "chatgpt"}.get(str(account.get("type")))
    return jsonrpc.encode({"method": UPDATED, "params": {"authMode": mode, "planType": account.get("planType")}})


def login_failed_line(login_id: str, error: str) -> bytes:
    """account/login/completed for a log-in that can no longer be completed."""
    return jsonrpc.encode(
        {"method": LOGIN_COMPLETED, "params": {"loginId": login_id, "success": False, "error": error}}
    )


def login_not_found_line(request_id: str) -> bytes:
    """Answer to account/login/cancel of a log-in that is not there, or another principal's."""
    return b'{"id":%s,"result":{"status":"notFound"}}' % request_id.encode()


def login_id_in(message: ClientMessage) -> str:
    """The log-in that account/login/cancel names."""
    value = _member(message, "loginId")
    return value if isinstance(value, str) else ""


def tokens_result(line: bytes) -> dict[str, Any]:
    """The external tokens of a log-in, as the answer to account/chatgptAuthTokens/refresh."""
    params = _params(line)
    return {name: params.get(name) for name in ("accessToken", "chatgptAccountId", "chatgptPlanType")}


def tokens_line(response: bytes) -> bytes | None:
    """The log-in with the tokens that a client has answered with; None if it has not."""
    result = _decode(response).get("result")
    if not isinstance(result, dict) or not isinstance(result.get("accessToken"), str):
        return None
    names = ("accessToken", "chatgptAccountId", "chatgptPlanType")
    params = {"type": "chatgptAuthTokens", **{name: result[name] for name in names if name in result}}
    return jsonrpc.encode({"method": LOGIN, "id": 0, "params": params})


def _member(message: ClientMessage, name: str) -> Any:
    """A parameter of a request, decoded; None if it has none of this name, or one that cannot be read."""
    raw = (message.params or {}).get(name)
    try:
        return msgspec.json.decode(raw) if raw is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _params(line: bytes) -> dict[str, Any]:
    return _object(_decode(line), "params")


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _decode(line: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
