"""A sample: one prompt of a batch, or several on one thread, and all that goes with it. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

from ..container.spec import ContainerSpec

Target = str | float | list[str] | None


class DatasetError(ValueError):
    """A dataset that cannot be run; `problems` holds everything that is wrong, each as `file:line: field: ...`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Sample(msgspec.Struct, frozen=True, eq=False):
    """One sample of a batch, made of plain JSON types. None leaves codex's configuration or the run's options in force.

    `cwd`, `directory` and paths in `workspace` are absolute; `timeout_s` is in seconds; `epoch` counts from 1;
    `variant` is the name of the variant that it is run in, empty in a run without variants.
    """

    id: str
    prompts: tuple[str, ...]
    epoch: int = 1
    cwd: str | None = None
    model: str | None = None
    effort: str | None = None
    sandbox: str | None = None
    output_schema: dict[str, Any] | None = None
    timeout_s: float | None = None
    metadata: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    target: Target = None
    scorers: tuple[Any, ...] | None = None
    """Scorer specs, instead of the run's; None leaves the run's."""
    workspace: dict[str, Any] | None = None
    limits: dict[str, float] | None = None
    container: ContainerSpec | None = None
    variant: str = ""
    harbor: dict[str, Any] | None = None
    """Task in Harbor's format that it was made of: the folder, its digest here and in Harbor, whether the solution is
    run instead of an agent, and the keys that are left out of account."""
    directory: str | None = None
    """Origin of the sample: the task's folder, else the directory of the dataset. Scorers find their files there."""

    def __eq__(self, other: object) -> bool:
        """Compare all fields but `directory`."""
        if not isinstance(other, Sample):
            return NotImplemented
        return msgspec.structs.astuple(self)[:-1] == msgspec.structs.astuple(other)[:-1]

    @property
    def prompt(self) -> str:
        """The first prompt."""
        return self.prompts[0]

    @property
    def key(self) -> tuple[str, int, str]:
        """The id, epoch and variant, which identify a sample within a run."""
        return self.id, self.epoch, self.variant

    @property
    def digest(self) -> str:
        """Digest of everything that the answer depends on: two samples with one digest ask the same.

        A workspace counts by its contents, not by the place that it is copied from.
        """
        workspace = self.workspace and {
            key: value for key, value in self.workspace.items() if key not in ("template", "git", "setup_timeout_s")
        }
        asked: list[Any] = [
            self.prompts,
            self.cwd,
            self.model,
            self.effort,
            self.sandbox,
            self.output_schema,
            workspace,
        ]
        if self.container is not None:
            asked.append(self.container.asked())
        if self.harbor is not None:
            # Its files, wherever they are: tests as well, since only the container of the attempt can be tested.
            asked += [self.harbor["digest"], self.harbor["oracle"], self.harbor["ignored"]]
        return hashlib.sha256(_sorted(asked).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as a JSON object."""
        found: dict[str, Any] = {"id": self.id, "prompts": list(self.prompts)}
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value is not default and value != default:
                found[name] = _plain(value)
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Sample:
        """The sample that `to_json` was made of."""
        tuples = {name: tuple(value[name]) for name in ("prompts", "tags", "scorers") if value.get(name) is not None}
        container = value.get("container")
        if container is not None:
            value = {**value, "container": ContainerSpec.from_json(container)}
        return cls(**{**value, **tuples})


def _plain(value: Any) -> Any:
    if isinstance(value, ContainerSpec):
        return value.to_json()
    return list(value) if isinstance(value, tuple) else value


_sorted = json.JSONEncoder(sort_keys=True).encode
_DEFAULTS = {one.name: one.default for one in msgspec.structs.fields(Sample) if not one.required}
