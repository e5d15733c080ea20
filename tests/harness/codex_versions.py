"""Codex binaries of other versions, fetched into the user's cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from codex_app_server.generated.since import NEWEST, OLDEST

ROOT = Path(__file__).parents[2]
# `make test-versions VERSIONS="0.147.0 0.175.0"` names others; 0.180.0=FILE is a binary that is there already.
VERSIONS = os.environ.get("VERSIONS", f"{OLDEST} 0.154.0 0.161.0 0.162.1 0.163.0 {NEWEST}").split()
UPGRADED = [version for version in ("0.154.0", "0.161.0", "0.162.1") if version in VERSIONS] + ["0.171.0"]


def runtime(version: str) -> Path:
    """The codex binary of this version."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from _runtimes import fetch_runtime
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return fetch_runtime(version)
