"""ContainerOptions: the containers that a run is asked for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions:
    """The containers that a run is asked for. What a sample says itself counts more than all but `engine`.

    `image_map` is a file with images by ids of samples. `memory_mb` is in MiB.
    """

    engine: str
    image: str | None = None
    image_map: Path | None = None
    cpus: float | None = None
    memory_mb: int | None = None
    processes: int | None = None
    user: str | None = None
    network: bool = False
