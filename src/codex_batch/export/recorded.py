"""Conversations of a sample: those of the session files that the run has kept of its last attempt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from ..store import RolloutRow, RunStore, SampleRow
from ..store.rollouts import OWN, SUB_AGENT
from .conversation import Conversation, conversation

_SHOWN = 5
_log = logging.getLogger("codex_batch")


@dataclass(slots=True)
class Recorded:
    """Everything kept of a sample's last attempt: its conversation, None without one, and those of its sub-agents."""

    own_id: str | None = None
    own: Conversation | None = None
    sub_agents: dict[str, Conversation] = field(default_factory=dict)
    """The files by thread."""
    notes: list[str] = field(default_factory=list)
    """The missing part, with the reason."""


def recorded(store: RunStore, row: SampleRow) -> Recorded:
    """Return what is kept of a sample that has a record."""
    assert row.record is not None
    rollouts = store.rollouts(row.n, row.record.attempts)
    files = {each.thread_id: partial(store.rollout_lines, each) for each in rollouts if each.at is not None}
    found = Recorded(notes=[f"thread {each.thread_id}: {each.note}" for each in rollouts if each.note is not None])
    for each in rollouts:
        if each.at is None:
            continue
        if each.relation == OWN:
            found.own_id, found.own = each.thread_id, conversation(each.thread_id, files)
        elif each.relation == SUB_AGENT:
            found.sub_agents[each.thread_id] = conversation(each.thread_id, files)
    return found


def is_whole(rollouts: Sequence[RolloutRow]) -> bool:
    """True if nothing is missing of the session files of an attempt."""
    return bool(rollouts) and all(each.at is not None and not each.cut_bytes for each in rollouts)


class Missing:
    """Samples that lack something, to be named at the end of an export."""

    def __init__(self, what: str, remedy: str) -> None:
        self._what, self._remedy = what, remedy
        self._names: list[str] = []
        self._count = 0

    def add(self, row: SampleRow) -> None:
        self._count += 1
        if self._count <= _SHOWN:
            self._names.append(row.shown_name)

    def report(self) -> None:
        """Log the names, if there are any."""
        if self._count:
            more = f" and {self._count - _SHOWN:,} more" if self._count > _SHOWN else ""
            _log.warning("%s: %s%s; %s", self._what, ", ".join(self._names), more, self._remedy)
