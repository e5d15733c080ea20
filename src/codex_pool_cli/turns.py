"""`codex-pool turns`: list the turns of a daemon: running, waiting, queued."""

from __future__ import annotations

from . import listing

turns = listing.verb(
    "turns",
    "List the turns of a daemon: running, waiting, queued.",
    "Turns that wait for a person come first, then running ones, then queued ones in the order in which they will "
    "begin. On a terminal, ids are shortened to beginnings that other verbs take, and columns are left out where "
    "there is no room.",
)
