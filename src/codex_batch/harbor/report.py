"""Report of the verifier's runs over an attempt: an artifact of the sample, of which its scores are made. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .rewards import NoReward, of_steps

REPORT = "harbor.json"
"""Its name among the artifacts."""


class Phase(msgspec.Struct, frozen=True, omit_defaults=True):
    """Begin and end of a part of a step, in seconds since the epoch."""

    started_at: float
    ended_at: float


class StepReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step that was run; `name` is empty for a task without steps. Without `rewards`, `problem` gives the reason."""

    name: str
    rewards: Mapping[str, float] | None = None
    problem: str | None = None
    kind: str | None = None
    """Name that Harbor has for the problem."""
    agent: Phase | None = None
    verifier: Phase | None = None


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """The steps that were run, in their order; `ended` is why the others were not."""

    steps: tuple[StepReport, ...]
    is_mean: bool = True
    oracle: bool = False
    ended: str | None = None

    def to_json(self) -> bytes:
        """Return it as it is kept."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """The report that `to_json` was made of. Raises NoReward for any other data."""
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise NoReward(f"{REPORT} cannot be read: {error}") from None

    def rewards(self) -> dict[str, float]:
        """The rewards of the task. Raises NoReward if there are none, or a step that was run has none."""
        if not self.steps:
            raise NoReward(self.ended or "no step of the task was run")
        found = []
        for step in self.steps:
            if step.rewards is None:
                raise NoReward(f"step {step.name}: {step.problem}" if step.name else str(step.problem))
            found.append(step.rewards)
        return of_steps(found, is_mean=self.is_mean)
