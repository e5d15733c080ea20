"""Tools for tests of programs that use the SDK: real turns without an account, and a scripted app-server.

`LoopbackModel` is a scripted model server: the real codex binary completes real turns against it, on loopback. The null
app-server is a script in place of the binary, for what the real one will not do on demand. `LoopbackIssuer` issues
tokens that expire. As pytest fixtures:

    pytest_plugins = ["codex_app_server.testing.fixtures"]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .issuer import LoopbackIssuer
from .loopback import LoopbackModel, Script, write_loopback_home

if TYPE_CHECKING:
    from .. import AppServerConfig

__all__ = ["LoopbackIssuer", "LoopbackModel", "Script", "null_app_server", "write_loopback_home"]

_NULL_APP_SERVER = Path(__file__).with_name("_null_app_server.py")


def null_app_server(**scenario: Any) -> AppServerConfig:
    """The configuration of a null app-server; the scenario's members stand at the top of `_null_app_server.py`.

    `Codex(null_app_server(on={"thread/list": {"error": {"code": -32001, "message": "busy"}}}))` is always overloaded.
    """
    from .. import AppServerConfig

    # -S and -E: nothing of the environment is loaded, so it is up in milliseconds.
    return AppServerConfig(
        launch_args_override=(sys.executable, "-S", "-E", str(_NULL_APP_SERVER), json.dumps(scenario))
    )
