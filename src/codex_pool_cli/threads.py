"""`codex-pool threads`: list the threads that a daemon knows, and their workers."""

from __future__ import annotations

from . import listing

threads = listing.verb(
    "threads",
    "List the threads that a daemon knows, and their workers.",
    "Threads that run a turn come first, then the ones used last. Threads that no client has used since the daemon "
    "began are not listed.",
)
