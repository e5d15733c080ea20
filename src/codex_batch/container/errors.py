"""ContainerError: a container, its image or the engine is not there, or failed."""

from __future__ import annotations


class ContainerError(Exception):
    """A container, its image or the engine is not there, or failed; the message names it and the remedy."""
