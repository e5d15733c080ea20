"""ChangeQueue: changes, and requests about the account, in the order in which they came. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .change import Change
from .request import Request


class ChangeQueue:
    """See the module's docstring. To `in_flight` it is a queue of the requests among them."""

    def __init__(self) -> None:
        self.all: deque[Request | Change] = deque()

    @property
    def reason(self) -> str:
        return "change before it"

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Request]:
        return (each for each in self.all if isinstance(each, Request))

    def add(self, request: Request, weight: int) -> None:
        self.all.append(request)

    def discard(self, request: Request) -> None:
        if request in self.all:
            self.all.remove(request)
