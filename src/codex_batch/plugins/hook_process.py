"""The process of an on-record hook: lines of JSON in, an answer to each out. Needs nothing but the standard library.

In: {"value": "module:object", "run": {...}}, then a record a line. Without a run, the object is only imported.
Out: {} for the first line and for each record, and at the end, or {"failed": "..."}; what the hook prints goes to
standard error.

At the end of its input it closes the hook, and ends in any case some seconds later: its run may have been killed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import queue
import signal
import sys
import threading
from typing import Any

END_LIMIT_S = 15.0
# Behind the processes of the run, which share the machine with it.
NICENESS = 5


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    if not getattr(sys.flags, "safe_path", False):
        # The directory of this file, whose modules are none of the hook's business.
        del sys.path[0]
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    hook: Any = None

    def opened(request: dict[str, Any]) -> None:
        nonlocal hook
        hook = _opened(request)

    if not _answered(answers, opened, lines.get()):
        return
    while line := lines.get():
        _answered(answers, hook, line)
    close = getattr(hook, "close", None)
    _answered(answers, lambda _: close() if callable(close) else None, b"{}")


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    """Pass lines on; at their end the process has so long to end."""
    while line := sys.stdin.buffer.readline():
        lines.put(line)
    lines.put(b"")
    timer = threading.Timer(END_LIMIT_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _opened(request: dict[str, Any]) -> Any:
    module, _, name = request["value"].partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{request['value']} is {type(found).__name__}; expected a function or a class")
    if request["run"] is None:
        inspect.signature(found).bind({})
        return None
    hook = found(request["run"])
    if not callable(hook):
        raise TypeError(f"{request['value']} returned {type(hook).__name__}; expected a function that takes a record")
    return hook


def _answered(answers: Any, function: Any, line: bytes) -> bool:
    """Call a function with the value of a line, and answer; return False if it failed."""
    failed = None
    try:
        function(json.loads(line))
    except BaseException as error:
        failed = f"{type(error).__name__}: {error}"[:2_000]
    try:
        answers.write(json.dumps({} if failed is None else {"failed": failed}) + "\n")
        answers.flush()
    except BrokenPipeError:
        os._exit(1)
    return failed is None


if __name__ == "__main__":
    main()
