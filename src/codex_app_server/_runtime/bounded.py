"""Dictionaries that cannot grow without end: the oldest entries are forgotten. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """A dictionary of `limit` entries at most: a new one takes the place of the oldest.

    An entry is as old as its key: another value for it makes it no newer.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if len(self) > self.limit:
            self.popitem(last=False)


def bound(entries: dict[Any, Any], limit: int) -> None:
    """Forget the oldest entries of a dictionary beyond a limit that changes."""
    while len(entries) > limit:
        del entries[next(iter(entries))]
