"""`codex-pool sessions`: list the sessions of a daemon: clients, and how they came in."""

from __future__ import annotations

from . import listing

sessions = listing.verb(
    "sessions",
    "List the sessions of a daemon: clients, and how they came in.",
    "A session is one client, over any number of connections. Those with the most turns come first.",
)
