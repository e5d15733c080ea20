"""Calls a function of the user, in a process of its own: JSON in, JSON out. Needs nothing but the standard library.

In: {"path": "...", "function": "module:function", "arguments": {...}, "check": bool, "context": {...}} on stdin.
Out: one line on stdout; whatever the function prints goes to standard error.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.read())
    # In place of the directory of this file, whose modules are none of the user's business. With PYTHONSAFEPATH it is
    # not there.
    sys.path[: 0 if getattr(sys.flags, "safe_path", False) else 1] = [request["path"]]
    try:
        answer = {"said": _call(request)}
        text = json.dumps(answer, allow_nan=False)
    except BaseException as error:
        lines = traceback.format_exception_only(type(error), error)
        text = json.dumps({"failed": "".join(lines).strip(), "where": traceback.format_exc()[-2000:]})
    answers.write(text + "\n")
    answers.flush()


def _call(request: dict[str, Any]) -> Any:
    module, _, name = request["function"].partition(":")
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{request['function']} is no function but {type(function).__name__}")
    arguments = request["arguments"]
    if request["check"]:
        inspect.signature(function).bind({}, **arguments)
        return None
    said = function(request["context"], **arguments)
    if inspect.isawaitable(said):
        import asyncio

        async def wait() -> Any:
            return await said

        return asyncio.run(wait())
    return said


if __name__ == "__main__":
    main()
