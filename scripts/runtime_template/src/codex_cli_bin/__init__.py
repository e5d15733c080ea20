"""The codex runtime of one platform: where its binary and its tools are."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["bundled_codex_path", "bundled_path_dir"]

_HERE = Path(__file__).resolve().parent


def bundled_codex_path() -> Path:
    """The codex binary. Raises FileNotFoundError when this package does not carry it."""
    path = _HERE / "bin" / ("codex.exe" if os.name == "nt" else "codex")
    if not path.is_file():
        raise FileNotFoundError(f"no codex binary at {path}; reinstall openai-codex-cli-bin from its wheel")
    return path


def bundled_path_dir() -> Path | None:
    """The directory of the tools that codex wants on PATH; None when this package brings none."""
    path = _HERE / "codex-path"
    return path if path.is_dir() else None
