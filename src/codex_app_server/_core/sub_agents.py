"""Sub-agents: which turns work for which other turn, and which of them are to be interrupted with it. Pure.

A turn names in its turn/started the turn at the top of all that it works for, as `rootTurnId`. Measured on codex
0.163.0:
 - on another thread than that turn it is a sub-agent's, however deep;
 - on the same thread it is the turn inside of a review, which an interrupt of the review must name.
Interrupting a turn stops none of its sub-agents. Each is interrupted by its own ids, and so is one that begins when
what it works for has been interrupted already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import msgspec

from .._runtime.bounded import BoundedDict

MAX_TURNS = 4096
MAX_STOPPED = 4096
MAX_THREADS = 10_000
MAX_DEPTH = 64


# Of the items that report a new sub-agent, by the tools of codex's features multi_agent and multi_agent_v2.
_MARKS = (b'"spawnAgent"', b'"subAgentActivity"')


class _Item(msgspec.Struct, rename="camel"):
    type: str = ""
    tool: str = ""
    kind: str = ""
    receiver_thread_ids: list[str] = []
    agent_thread_id: str = ""


class _Params(msgspec.Struct):
    item: _Item


class _Line(msgspec.Struct):
    params: _Params


_decode = msgspec.json.Decoder(_Line).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def may_spawn(line: bytes) -> bool:
    """False for a line that reports no new sub-agents."""
    return any(mark in line for mark in _MARKS)


def children_of(line: bytes) -> list[str]:
    """The threads that codex has made for the sub-agents in an item/completed line.

    Other tools name threads too, as the model has written them.
    """
    try:
        item = _decode(line).params.item
    except _UNREADABLE:
        return []
    if item.type == "collabAgentToolCall" and item.tool == "spawnAgent":
        return item.receiver_thread_ids
    return [item.agent_thread_id] if item.type == "subAgentActivity" and item.kind == "started" else []


class AgentTurn(NamedTuple):
    """A turn of a sub-agent, by the ids that its notifications carry and that interrupt it."""

    thread_id: str
    turn_id: str


class SubAgents:
    """See the module's docstring. Threads may read while one other writes."""

    def __init__(self) -> None:
        # By the turn at the top, the turns that work for it, and their threads.
        self._below: dict[str, dict[str, str]] = {}
        self._roots: dict[str, str] = {}
        self._parents: BoundedDict[str, str] = BoundedDict(MAX_THREADS)
        # Pairs of a thread and a turn at the top: what works for that turn below that thread; "" is every thread.
        self._stopped: BoundedDict[tuple[str, str], None] = BoundedDict(MAX_STOPPED)

    def __len__(self) -> int:
        return len(self._roots)

    def __contains__(self, turn_id: object) -> bool:
        """True for a turn that runs and works for another one."""
        return turn_id in self._roots

    def spawned(self, parent: str, children: Collection[str]) -> list[AgentTurn]:
        """Note threads of sub-agents of a turn on `parent`; return those of their turns that are to be interrupted.

        A turn on one of `children` may have begun before this call.
        """
        for child in children:
            self._parents[child] = parent
        return [
            each
            for root in list(self._below)
            for each in self._agents(root)
            if each.thread_id in children and self._is_stopped(each.thread_id, root)
        ]

    def began(self, thread_id: str, turn_id: str, root: str) -> bool:
        """Note a running turn that works for the turn `root`; return True if it is to be interrupted at once."""
        self._below.setdefault(root, {})[turn_id] = thread_id
        self._roots[turn_id] = root
        while len(self._roots) > MAX_TURNS:
            self._forget(next(iter(self._roots)))
        # What its parent gives it to do after it was stopped alone is new work.
        self._stopped.pop((thread_id, root), None)
        return self._is_stopped(thread_id, root)

    def ended(self, thread_id: str, turn_id: str) -> None:
        """Note that any turn is over; the turn inside of a review has no end of its own."""
        if not self._roots:
            return
        self._forget(turn_id)
        for inner, thread in list(self._below.get(turn_id, {}).items()):
            if thread == thread_id:
                self._forget(inner)

    def root_of(self, turn_id: str | None) -> str | None:
        """The turn that a running turn works for; None if it is none that does."""
        return self._roots.get(turn_id or "")

    def active(self, thread_id: str, turn_id: str) -> str:
        """The turn that an interrupt must name: that inside of a review, else the turn itself."""
        inner = [turn for turn, thread in list(self._below.get(turn_id, {}).items()) if thread == thread_id]
        return inner[-1] if inner else turn_id

    def running(self, thread_id: str, turn_id: str) -> list[AgentTurn]:
        """The turns of sub-agents that work for this turn and run."""
        own = [each for each in self._agents(turn_id) if each.thread_id != thread_id]
        root = self._roots.get(turn_id)
        if root is not None:
            own += [each for each in self._agents(root) if thread_id in self._above(each.thread_id)]
        return own

    def stop(self, thread_id: str, turn_id: str) -> list[AgentTurn]:
        """Note that a turn is interrupted, with those returned, as is each that begins to work for it from now on."""
        root = self._roots.get(turn_id)
        pairs = [("", turn_id)] if root is None else [("", turn_id), (thread_id, root)]
        for pair in pairs:
            self._stopped[pair] = None
        return self.running(thread_id, turn_id)

    def _is_stopped(self, thread_id: str, root: str) -> bool:
        return any((above, root) in self._stopped for above in ("", *self._above(thread_id)))

    def _agents(self, root: str) -> Iterator[AgentTurn]:
        return (AgentTurn(thread, turn) for turn, thread in list(self._below.get(root, {}).items()))

    def _above(self, thread_id: str) -> Iterator[str]:
        """The threads that this one is a sub-agent's of, the nearest first."""
        for _ in range(MAX_DEPTH):
            parent = self._parents.get(thread_id)
            if parent is None:
                return
            yield parent
            thread_id = parent

    def _forget(self, turn_id: str) -> None:
        root = self._roots.pop(turn_id, None)
        below = self._below.get(root, {}) if root is not None else {}
        below.pop(turn_id, None)
        if root is not None and not below:
            self._below.pop(root, None)
