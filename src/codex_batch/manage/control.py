"""Requests to a run that is under way, as files in its directory: each is taken once.

A file in `layout.CONTROL` is put there whole (written beside, renamed) and removed by the run when it has been taken.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import write_atomic

from ..store import layout

TAKEN_LIMIT_S = 10.0
_POLL_S = 0.05


def ask(run: Path, request: dict[str, Any], *, limit_s: float = TAKEN_LIMIT_S) -> bool:
    """Make a request; True if the run has taken it within `limit_s` seconds, else it is withdrawn."""
    directory = run / layout.CONTROL
    directory.mkdir(exist_ok=True)
    path = directory / f"{uuid.uuid4().hex}.json"
    write_atomic(path, json.dumps(request).encode())
    deadline = time.monotonic() + limit_s
    while path.exists():
        if time.monotonic() > deadline:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                return False
            break
        time.sleep(_POLL_S)
    return True


def requests(run: Path) -> Iterator[dict[str, Any]]:
    """Take the requests that have been made of the run since it looked last."""
    for path in sorted((run / layout.CONTROL).glob("*.json")):
        try:
            request = json.loads(path.read_bytes())
            path.unlink()
        except (OSError, ValueError):
            continue
        if isinstance(request, dict):
            yield request


def clear(run: Path) -> None:
    """Drop requests that were made of an earlier run."""
    for _ in requests(run):
        pass
