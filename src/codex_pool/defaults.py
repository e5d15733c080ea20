"""Defaults that the library and the command line share."""

from __future__ import annotations

WORKERS = 2
TURNS_PER_WORKER = 8
# An app-server starts with 140 MiB and keeps about 2 MiB for every thread that it has loaded.
RECYCLE_MEMORY_BYTES = 3 * 1024**3 // 2
# The MCP servers of ephemeral threads stay for half an hour after these were let go.
RECYCLE_DESCENDANTS = 32
TURN_IDLE_LIMIT_S = 600.0
