"""Telling a run that is under way what to do, through files in its directory: each is one request, taken once.

`control/NAME.json` is put there whole (written beside, renamed) and removed by the run when it has been taken.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONTROL = "control"
TAKEN_LIMIT_S = 10.0
_POLL_S = 0.05


def ask(run: Path, request: dict[str, Any], *, limit_s: float = TAKEN_LIMIT_S) -> bool:
    """Whether the run has taken a request within `limit_s` seconds; one that it has not is taken back."""
    directory = run / CONTROL
    directory.mkdir(exist_ok=True)
    path = directory / f"{uuid.uuid4().hex}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(request))
    partial.replace(path)
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
    """What has been asked of the run since it looked last."""
    for path in sorted((run / CONTROL).glob("*.json")):
        try:
            request = json.loads(path.read_bytes())
            path.unlink()
        except (OSError, ValueError):
            continue
        if isinstance(request, dict):
            yield request


def clear(run: Path) -> None:
    """Nothing asked of an earlier run is for this one."""
    for _ in requests(run):
        pass
