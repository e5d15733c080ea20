"""`codex_app_server.compat.openai_codex`, whose clients are clients of the user's daemon.

    from codex_pool.compat import openai_codex                # import openai_codex
    from codex_pool.compat.openai_codex import Codex          # from openai_codex import Codex
    from codex_pool.compat.openai_codex.types import Turn     # from openai_codex.types import Turn

For a pool at another endpoint give `Codex` of `codex_app_server.compat.openai_codex` a `transport`:
`Codex(transport=PoolTransport(endpoint))`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from codex_app_server._sync.client import ApprovalHandler
from codex_app_server.compat import openai_codex as _sdk
from codex_app_server.compat.openai_codex import *  # noqa: F403
from codex_app_server.compat.openai_codex import CodexConfig
from codex_app_server.compat.openai_codex import __version__ as __version__
from codex_app_server.compat.openai_codex.async_api import AsyncCodex as _AsyncCodex
from codex_app_server.compat.openai_codex.sync_api import Codex as _Codex
from codex_app_server.errors import InvalidInputError

from ..client.transport import PoolTransport
from ..protocol.endpoints import default_endpoint

if TYPE_CHECKING:
    from codex_app_server._async.client import AsyncApprovalHandler
    from codex_app_server.transport import Transport

__all__ = _sdk.__all__

# What a process is started with, and a client of one that runs cannot choose.
_OF_THE_PROCESS = ("codex_bin", "launch_args_override", "config_overrides", "cwd", "env")


class Codex(_Codex):  # type: ignore[no-redef]
    """A client of the user's daemon, as the published SDK's `Codex`.

    Raises InvalidInputError for a configuration that names what an app-server is started with, EndpointError, and
    TransportClosedError when the daemon does not run.
    """

    def __init__(
        self,
        config: CodexConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: ApprovalHandler | None = None,
    ) -> None:
        super().__init__(config, transport=transport or _transport(config), approval_handler=approval_handler)


class AsyncCodex(_AsyncCodex):  # type: ignore[no-redef]
    """A client of the user's daemon, as the published SDK's `AsyncCodex`. Raises as `Codex`."""

    def __init__(
        self,
        config: CodexConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: AsyncApprovalHandler | None = None,
    ) -> None:
        super().__init__(config, transport=transport or _transport(config), approval_handler=approval_handler)


def _transport(config: CodexConfig | None) -> PoolTransport:
    given = [name for name in _OF_THE_PROCESS if getattr(config, name, None)]
    if given:
        raise InvalidInputError(
            f"CodexConfig({', '.join(f'{name}=...' for name in given)}): the app-servers of the daemon run already; "
            "leave it out here, and start the daemon with it"
        )
    return PoolTransport(default_endpoint(), client="openai_codex")


# Its modules under the names that programs import them by; `api` has the clients of the daemon.
__path__: list[str] = []
for _name in ("async_client", "client", "errors", "generated", "generated.v2_all", "models", "retry", "types"):
    sys.modules[f"{__name__}.{_name}"] = import_module(f"{_sdk.__name__}.{_name}")
sys.modules[f"{__name__}.api"] = sys.modules[__name__]


if not TYPE_CHECKING:

    def __getattr__(name: str):
        """The modules, by attribute."""
        module = sys.modules.get(f"{__name__}.{name}")
        return module if module is not None else getattr(_sdk, name)
