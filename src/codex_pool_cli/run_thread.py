"""The thread that `codex-pool run` works on: a new one with the configured settings, or one that goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from codex_app_server.errors import (
    AppServerError,
    InternalRpcError,
    InvalidInputError,
    InvalidRequestError,
    JsonRpcError,
    TurnLostError,
)
from codex_pool import account_notice
from codex_pool.protocol.thread_defaults import TRIES, UNKNOWN, Configuration, configuration_in, unusable

from .line_client import Answer, LineClient

CONFIGURATION_LIMIT_S = 30.0
# Commands of a command line are headless: there is nobody to ask, as for `codex exec`.
APPROVAL_POLICY = "never"
_SANDBOX_OF_POLICY = {
    "readOnly": "read-only",
    "workspaceWrite": "workspace-write",
    "dangerFullAccess": "danger-full-access",
}


class Asked(msgspec.Struct, frozen=True):
    """Options that the user has given; None where there is none."""

    thread: str | None
    ephemeral: bool
    model: str | None
    sandbox: str | None
    cwd: str | None
    is_daemon: bool = False
    # Whether that may be on another machine, whose directories are its own.
    is_remote: bool = False
    # The command that logs in; None where no login is needed.
    login: str | None = account_notice.LOGIN


def open_thread(client: LineClient, asked: Asked) -> tuple[str, Callable[[], str | None]]:
    """Start or resume the thread; its id, and a function that returns once what is to be said of a missing login.

    Sandbox and approval policy are sent explicitly. Raises ConfigurationError, InvalidInputError, JsonRpcError.
    """
    account = None if asked.login is None else client.request("account/read", {}, timeout_s=account_notice.ASK_LIMIT_S)
    if asked.is_remote and asked.cwd is not None:
        _check_directory(client, asked.cwd)
    config = _read_config(client, asked.cwd)
    result = client.call(*_request(asked, UNKNOWN if config is None else configuration_in(config)))
    return _thread_of(result, asked), LoginNotice(account, config, asked.login)


class LoginNotice:
    """Text on a missing login, for the first call after the answer to account/read has come; else None.

    That of a ChatGPT account is looked up on the network: no turn waits for it.
    """

    def __init__(self, account: Answer | None, config: bytes | None, login: str | None) -> None:
        self._account = account
        self._config = config
        self._login = login

    def __call__(self) -> str | None:
        account, config = self._account, self._config
        if account is None or not account.is_there:
            return None
        self._account = None
        if config is None or self._login is None:
            return None
        try:
            found = msgspec.json.decode(account.value(), type=dict[str, Any])
            settings = msgspec.json.decode(config, type=dict[str, Any]).get("config") or {}
        except (AppServerError, msgspec.MsgspecError):
            return None
        return account_notice.notice_of(found, settings, self._login)


def _request(asked: Asked, configuration: Configuration) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {"approvalPolicy": APPROVAL_POLICY, "model": asked.model, "cwd": asked.cwd}
    if asked.sandbox is not None:
        options["sandbox"] = asked.sandbox
    elif asked.thread is None or not asked.is_daemon:
        # An app-server does not know with which sandbox it ran before; a daemon does.
        options.update(configuration.thread_options)
    given = {name: value for name, value in options.items() if value is not None}
    if asked.thread is None:
        return "thread/start", {**given, "ephemeral": asked.ephemeral}
    return "thread/resume", {**given, "threadId": asked.thread, "excludeTurns": True}


def _thread_of(result: bytes, asked: Asked) -> str:
    """The id of the thread in the answer. Raises InvalidInputError where it does not run with the sandbox asked for."""
    try:
        answer = msgspec.json.decode(result, type=dict[str, Any])
        thread_id: str = answer["thread"]["id"]
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise AppServerError(f"the answer to the start of a thread does not name one: {error!r}") from None
    policy = answer.get("sandbox")
    kind = policy.get("type") if isinstance(policy, dict) else None
    found = _SANDBOX_OF_POLICY.get(str(kind), kind)
    if asked.thread is not None and asked.sandbox is not None and found != asked.sandbox:
        raise InvalidInputError(
            f"thread {thread_id} is loaded with sandbox {found or 'unknown'}, which --sandbox {asked.sandbox} does not "
            "change; leave --sandbox out, or try again once nobody uses the thread"
        )
    return thread_id


def _read_config(client: LineClient, cwd: str | None) -> bytes | None:
    """The result of config/read; None for a client with a key, which may not know. Raises ConfigurationError.

    It is asked again where the worker that was asked has died: its successor answers.
    """
    for _ in range(TRIES - 1):
        with contextlib.suppress(TurnLostError):
            return _ask_for_config(client, cwd)
    return _ask_for_config(client, cwd)


def _ask_for_config(client: LineClient, cwd: str | None) -> bytes | None:
    params = {"includeLayers": False} if cwd is None else {"includeLayers": False, "cwd": cwd}
    try:
        return client.call("config/read", params, CONFIGURATION_LIMIT_S)
    except (InternalRpcError, InvalidRequestError) as error:
        problem: JsonRpcError = error
    except TurnLostError:
        raise
    except JsonRpcError:
        return None
    try:
        # Refused as well, with a message that names file, line and column.
        client.call("thread/start", {"ephemeral": True}, CONFIGURATION_LIMIT_S)
    except TurnLostError:
        raise
    except JsonRpcError as error:
        problem = error
    raise unusable(problem)


def _check_directory(client: LineClient, cwd: str) -> None:
    """Raises InvalidInputError for a directory that is not there on the machine of the app-server."""
    try:
        found = msgspec.json.decode(client.call("fs/getMetadata", {"path": cwd}))
    except InternalRpcError as error:
        why = error.message
    except JsonRpcError:
        # It cannot be checked here: the app-server reports what is wrong with the path.
        return
    else:
        if not isinstance(found, dict) or found.get("isDirectory") is not False:
            return
        why = "it is no directory"
    raise InvalidInputError(
        f"cwd {cwd!r} cannot be used: {why}; expected a directory on the machine of the app-server, best by its "
        "absolute path"
    )
