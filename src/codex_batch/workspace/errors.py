"""Errors of a workspace."""

from __future__ import annotations


class WorkspaceError(Exception):
    """A workspace that could not be made, compared or removed; the message gives the reason."""
