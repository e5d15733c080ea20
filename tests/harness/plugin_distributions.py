"""Distributions with plug-ins, as an installer leaves them: modules, and entry points beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_distribution(
    directory: Path, name: str, points: Mapping[str, Mapping[str, str]], modules: Mapping[str, str] | None = None
) -> Path:
    """Write a distribution of version 1.0 into a directory of sys.path: entry points by group, and its modules."""
    metadata = directory / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("")
    (metadata / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n" + "\n".join(f"{key} = {value}" for key, value in found.items())
            for group, found in points.items()
        )
    )
    for module, text in (modules or {}).items():
        (directory / f"{module}.py").write_text(text)
    return directory
