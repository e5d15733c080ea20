"""Calls a function of the user, in a process of its own: JSON in, JSON out. Needs nothing but the standard library.

In: {"path": text or null, "function": "module:function", "arguments": {...}, "check": bool, "context": {...}} on stdin.
Out: one line on stdout; whatever the function prints goes to standard error. What the function returns is made plain
JSON first: scalars of numpy and of others as numbers, texts of a score and its metadata no longer than is kept.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import sys
import traceback
from typing import Any

# More than a record keeps of a text, at either end.
KEPT_CHARACTERS = 2_000
METADATA_BYTES = 200_000
MOST_NESTED = 50


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.read())
    # In place of the directory of this file, whose modules are none of the user's business. With PYTHONSAFEPATH it is
    # not there.
    first = [] if request["path"] is None else [request["path"]]
    sys.path[: 0 if getattr(sys.flags, "safe_path", False) else 1] = first
    try:
        text = json.dumps({"said": _as_json(_call(request))}, allow_nan=False)
    except BaseException as error:
        lines = traceback.format_exception_only(type(error), error)
        text = json.dumps({"failed": "".join(lines).strip(), "where": traceback.format_exc()[-2000:]})
    answers.write(text + "\n")
    answers.flush()


def _as_json(value: Any) -> Any:
    """Return the function's result as JSON, no longer than its reader takes."""
    value = _plain(value, top=True)
    if not isinstance(value, dict):
        return value
    for key in ("answer", "explanation"):
        if value.get(key) is not None:
            value[key] = _cut(value[key] if isinstance(value[key], str) else str(value[key]))
    metadata = value.get("metadata")
    if metadata is not None:
        size = len(json.dumps(metadata))
        if size > METADATA_BYTES:
            value["metadata"] = {"left_out": f"metadata of {size:,} bytes; at most {METADATA_BYTES:,} are kept"}
    return value


def _cut(text: str) -> str:
    return text if len(text) <= 2 * KEPT_CHARACTERS else text[:KEPT_CHARACTERS] + text[-KEPT_CHARACTERS:]


def _plain(value: Any, *, top: bool = False, depth: int = 0) -> Any:
    """A value as JSON has it; `top`: one that a score may be, in which NaN is an error."""
    if depth > MOST_NESTED:
        return "..."
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, dict):
        return {
            str(key): _plain(part, top=top and key in ("value", "passed"), depth=depth + 1)
            for key, part in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(part, depth=depth + 1) for part in value]
    value = _scalar(value)
    if isinstance(value, float) and not math.isfinite(value):
        if top:
            raise ValueError(f"the function returned {value}; expected a finite number")
        return None
    if isinstance(value, list):
        return _plain(value, depth=depth + 1)
    return value if isinstance(value, (bool, int, float, str)) else _cut(str(value))


def _scalar(value: Any) -> Any:
    """Numbers of numpy, torch and others, of decimal and fractions, as Python's; arrays as lists."""
    if isinstance(value, (int, float)):
        return value
    for name in ("item", "tolist"):
        if callable(getattr(value, name, None)):
            try:
                return getattr(value, name)()
            except Exception:
                # An array of several.
                continue
    if hasattr(value, "__index__"):
        return int(value)
    if hasattr(value, "__float__"):
        return float(value)
    return value


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
    result = function(request["context"], **arguments)
    if inspect.isawaitable(result):
        import asyncio

        async def wait() -> Any:
            return await result

        return asyncio.run(wait())
    return result


if __name__ == "__main__":
    main()
