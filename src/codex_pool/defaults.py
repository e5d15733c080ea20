"""Defaults that the library and the command line share."""

from __future__ import annotations

WORKERS = 2
TURNS_PER_WORKER = 8
