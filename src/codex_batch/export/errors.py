"""Errors of an export."""

from __future__ import annotations


class ExportError(ValueError):
    """A run that cannot be exported so; the message gives the reason and the remedy."""
