"""Reasons for which workers are replaced, as the few words by which metrics count them. Pure."""

from __future__ import annotations

import re

from .slots import Worker

RESTART_REASONS = ("exited", "failed_start", "silent")
# `state`: its app-server had out of date what all have in memory, such as the account.
RECYCLE_REASONS = ("turns", "threads", "memory", "age", "descendants", "state", "operator")

_LIMIT = re.compile(r"\d+ (?:bytes of )?(turns|threads|memory|descendants), the limit is")
_OF_OPERATOR = re.compile(r"asked|scaled|drained|upgrade")


def reason_of_restart(worker: Worker) -> str:
    """The reason for which a worker has ended that was not asked to."""
    if worker.state == "starting":
        return "failed_start"
    return "silent" if worker.killing else "exited"


def reason_of_recycling(why: str) -> str:
    """The reason of a recycling, by its text (`Slot.recycling`)."""
    limit = _LIMIT.match(why)
    if limit is not None:
        return limit[1]
    if why.startswith("it has run for"):
        return "age"
    return "operator" if _OF_OPERATOR.search(why) else "state"
