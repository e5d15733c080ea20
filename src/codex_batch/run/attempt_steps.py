"""AttemptSteps: what is done around the turns of an attempt whose prompts are steps with tests of their own."""

from __future__ import annotations

from typing import Protocol

from ..container.errors import ContainerError
from ..rules.retry import ENVIRONMENT_LOST, WORKSPACE, Outcome


class StepFailed(Exception):
    """A step that could not be begun or verified; the message gives the reason."""


class AttemptSteps(Protocol):
    """The steps of one attempt, one for each prompt. Each method raises StepFailed and ContainerError."""

    def timeout_s(self, index: int) -> float | None:
        """The limit of the turn of a step, in seconds."""

    async def before(self, index: int) -> None:
        """Make ready for the turn of a step."""

    async def verify(self) -> bool:
        """Verify the step that was begun last, once; False if the steps after it are not to be run."""


def failed(error: Exception) -> Outcome:
    """The outcome of an attempt whose container, or whose step, has failed."""
    if isinstance(error, ContainerError):
        return Outcome("lost", {"kind": ENVIRONMENT_LOST, "message": str(error)})
    return Outcome("failed", {"kind": WORKSPACE, "message": str(error)})
