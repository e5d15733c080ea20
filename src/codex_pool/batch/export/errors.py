"""What can go wrong with an export."""

from __future__ import annotations


class ExportError(ValueError):
    """A run that cannot be exported so; the message says why and what to do."""
