"""Files of an endpoint that a supervisor has to make again. Pure.

Files in a runtime directory are removed while they are in use: by cleaners of temporary files, at the end of a login,
by hand. Each step needs those before it: there is no lock without a directory, and without the lock the rest of the
directory is another pool's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Step = Literal["runtime directory", "lock", "pid in the lock", "list of processes"]


class EndpointFiles(NamedTuple):
    """The files that are as the supervisor has left them.

    The directory is there; the lock at its path is the one that it holds, and has its pid; the list of processes is
    the one that it wrote last.
    """

    directory: bool
    lock: bool
    pid: bool
    list: bool


STEPS: tuple[Step, ...] = ("runtime directory", "lock", "pid in the lock", "list of processes")


def steps(found: EndpointFiles) -> list[Step]:
    """The steps to be done, in their order; one that fails ends the round, unless it is `pid in the lock`."""
    if not found.directory:
        return list(STEPS)
    if not found.lock:
        return list(STEPS[1:])
    return [step for step, done in zip(STEPS[2:], (found.pid, found.list), strict=True) if not done]
