"""Checks that the codex-pool that is installed can take a supervisor over, in a process of its own.

    codex_pool.supervisor.handover_check    start arguments: the state, one JSON line on stdin
                                            stdout: {"event": "fits", "version"} or {"event": "failed", "reason"}

It imports all that the next supervisor and the children of this pool will import, from the files that are there now.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator

from ..runtime import log, startup
from . import loop
from .handover import Handover, HandoverError, decode
from .self_upgrade import running_version


def modules_of(state: Handover) -> Iterator[str]:
    """The modules around which the processes of this pool are."""
    yield from ("broker.loop", "worker.loop")
    for module, kept in (
        ("ingress.loop", state.ingress),
        ("gateway.process", state.gateway),
        ("account.loop", state.account),
        ("tracer.process", state.tracer),
    ):
        if kept.child is not None or kept.due is not None:
            yield module


def main() -> int:
    """Entry of the process."""
    log.begin("handover check", *sys.argv[1:2])
    line = startup.read_line(0)
    at = ""
    try:
        for module in modules_of(decode(line)):
            at = module
            importlib.import_module(f"codex_pool.{module}")
        record = {"event": "fits", "version": running_version(), "supervisor": loop.__name__}
    except HandoverError as error:
        record = {"event": "failed", "reason": str(error)}
    except Exception as error:
        # Whatever it is, a process of this pool would end with it.
        what = f"codex_pool.{at}, which is installed, cannot be loaded: {type(error).__name__}: {error}"
        record = {"event": "failed", "reason": what}
    os.write(1, json.dumps(record).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
