"""codex_pool: a pool of `codex app-server` processes that looks like one big app-server.

    from codex_pool import Pool

    with Pool(workers=4) as pool, pool.connect() as codex:
        print(codex.thread_start().run("Say hello in one sentence.").final_response)

Names are loaded when first used: the processes of the pool import this package too.
"""

from __future__ import annotations

import sys
from importlib import import_module

__version__ = "0.1.0"

# As in `typing`, whose import would take twice as long as `codex-pool --help` without it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .connecting import aconnect, connect
    from .errors import PoolLostError, PoolStartError
    from .pool import Pool
    from .protocol.endpoints import EndpointError, default_endpoint

_MOVED = {
    "codex_pool.allowed": "codex_pool.auth.allow_list",
    "codex_pool.batch": "codex_batch",
    "codex_pool.broker.doors": "codex_pool.auth.policy",
    "codex_pool.broker.identity": "codex_pool.auth.principal",
    "codex_pool.broker.records": "codex_pool.broker.entities",
    "codex_pool.cli": "codex_pool_cli",
    "codex_pool.endpoint_name": "codex_pool.runtime.endpoint_name",
    "codex_pool.endpoints": "codex_pool.protocol.endpoints",
    "codex_pool.isolated": "codex_pool.runtime.isolated",
    "codex_pool.json_bounds": "codex_pool.protocol.json_bounds",
    "codex_pool.key_files": "codex_pool.auth.key_files",
    "codex_pool.keys": "codex_pool.auth.keys",
    "codex_pool.line_queue": "codex_pool.runtime.line_queue",
    "codex_pool.link": "codex_pool.protocol.ingress_frames",
    "codex_pool.log": "codex_pool.runtime.log",
    "codex_pool.os_errors": "codex_pool.runtime.os_errors",
    "codex_pool.ownership": "codex_pool.auth.ownership",
    "codex_pool.pool_lost": "codex_pool.errors",
    "codex_pool.problems": "codex_pool.runtime.problems",
    "codex_pool.processes": "codex_pool.runtime.processes",
    "codex_pool.rpc": "codex_pool.protocol.jsonrpc",
    "codex_pool.sockets": "codex_pool.protocol.sockets",
    "codex_pool.start": "codex_pool.runtime.startup",
    "codex_pool.terminal": "codex_pool.runtime.terminal",
    "codex_pool.wire": "codex_pool.protocol.wire",
    "codex_pool.writer": "codex_pool.runtime.writer",
}
# With the dot: codex_pool.cli is not the begin of codex_pool.client.
_MOVED_NAMES = tuple(f"{name}." for name in _MOVED)


class _MovedModules:
    """Finder of modules by their former names, which stay importable for one release more."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        if not f"{name}.".startswith(_MOVED_NAMES):
            return None
        from codex_app_server._moved import spec_of

        return spec_of(name, _MOVED)


sys.meta_path.insert(0, _MovedModules)  # type: ignore[arg-type]

_HOME_OF = {
    "EndpointError": "protocol.endpoints",
    "Pool": "pool",
    "PoolLostError": "errors",
    "PoolStartError": "errors",
    "aconnect": "connecting",
    "connect": "connecting",
    "default_endpoint": "protocol.endpoints",
}

__all__ = [
    "EndpointError",
    "Pool",
    "PoolLostError",
    "PoolStartError",
    "__version__",
    "aconnect",
    "connect",
    "default_endpoint",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
