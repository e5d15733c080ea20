"""Which module of the published SDK has which names, where they are found here, and which are left out. Data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

_HERE = __package__ or ""
_SDK = _HERE.rpartition(".compat")[0]

_LOW_LEVEL = (
    "codex_app_server.{0} is the client underneath: request(method, params), perform, start_turn; its handler declines "
    "what nobody approves"
)
_OVERLOAD = "retry_on_overload retries any call"

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
    _HERE: _PUBLIC,
    f"{_HERE}.api": {
        name: home
        for name, home in _PUBLIC.items()
        if home.rpartition(".")[2] in ("sync_api", "async_api", "_options", "inputs", "login", "results")
    },
}
_MODULES = ("api", "async_client", "client", "errors", "generated", "models", "retry", "types")

# Left out, by module and name, with what to use instead.
_LEFT_OUT: dict[str, dict[str, str]] = {
    f"{_HERE}.client": {
        "CodexClient": _LOW_LEVEL.format("AppServerClient"),
        "ApprovalHandler": "codex_app_server.client.ApprovalHandler is the type of Codex(approval_handler=...)",
        "CodexBinResolverOps": "codex_app_server.config.find_codex finds the binary",
        "resolve_codex_bin": "codex_app_server.config.find_codex finds the binary",
    },
    f"{_HERE}.async_client": {"AsyncCodexClient": _LOW_LEVEL.format("AsyncAppServerClient")},
}


def lazy_module(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module whose names are loaded when first used."""
    provided = _PROVIDED.get(module, {})
    left_out = _LEFT_OUT.get(module, {})

    def get(name: str) -> Any:
        if name in provided:
            value = getattr(import_module(provided[name]), name)
        elif name in left_out:
            raise left_out_error(module, name, left_out[name])
        elif module == _HERE and name in _MODULES:
            value = import_module(f"{module}.{name}")
        else:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        setattr(sys.modules[module], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module]), *provided, *(_MODULES if module == _HERE else ())})

    return get, names


def left_out_error(module: str, name: str, remedy: str) -> ImportError:
    """The error for a name of the published SDK that is not here.

    An ImportError for an attribute too: `from module import name` replaces an AttributeError by one without the remedy.
    """
    published = module.replace(_HERE, "openai_codex", 1)
    return ImportError(f"{name} of {published} is not in {module}: {remedy}", name=name)
