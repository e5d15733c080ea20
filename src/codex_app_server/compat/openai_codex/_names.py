"""Names of the published SDK by module, where they are found here, and which are left out. Data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

# By its full name, so that it can also stand in for `openai_codex` in sys.modules.
_SDK = "codex_app_server"
_HERE = f"{_SDK}.compat.openai_codex"

_LOW_LEVEL = (
    "codex_app_server.{0} is the client underneath: request(method, params), perform, start_turn; its handler declines "
    "what nobody approves"
)

# Of the root package: where each name is defined.
_PUBLIC = {
    **dict.fromkeys(("Codex", "Thread", "TurnHandle"), f"{_HERE}.sync_api"),
    **dict.fromkeys(("AsyncCodex", "AsyncThread", "AsyncTurnHandle"), f"{_HERE}.async_api"),
    **dict.fromkeys(("ApprovalMode", "Sandbox"), f"{_HERE}._options"),
    "CodexConfig": f"{_HERE}.client",
    "TurnResult": f"{_SDK}.results",
    "retry_on_overload": f"{_HERE}.retry",
    **dict.fromkeys(
        (
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
        ),
        f"{_HERE}.errors",
    ),
    **dict.fromkeys(
        (
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
        f"{_SDK}.inputs",
    ),
    **dict.fromkeys(
        ("AsyncChatgptLoginHandle", "AsyncDeviceCodeLoginHandle", "ChatgptLoginHandle", "DeviceCodeLoginHandle"),
        f"{_SDK}.login",
    ),
}
_PROVIDED: dict[str, dict[str, str]] = {
    "": _PUBLIC,
    "api": {
        name: home
        for name, home in _PUBLIC.items()
        if home.rpartition(".")[2] in ("sync_api", "async_api", "_options", "inputs", "login", "results")
    },
}
_MODULES = ("api", "async_client", "client", "errors", "generated", "models", "retry", "types")

# Left out, by module and name, with what to use instead.
_LEFT_OUT: dict[str, dict[str, str]] = {
    "client": {
        "CodexClient": _LOW_LEVEL.format("AppServerClient"),
        "ApprovalHandler": "codex_app_server._sync.client.ApprovalHandler is the type of Codex(approval_handler=...)",
        "CodexBinResolverOps": "codex_app_server.config.find_codex finds the binary",
        "resolve_codex_bin": "codex_app_server.config.find_codex finds the binary",
    },
    "async_client": {"AsyncCodexClient": _LOW_LEVEL.format("AsyncAppServerClient")},
}


def lazy_module(module: str, part: str = "") -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `module`, the `part` of this package; its names are loaded when first used."""
    provided = _PROVIDED.get(part, {})
    left_out = _LEFT_OUT.get(part, {})
    submodules = () if part else _MODULES

    def get(name: str) -> Any:
        if name in provided:
            value = getattr(import_module(provided[name]), name)
        elif name in left_out:
            raise left_out_error(part, name, left_out[name])
        elif name in submodules:
            value = import_module(f"{module}.{name}")
        else:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        setattr(sys.modules[module], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module]), *provided, *submodules})

    return get, names


def left_out_error(part: str, name: str, remedy: str) -> ImportError:
    """The error for a name of the published SDK that is not here.

    An ImportError for an attribute too: `from module import name` replaces an AttributeError by one without the remedy.
    """
    return ImportError(f"{name} of openai_codex.{part} is not in {_HERE}.{part}: {remedy}", name=name)
