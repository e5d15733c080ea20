"""`codex-pool workers`: list the workers of a daemon: state, load, memory."""

from __future__ import annotations

from . import listing

workers = listing.verb(
    "workers",
    "List the workers of a daemon: state, load, memory.",
    "One row a slot, and one for each worker that is being replaced. Memory is that of the worker, its app-server "
    "and all below it but the commands of running turns.",
)
