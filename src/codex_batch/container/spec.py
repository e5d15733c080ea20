"""ContainerSpec: the container that a sample asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container that a sample asks for; None leaves what the run, the image or the engine says.

    `image` is the name of an image, `build` the absolute path of a directory with a Dockerfile. `cpus` may be a
    fraction; `memory_mb` is in MiB, `build_timeout_s` in seconds. `environment` has literal values. `workdir` is an
    absolute path inside. Without `network` it reaches nothing outside of itself.
    """

    image: str | None = None
    build: str | None = None
    build_timeout_s: float | None = None
    cpus: float | None = None
    memory_mb: int | None = None
    processes: int | None = None
    user: str | None = None
    workdir: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    tree: str | None = None
    """Digest of the contents of `build`."""
    digest: str | None = None
    """Digest of `image`, once it is known."""

    def to_json(self) -> dict[str, Any]:
        """Return the members that differ from their defaults, as a JSON object."""
        found: dict[str, Any] = {}
        for name in NAMES:
            value = getattr(self, name)
            if value:
                found[name] = dict(value) if name == "environment" else value
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ContainerSpec:
        """Return the spec that `to_json` was made of."""
        return cls(**value)

    def asked(self) -> dict[str, Any]:
        """Return what an answer depends on: the contents of `build` and of `image` in place of path and name."""
        names = {"build", "build_timeout_s", *(("image",) if self.digest is not None else ())}
        return {name: value for name, value in self.to_json().items() if name not in names}


NAMES = tuple(each.name for each in fields(ContainerSpec))
