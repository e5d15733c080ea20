"""codex_pool: a pool of `codex app-server` processes that looks like one big app-server.

    from codex_pool import Pool

    with Pool(workers=4) as pool, pool.connect() as codex:
        print(codex.thread_start().run("Say hello in one sentence.").final_response)

Names are loaded when first used: the processes of the pool import this package too.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# As in `typing`, whose import would take twice as long as `codex-pool --help` without it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .endpoints import EndpointError, default_endpoint
    from .pool import Pool, PoolStartError, aconnect, connect
    from .pool_lost import PoolLostError

_HOME_OF = {
    "EndpointError": "endpoints",
    "Pool": "pool",
    "PoolLostError": "pool_lost",
    "PoolStartError": "pool",
    "aconnect": "pool",
    "connect": "pool",
    "default_endpoint": "endpoints",
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
