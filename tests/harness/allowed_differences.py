"""Differences between what a client gets of a pool and of one app-server, each with its reason.

docs/clients.md quotes this list: `python tests/harness/allowed_differences.py` writes it out.
"""

from __future__ import annotations

from differential import Allowed, as_text

_FLAGS = (
    "the app-servers of a pool are started with settings of their own: a private SQLite home, and no shell snapshots, "
    "which start a shell for each thread"
)
ALLOWED = (
    Allowed(
        r".*",
        "codex gives all threads of a process the name of the client that this process has had first, which in a pool "
        "is the pool",
        r".*\.originator",
        title="thread.originator",
    ),
    Allowed(
        r"account/rateLimits/updated", "a pool sends it when the limits have changed, not after each turn", side="one"
    ),
    Allowed(r"config/read", _FLAGS, r"result\.(config\.sqlite_home|origins\..*|layers.*)"),
    Allowed(
        r"no/such",
        "a method that the pool does not know is refused with -32601, where one app-server lists what it knows with "
        "-32600: no worker would be the right one for it",
        r"error\..*",
        title="unknown methods",
    ),
)

if __name__ == "__main__":
    print(as_text(ALLOWED), end="")
