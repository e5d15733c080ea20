"""Threads of sub-agents, and the threads that they work for. Pure. Bounded: the oldest are forgotten first."""

from __future__ import annotations

from collections.abc import Iterator

MAX_CHILDREN = 10_000
MAX_DEPTH = 64


class ThreadTree:
    """The loaded threads of sub-agents; the length is their number. Kept beside them: all that were reported."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._reported: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def __contains__(self, thread_id: object) -> bool:
        return thread_id in self._parents

    def __iter__(self) -> Iterator[str]:
        return iter(self._parents)

    @property
    def reports(self) -> list[tuple[str, str]]:
        """Parent and child of all that were reported to the broker. A parent comes before its children."""
        return [(parent, child) for child, parent in self._reported.items()]

    def report(self, parent: str, children: list[str]) -> None:
        """Note what is reported to the broker, for the next one."""
        self._reported.update((child, parent) for child in children)
        while len(self._reported) > MAX_CHILDREN:
            del self._reported[next(iter(self._reported))]

    def reported_parent(self, thread_id: str) -> str | None:
        """The parent that was reported of this thread."""
        return self._reported.get(thread_id)

    def add(self, child: str, parent: str) -> str | None:
        """Add a loaded thread; the one that it displaces, which is to be removed."""
        self._parents[child] = parent
        return next(iter(self._parents)) if len(self._parents) > MAX_CHILDREN else None

    def remove(self, child: str) -> None:
        """Remove a thread that is loaded no longer."""
        del self._parents[child]

    def above(self, thread_id: str) -> Iterator[str]:
        """The threads that this one works for, the nearest first."""
        for _ in range(MAX_DEPTH):
            parent = self._parents.get(thread_id)
            if parent is None:
                return
            yield parent
            thread_id = parent

    def top(self, thread_id: str) -> str:
        """The thread above this one, or itself, that is no sub-agent's."""
        return [thread_id, *self.above(thread_id)][-1]

    def family(self, thread_id: str) -> list[str]:
        """The thread and those of its sub-agents, at any depth."""
        return [thread_id, *(child for child in self._parents if thread_id in self.above(child))]
