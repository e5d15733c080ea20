"""Sandbox modes of codex, as thread/start, config.toml and the options of commands name them. Imports little."""

from __future__ import annotations

from typing import Literal

SandboxMode = Literal["read-only", "workspace-write", "danger-full-access"]
READ_ONLY: SandboxMode = "read-only"
WORKSPACE_WRITE: SandboxMode = "workspace-write"
FULL_ACCESS: SandboxMode = "danger-full-access"
# From the narrowest to the widest.
SANDBOX_MODES: tuple[SandboxMode, ...] = (READ_ONLY, WORKSPACE_WRITE, FULL_ACCESS)
