"""ContainerSession: commands and files in the container of a sample, while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ran:
    """End of a command inside; `exit_code` is None if it `timed_out`. Of long output the beginning and the end are
    there."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool = False


class ContainerSession(Protocol):
    """A running container. Each method raises ContainerError when the container is not there or the engine fails."""

    @property
    def name(self) -> str:
        """Name of the container for the engine."""

    @property
    def workdir(self) -> str:
        """Absolute path inside at which the agent works."""

    @property
    def image_user(self) -> str | None:
        """User that the image names; None if that is root."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float,
        stdin: bytes | None = None,
    ) -> Ran:
        """Run a command to its end, in `workdir` as the container's user unless others are given."""

    async def put(self, source: Path, target: str) -> None:
        """Copy a file, or the contents of a directory, to a path inside; directories above are made."""

    async def get(self, source: str, target: Path) -> None:
        """Copy a file, or the contents of a directory, from a path inside to a path that may not exist yet."""
